use half::f16;
use proptest::prelude::*;

use super::*;
use crate::testing::bytes_of;

const TYPES: [FloatType; 4] = [FloatType::F64, FloatType::F32, FloatType::F16, FloatType::Bf16];

/// One value at a time, with `half`'s scalar conversions.
fn naive(bytes: &[u8], from: FloatType, to: FloatType) -> Vec<u8> {
    bytes
        .chunks_exact(from.size())
        .flat_map(|b| {
            let value = match from {
                FloatType::F64 => f64::from_le_bytes(b.try_into().unwrap()) as f32,
                FloatType::F32 => f32::from_le_bytes(b.try_into().unwrap()),
                FloatType::F16 => f16::from_le_bytes(b.try_into().unwrap()).to_f32(),
                _ => bf16::from_le_bytes(b.try_into().unwrap()).to_f32(),
            };
            match to {
                FloatType::F32 => value.to_le_bytes().to_vec(),
                FloatType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                _ => bf16::from_f32(value).to_le_bytes().to_vec(),
            }
        })
        .collect()
}

fn encode(values: &[f64], to: FloatType) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&x| match to {
            FloatType::F64 => x.to_le_bytes().to_vec(),
            FloatType::F32 => (x as f32).to_le_bytes().to_vec(),
            FloatType::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
            _ => bf16::from_f64(x).to_le_bytes().to_vec(),
        })
        .collect()
}

#[test]
fn every_length_around_a_block_and_a_task_converts_as_value_by_value() {
    for count in [0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, TASK - 1, TASK, 2 * TASK + BLOCK + 3] {
        let values: Vec<f64> = (0..count).map(|i| ((i * 7919 % 4001) as f64 - 2000.0) * 1.37e-3).collect();
        for from in TYPES {
            // One byte in front makes the values unaligned.
            let mut bytes = vec![0xff];
            bytes.extend(encode(&values, from));
            for to in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
                let got = convert(&bytes[1..], from, to).unwrap();
                assert!(bytes_of(&got) == naive(&bytes[1..], from, to), "{count} values from {from} to {to}");
            }
        }
    }
}

#[test]
fn rounding_is_to_nearest_even_and_infinities_and_nan_stay() {
    let values = [0.0, -0.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-40];
    let bytes = encode(&values, FloatType::F32);
    let Some(TensorData::Half(got)) = convert(&bytes, FloatType::F32, FloatType::Bf16) else { panic!() };
    // bf16 has 7 fraction bits: 1 + 1/256 lies halfway and goes to the even 1, 1 + 3/256 to the even 1 + 4/256.
    assert_eq!(got[..6], [0x0000, 0x8000, 0x3f80, 0x3f82, 0x7f80, 0xff80]);
    assert!(bf16::from_bits(got[6]).is_nan());
    assert!(convert(&bytes, FloatType::F32, FloatType::F64).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bits_convert_as_value_by_value(bytes in proptest::collection::vec(any::<u8>(), 0..20_000), cut in 0..8usize) {
        for from in TYPES {
            let bytes = bytes.get(cut..).unwrap_or_default();
            let bytes = &bytes[..bytes.len() / from.size() * from.size()];
            for to in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
                let got = bytes_of(&convert(bytes, from, to).unwrap());
                let expected = naive(bytes, from, to);
                // The payload of a NaN is not kept by all of the processor's conversions.
                let nan = |b: &[u8]| match to {
                    FloatType::F32 => f32::from_le_bytes(b.try_into().unwrap()).is_nan(),
                    FloatType::F16 => f16::from_le_bytes(b.try_into().unwrap()).is_nan(),
                    _ => bf16::from_le_bytes(b.try_into().unwrap()).is_nan(),
                };
                for (a, b) in got.chunks_exact(to.size()).zip(expected.chunks_exact(to.size())) {
                    prop_assert!(a == b || (nan(a) && nan(b)), "{from} to {to}: {a:?} {b:?}");
                }
            }
        }
    }
}
