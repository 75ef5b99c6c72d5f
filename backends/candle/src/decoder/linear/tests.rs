//! Products against those with the whole matrix in f32.

use super::*;

const FORMATS: [GgmlDType; 10] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

fn random(shape: (usize, usize)) -> Tensor {
    // Fixed numbers in (-1, 1), without a pattern that a wrong order would keep.
    let number = |i: usize| ((i as f64 * 12.9898).sin() * 43758.5453).fract() as f32;
    Tensor::from_vec((0..shape.0 * shape.1).map(number).collect(), shape, &Device::Cpu).unwrap()
}

fn error(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn linear(weight: Matrix) -> Linear {
    Linear::new(weight, None)
}

#[test]
fn every_block_format_is_multiplied_as_it_is_and_widened() {
    for (out, width) in [(48, 256), (1100, 512), (20, 256)] {
        for format in FORMATS {
            let blocks = Arc::new(QTensor::quantize(&random((out, width)), format).unwrap());
            let whole = blocks.dequantize(&Device::Cpu).unwrap();
            for rows in [1, 3, 70] {
                let x = random((rows, width));
                let expected = x.matmul(&whole.t().unwrap()).unwrap();
                let with =
                    |widen_from| linear(Matrix::Quantized { blocks: blocks.clone(), widen_from }).forward(&x).unwrap();
                let (widened, as_is) = (error(&with(1), &expected), error(&with(usize::MAX), &expected));
                assert!(widened < 5e-4, "{format:?} {out}x{width}, {rows} rows, widened: {widened}"); // What 8-bit activations cost: 0.156 at most.
                assert!(as_is < 0.2, "{format:?} {out}x{width}, {rows} rows, as it is: {as_is}");
            }
            let embedding = super::super::embedding::Embedding::new(
                Matrix::quantized(QTensor::quantize(&random((out, width)), format).unwrap()).unwrap(),
                1.0,
            );
            let ids = Tensor::new(&[7u32, 0, 19, 7], &Device::Cpu).unwrap();
            let rows = embedding.forward(&ids, DType::F32).unwrap();
            assert_eq!(error(&rows, &whole.index_select(&ids, 0).unwrap()), 0.0, "{format:?}");
        }
    }
}

#[test]
fn half_precision_matrices_are_multiplied_in_tiles_and_row_by_row() {
    for (dtype, one_row) in [(DType::F16, 0.1), (DType::BF16, 5e-4), (DType::F32, 5e-4)] {
        // The last has more rows than one tile, and not a whole number of tiles.
        for (out, width) in [(48, 64), (33, 100), (1300, 520)] {
            let weight = random((out, width)).to_dtype(dtype).unwrap();
            let whole = weight.to_dtype(DType::F32).unwrap();
            for rows in [1, 2, 9] {
                let x = random((rows, width));
                let y = linear(Matrix::Dense(weight.clone())).forward(&x).unwrap();
                let error = error(&y, &x.matmul(&whole.t().unwrap()).unwrap());
                let bound = if rows == 1 { one_row } else { 5e-4 };
                assert!(error < bound, "{dtype:?} {out}x{width}, {rows} rows: {error}");
            }
        }
    }
}
