//! Against what mlx.core.quantize and mlx.core.dequantize made of the same values (`scripts/make_mlx.py`).

use llm_local_core::{TensorData, TensorEntry, TensorSource};
use llm_local_weights::SafetensorsSource;

use super::*;
use crate::lora::testing::fixture;

const TYPES: [(&str, FloatType); 3] = [("f32", FloatType::F32), ("f16", FloatType::F16), ("bf16", FloatType::Bf16)];

fn source() -> SafetensorsSource {
    SafetensorsSource::open(&fixture("mlx/affine.safetensors")).unwrap()
}

fn bytes(source: &SafetensorsSource, name: &str) -> Vec<u8> {
    let TensorData::Borrowed(bytes) = source.read(name, None).unwrap() else { panic!("{name}") };
    bytes.to_vec()
}

fn floats(source: &SafetensorsSource, name: &str) -> Vec<f32> {
    match source.read(name, Some(FloatType::F32)).unwrap() {
        TensorData::Borrowed(bytes) => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        TensorData::F32(values) => values,
        other => panic!("{name}: {other:?}"),
    }
}

/// Every case of the file: its name, how it is packed, and the type of its factors.
fn cases(source: &SafetensorsSource) -> Vec<(String, Packing, FloatType)> {
    let case = |entry: &TensorEntry| {
        let name = entry.name.strip_suffix(".weight")?;
        let [kind, bits, group_size] = name.split('.').collect::<Vec<_>>()[..] else { panic!("{name}") };
        let factors = TYPES.iter().find(|(name, _)| *name == kind).unwrap().1;
        let packing = Packing::new(bits.parse().unwrap(), group_size.parse().unwrap()).unwrap();
        Some((name.to_owned(), packing, factors))
    };
    let cases: Vec<_> = source.entries().iter().filter_map(case).collect();
    assert_eq!(cases.len(), 6 * 3 + 2 * 2);
    cases
}

#[test]
fn any_elements_are_those_that_mlx_dequantizes() {
    let source = source();
    for (name, packing, _) in cases(&source) {
        let [scales, biases, given] =
            ["scales", "biases", "given"].map(|part| floats(&source, &format!("{name}.{part}")));
        let packed = bytes(&source, &format!("{name}.weight"));
        let affine = Affine::new(packing, &packed, &scales, &biases).unwrap();
        for (start, count) in [(0, given.len()), (0, 1), (31, 2), (127, 3), (250, 700), (given.len() - 5, 5)] {
            let mut out = vec![0.0; count];
            affine.widen(start, &mut out);
            // MLX may fuse the product and the sum, or round twice as here: one rounding of f32 each.
            for (found, expected) in out.iter().zip(&given[start..]) {
                assert!((found - expected).abs() <= 4e-7 * expected.abs().max(1.0), "{name}: {found} {expected}");
            }
        }
    }
}

#[test]
fn scales_and_biases_are_those_of_mlx_and_with_them_the_weights_in_f32() {
    let source = source();
    let values = floats(&source, "values");
    for (name, packing, factors) in cases(&source) {
        let quantizer = AffineQuantizer::new(packing, factors);
        let (elements, size) = packing.group();
        let found: Vec<_> = values.chunks(elements).map(|group| quantizer.factors(group)).collect();
        let expected: Vec<_> = floats(&source, &format!("{name}.scales"))
            .into_iter()
            .zip(floats(&source, &format!("{name}.biases")))
            .collect();
        assert_eq!(found, expected, "{name}");
        let mut packed = vec![0xff; values.len() / elements * size];
        quantizer.pack(&values, &mut packed);
        let mlx = bytes(&source, &format!("{name}.weight"));
        if factors == FloatType::F32 {
            assert!(packed == mlx, "{name}");
        }
        // With rounded factors, no weight is farther from its value than in MLX's packing.
        let (scales, biases): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
        let given = |packed: &[u8]| {
            let mut out = vec![0.0; values.len()];
            Affine::new(packing, packed, &scales, &biases).unwrap().widen(0, &mut out);
            out
        };
        let (ours, theirs) = (given(&packed), given(&mlx));
        for ((value, ours), theirs) in values.iter().zip(&ours).zip(&theirs) {
            assert!(
                (value - ours).abs() <= (value - theirs).abs() + 1e-6,
                "{name}: {value} became {ours}, not {theirs}"
            );
        }
        let mut rounded = vec![0.0; values.len()];
        quantizer.round(&values, &mut rounded);
        assert_eq!(rounded, ours, "{name}");
    }
}

#[test]
fn a_group_whose_scale_is_too_small_for_its_type_is_its_bias() {
    let packing = Packing::new(4, 32).unwrap();
    // 1e-9 over 15 steps is nothing in f16, and 1e-7 is the smallest scale.
    let quantizer = AffineQuantizer::new(packing, FloatType::F16);
    let mut group = [0.0; 32];
    group[3] = 1e-9;
    let mut rounded = [1.0; 32];
    quantizer.round(&group, &mut rounded);
    assert!(rounded.iter().all(|value| value.abs() <= 1e-7), "{rounded:?}");
}

#[test]
fn parts_that_do_not_go_together_are_an_error() {
    let packing = Packing::new(4, 32).unwrap();
    for (bytes, scales, biases) in [(15, 1, 1), (32, 1, 2), (32, 2, 1)] {
        let (bytes, factors) = (vec![0; bytes], [0.0; 2]);
        let error = Affine::new(packing, &bytes, &factors[..scales], &factors[..biases]).err().unwrap();
        assert!(error.contains("one of each for 16 bytes"), "{error}");
    }
}
