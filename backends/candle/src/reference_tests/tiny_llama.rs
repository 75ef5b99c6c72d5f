//! tiny-llama in every dtype.

use super::*;

#[test]
fn dense_logits_agree_in_every_dtype() {
    for (dtype, bound) in [(ComputeDtype::F32, 2e-5), (ComputeDtype::F16, 0.02), (ComputeDtype::Bf16, 0.1)] {
        agrees(&mut tiny(dtype), "tiny-llama", bound);
    }
}

#[test]
fn gguf_floats_agree() {
    agrees(&mut gguf("tiny-llama-f16"), "tiny-llama", 1e-4);
    agrees(&mut gguf("tiny-llama-bf16"), "tiny-llama", 1e-4);
}
