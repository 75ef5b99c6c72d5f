//! What is said where candle is not there.

use llm_local_core::{Encoding, GgmlType};

use super::{Blocks, Quantizer, check, check_again};

#[test]
fn formats_of_candle_name_its_feature_and_others_are_not_promised_to_it() {
    for (kind, expected) in [
        (GgmlType::Q4_K, "takes the cargo feature `candle`"),
        (GgmlType::Q8_0, "takes the cargo feature `candle`"),
        (GgmlType::IQ4_NL, "which candle cannot dequantize"),
        (GgmlType::MXFP4, "which candle cannot dequantize"),
    ] {
        let errors = [
            check(Encoding::Ggml(kind), &[32, 64]).unwrap_err(),
            check_again(Encoding::Ggml(kind), &[32, 64]).unwrap_err(),
            Blocks::new(kind, &[]).err().unwrap(),
            Quantizer::new(kind).err().unwrap(),
        ];
        for error in errors {
            assert!(error.contains(&kind.to_string()) && error.contains(expected), "{error}");
        }
    }
    // MLX's packing takes no candle.
    let affine = Encoding::MlxAffine { bits: 4, group_size: 64 };
    assert_eq!((check(affine, &[32, 64]), check_again(affine, &[32, 64])), (Ok(()), Ok(())));
}
