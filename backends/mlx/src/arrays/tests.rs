use half::{bf16, f16};

use super::*;

const VALUES: [f32; 6] = [1.5, -2.0, 0.0, 65504.0, -0.25, 3.0];

fn le<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|v| bytes(*v)).collect()
}

#[test]
fn data_of_every_form_and_type_comes_back_as_it_was() {
    let (f16s, bf16s) = (VALUES.map(f16::from_f32), VALUES.map(bf16::from_f32));
    let (wide, half, brain) =
        (le(&VALUES, f32::to_le_bytes), le(&f16s, f16::to_le_bytes), le(&bf16s, bf16::to_le_bytes));
    let doubles = le(&VALUES, |v| f64::from(v).to_le_bytes());
    let cases = [
        (FloatType::F32, wide, Some(TensorData::F32(VALUES.to_vec()))),
        (FloatType::F16, half, Some(TensorData::Half(f16s.map(f16::to_bits).to_vec()))),
        (FloatType::Bf16, brain, Some(TensorData::Half(bf16s.map(bf16::to_bits).to_vec()))),
        (FloatType::F64, doubles, None),
    ];
    for (float, bytes, other) in cases {
        let forms = [TensorData::Borrowed(&bytes), TensorData::Bytes(bytes.clone())];
        for data in forms.into_iter().chain(other) {
            let array = from_data("w", data, &[2, 3], float).unwrap();
            assert_eq!((array.shape(), array.dtype()), (&[2, 3][..], mlx_dtype(float)));
            assert_eq!(float_type(array.dtype()), float);
            let expected = if float == FloatType::Bf16 { bf16s.map(bf16::to_f32) } else { VALUES };
            assert_eq!(to_f32(&array).unwrap(), expected, "{float}");
            assert_eq!(to_bytes(&array).unwrap(), bytes, "{float}");
        }
    }
}

#[test]
fn bytes_that_lie_at_odd_places_are_read() {
    let bytes = [&[9][..], &le(&VALUES, f32::to_le_bytes)].concat();
    let array = from_data("w", TensorData::Borrowed(&bytes[1..]), &[6], FloatType::F32).unwrap();
    assert_eq!(to_f32(&array).unwrap(), VALUES);
    let one = from_data("w", TensorData::Borrowed(&bytes[1..5]), &[], FloatType::F32).unwrap();
    assert_eq!((one.shape().len(), to_f32(&one).unwrap()), (0, vec![1.5]));
}

#[test]
fn packed_integers_keep_their_bits() {
    let words = [0x0123_4567u32, u32::MAX, 0];
    let array = from_packed("w", TensorData::Bytes(le(&words, u32::to_le_bytes)), &[1, 3]).unwrap();
    assert_eq!(array.try_as_slice::<u32>().unwrap(), words);
}

#[test]
fn views_are_read_in_their_own_order() {
    let array = from_f32(&VALUES, &[2, 3]).unwrap().transpose().unwrap();
    let expected = [1.5, 65504.0, -2.0, -0.25, 0.0, 3.0];
    assert_eq!(to_f32(&array).unwrap(), expected);
    assert_eq!(to_bytes(&array).unwrap(), le(&expected, f32::to_le_bytes));
    assert!(to_bytes(&from_f32(&[], &[0, 3]).unwrap()).unwrap().is_empty());
}

#[test]
fn data_that_does_not_fit_its_shape_is_an_error_that_names_the_tensor() {
    for shape in [&[2, 4][..], &[usize::MAX, 2]] {
        let error = from_data("blk.w", TensorData::F32(VALUES.to_vec()), shape, FloatType::F32).unwrap_err();
        assert!(error.code() == "load_failed" && error.to_string().contains("blk.w"), "{error}");
    }
    let error = from_data("w", TensorData::F32(vec![0.0; 3]), &[6], FloatType::F16).unwrap_err();
    assert!(error.to_string().contains("not known"), "{error}");
    assert!(from_f32(&VALUES, &[7]).unwrap_err().what().contains("has 7 elements, not 6"));
}

#[test]
fn memory_that_there_is_not_is_told_before_mlx_writes_to_it() {
    let error = check_room(1 << 60).unwrap_err();
    assert_eq!(load_error("w", "no", error).code(), "out_of_memory");
}
