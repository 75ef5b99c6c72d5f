//! Every architecture, dense and as its GGUF twin.

use super::*;

/// Gemma's bound tells the tanh GELU from the exact one, which changes these logits by 0.0017.
fn bound(name: &str) -> f32 {
    if name.contains("gemma") { 5e-4 } else { 1e-3 }
}

#[track_caller]
fn dense(model: &str) {
    agrees(&mut load(&dense_checkpoint(model, None), ComputeDtype::F32), model, bound(model));
}

#[track_caller]
fn variant(model: &str, name: &str) {
    agrees(&mut load(&dense_checkpoint(model, Some(name)), ComputeDtype::F32), name, bound(name));
}

#[track_caller]
fn twin(name: &str) {
    agrees(&mut gguf(name), name, bound(name));
}

#[test]
fn llama_with_scaled_frequencies_agrees() {
    dense("arch-llama3rope");
    twin("arch-llama3rope");
}

#[test]
fn mistral_agrees_with_a_window_and_without() {
    dense("arch-mistral");
    variant("arch-mistral", "arch-mistral.full-attention");
    twin("arch-mistral.full-attention");
}

#[test]
fn qwen2_agrees_with_biases_yarn_and_windows_on_some_layers() {
    dense("arch-qwen2");
    variant("arch-qwen2", "arch-qwen2.max_window_layers1");
    twin("arch-qwen2");
}

#[test]
fn qwen3_agrees_with_norms_of_queries_and_keys() {
    dense("arch-qwen3");
    twin("arch-qwen3");
}

#[test]
fn gemma2_agrees_with_soft_caps_and_norms_around_blocks() {
    dense("arch-gemma2");
    twin("arch-gemma2");
}

#[test]
fn gemma3_agrees_with_two_kinds_of_frequencies() {
    dense("arch-gemma3");
    twin("arch-gemma3");
}

#[test]
fn phi3_agrees_with_fused_projections_and_a_window() {
    dense("arch-phi3");
    variant("arch-phi3", "arch-phi3.window8");
    twin("arch-phi3");
}

/// Prompt 0 is shorter than the original context, and prompt 1 longer: the same model computes both.
#[test]
fn phi3_agrees_with_frequencies_that_change_with_the_length() {
    variant("arch-phi3", "arch-phi3.longrope");
    twin("arch-phi3.longrope");
}
