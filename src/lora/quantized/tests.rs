use std::{borrow::Cow, collections::BTreeSet};

use candle_core::{
    Device,
    quantized::{QStorage, QTensor},
};
use llm_local_core::{Encoding, FloatType, GgmlType, TensorData, TensorSource};
use llm_local_weights::GgufSource;

use super::{Blocks, Given, blocks::dtype, check, check_again, is_known};
use crate::lora::testing::fixture;

/// All of a tensor, as candle dequantizes it.
fn whole(kind: GgmlType, bytes: &[u8], shape: &[usize]) -> Vec<f32> {
    let storage = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, dtype(kind).unwrap()).unwrap();
    let tensor = QTensor::new(storage, shape).unwrap().dequantize(&Device::Cpu).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn blocks_are_of_the_size_that_candle_takes_them_for_and_others_are_refused_by_name() {
    let mut known = 0;
    for kind in (0..64).filter_map(GgmlType::from_id) {
        assert_eq!(dtype(kind).is_some(), is_known(kind), "{kind}");
        match dtype(kind) {
            Some(dtype) => {
                assert_eq!((dtype.block_size(), dtype.type_size()), kind.block(), "{kind}");
                assert_eq!(check(Encoding::Ggml(kind), &[32, 64]), Ok(()));
                known += 1;
            }
            None => {
                let error = check(Encoding::Ggml(kind), &[32, 64]).unwrap_err();
                assert!(error.contains(&kind.to_string()) && error.contains("candle"), "{error}");
            }
        }
    }
    assert_eq!(known, 12);
    let affine = |bits, group_size| Encoding::MlxAffine { bits, group_size };
    assert_eq!(check(affine(4, 64), &[32, 64]), Ok(()));
    for vector in [check(Encoding::Ggml(GgmlType::Q8_0), &[64]), check_again(Encoding::Ggml(GgmlType::Q8_0), &[64])] {
        assert!(vector.unwrap_err().contains("is a vector of Q8_0; expected floats"));
    }
    assert_eq!(check(Encoding::Float(FloatType::F32), &[64]), Ok(()));
    assert!(check(affine(7, 64), &[32, 64]).unwrap_err().contains("mlx-affine(7 bits, group 64)"));
    assert!(check_again(affine(4, 16), &[32, 64]).unwrap_err().contains("mlx-affine(4 bits, group 16)"));
    assert!(
        check_again(Encoding::Ggml(GgmlType::IQ4_NL), &[32, 64]).unwrap_err().contains("IQ4_NL, which candle cannot")
    );
}

#[test]
fn what_does_not_change_stays_in_blocks() {
    let affine = Encoding::MlxAffine { bits: 4, group_size: 64 };
    let (bf16, f16) = (Encoding::Float(FloatType::Bf16), Encoding::Float(FloatType::F16));
    for blocks in [Encoding::Ggml(GgmlType::Q4_K), affine] {
        for given in [Given::Dequantized, Given::Requantized] {
            assert_eq!(given.encoding(blocks, false, false), blocks);
            assert_eq!(given.encoding(bf16, true, false), bf16);
        }
        assert_eq!(Given::Dequantized.encoding(blocks, true, false), f16);
        assert_eq!(Given::Requantized.encoding(blocks, true, false), blocks);
    }
    // A head that leaves its embedding takes no scales along.
    assert_eq!(Given::Requantized.encoding(affine, false, true), f16);
}

#[test]
fn any_elements_are_those_of_the_whole_tensor_also_of_unaligned_blocks() {
    let mut seen = BTreeSet::new();
    for name in ["q2_k", "q3_k_m", "q4_1", "q4_k_m", "q5_0", "q5_1", "q5_k_m", "q6_k", "q8_0"] {
        let source = GgufSource::open(&fixture(&format!("gguf/mixed-{name}.gguf"))).unwrap();
        for entry in source.entries() {
            let Encoding::Ggml(kind) = entry.encoding else { continue };
            if !seen.insert(kind.id()) {
                continue;
            }
            let TensorData::Borrowed(bytes) = source.read(&entry.name, None).unwrap() else { panic!("{name}") };
            let all = whole(kind, bytes, &entry.shape);
            for shift in 0..4 {
                // An odd address, whatever the first one is.
                let moved = [&vec![0; shift][..], bytes].concat();
                let blocks = Blocks::new(kind, &moved[shift..]).unwrap();
                for (start, count) in [(0, all.len()), (0, 1), (31, 2), (256, 256), (250, 700), (all.len() - 5, 5)] {
                    let mut out = vec![0.0; count];
                    blocks.widen(start, &mut out);
                    assert_eq!(out, all[start..start + count], "{kind} from {start}");
                }
            }
        }
    }
    assert!(seen.len() >= 9, "only {} block formats were tried", seen.len());
    let error = Blocks::new(GgmlType::Q4_0, &[0; 19]).err().unwrap();
    assert!(error.contains("not whole blocks of Q4_0"), "{error}");
}
