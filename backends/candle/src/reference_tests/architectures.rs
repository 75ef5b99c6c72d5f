//! Every architecture, dense and as its GGUF twin.

use super::*;

#[test]
fn llama_with_scaled_frequencies_agrees() {
    dense("arch-llama3rope", Architecture::Llama);
    twin("arch-llama3rope");
}

#[test]
fn mistral_agrees_with_a_window_and_without() {
    dense("arch-mistral", Architecture::Mistral);
    variant("arch-mistral", "arch-mistral.full-attention");
    twin("arch-mistral.full-attention");
}

#[test]
fn qwen2_agrees_with_biases_yarn_and_windows_on_some_layers() {
    dense("arch-qwen2", Architecture::Qwen2);
    variant("arch-qwen2", "arch-qwen2.max_window_layers1");
    twin("arch-qwen2");
}

#[test]
fn qwen3_agrees_with_norms_of_queries_and_keys() {
    dense("arch-qwen3", Architecture::Qwen3);
    twin("arch-qwen3");
}

#[test]
fn gemma2_agrees_with_soft_caps_and_norms_around_blocks() {
    dense("arch-gemma2", Architecture::Gemma2);
    twin("arch-gemma2");
}

#[test]
fn gemma3_agrees_with_two_kinds_of_frequencies() {
    dense("arch-gemma3", Architecture::Gemma3);
    twin("arch-gemma3");
}

#[test]
fn phi3_agrees_with_fused_projections_and_a_window() {
    dense("arch-phi3", Architecture::Phi3);
    variant("arch-phi3", "arch-phi3.window8");
    twin("arch-phi3");
}

/// Prompt 0 is shorter than the original context, and prompt 1 longer: the same model computes both.
#[test]
fn phi3_agrees_with_frequencies_that_change_with_the_length() {
    variant("arch-phi3", "arch-phi3.longrope");
    twin("arch-phi3.longrope");
}
