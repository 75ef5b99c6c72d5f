//! tiny-llama in every type that activations may have.

use super::*;

#[test]
fn dense_logits_agree_in_every_dtype() {
    on_thread(|| {
        for (dtype, bound) in [(ComputeDtype::F32, 2e-5), (ComputeDtype::F16, 0.02), (ComputeDtype::Bf16, 0.1)] {
            agrees(&mut tiny(dtype), "tiny-llama", bound);
        }
    });
}

/// mlx-lm's logits of the same weights.
#[test]
fn dense_logits_are_those_of_mlx_lm() {
    on_thread(|| {
        agrees(&mut tiny(ComputeDtype::F32), "mlx__tiny-llama.f32", 2e-5);
        agrees(&mut tiny(ComputeDtype::Bf16), "mlx__tiny-llama.bf16", 0.1);
    });
}
