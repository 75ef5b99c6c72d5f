//! Every architecture, and what their configs may change.

use llm_local_core::model::Architecture;

use super::*;

/// How far logits may be from a model's references. Gemma's bound tells the tanh GELU from the exact one, which changes
/// its logits by 0.0017 to 0.003.
pub(super) fn bound(name: &str) -> f32 {
    if name.contains("gemma") { 5e-4 } else { 1e-3 }
}

#[track_caller]
fn dense(model: &str, architecture: Architecture) {
    let checkpoint = checkpoint(model, None);
    assert_eq!(checkpoint.info.decoder.as_ref().unwrap().architecture, architecture);
    agrees(&mut load(&checkpoint, ComputeDtype::F32), model, bound(model));
}

#[track_caller]
fn variant(model: &str, name: &str) {
    agrees(&mut load(&checkpoint(model, Some(name)), ComputeDtype::F32), name, bound(name));
}

#[test]
fn llama_with_scaled_frequencies_agrees() {
    on_thread(|| {
        dense("arch-llama3rope", Architecture::Llama);
    });
}

#[test]
fn mistral_agrees_with_a_window_and_without() {
    on_thread(|| {
        dense("arch-mistral", Architecture::Mistral);
        variant("arch-mistral", "arch-mistral.full-attention");
    });
}

#[test]
fn qwen2_agrees_with_biases_yarn_and_windows_on_some_layers() {
    on_thread(|| {
        dense("arch-qwen2", Architecture::Qwen2);
        variant("arch-qwen2", "arch-qwen2.max_window_layers1");
    });
}

#[test]
fn qwen3_agrees_with_norms_of_queries_and_keys() {
    on_thread(|| {
        dense("arch-qwen3", Architecture::Qwen3);
    });
}

#[test]
fn gemma2_agrees_with_soft_caps_and_norms_around_blocks() {
    on_thread(|| {
        dense("arch-gemma2", Architecture::Gemma2);
    });
}

#[test]
fn gemma3_agrees_with_two_kinds_of_frequencies() {
    on_thread(|| {
        dense("arch-gemma3", Architecture::Gemma3);
    });
}

#[test]
fn phi3_agrees_with_fused_projections_and_a_window() {
    on_thread(|| {
        dense("arch-phi3", Architecture::Phi3);
        variant("arch-phi3", "arch-phi3.window8");
    });
}

/// Prompt 0 is shorter than the original context, and prompt 1 longer: the same model computes both.
#[test]
fn phi3_agrees_with_frequencies_that_change_with_the_length() {
    on_thread(|| {
        variant("arch-phi3", "arch-phi3.longrope");
    });
}

#[test]
fn granite_agrees_with_its_four_multipliers() {
    on_thread(|| {
        dense("arch-granite", Architecture::Granite);
    });
}

#[test]
fn olmo2_agrees_with_norms_after_blocks_and_over_whole_projections() {
    on_thread(|| {
        dense("arch-olmo2", Architecture::Olmo2);
        variant("arch-olmo2", "arch-olmo2.linear-rope");
    });
}

#[test]
fn gemma1_agrees() {
    on_thread(|| {
        dense("arch-gemma", Architecture::Gemma);
    });
}

#[test]
fn llama_agrees_with_biases_everywhere_and_wide_heads() {
    on_thread(|| {
        dense("arch-llama-bias", Architecture::Llama);
    });
}

#[test]
fn scores_scaled_by_another_number_than_the_width_of_a_head_agree() {
    on_thread(|| {
        variant("arch-gemma2", "arch-gemma2.query_pre_attn_scalar60");
        variant("arch-gemma3", "arch-gemma3.query_pre_attn_scalar60");
    });
}

#[test]
fn soft_caps_of_logits_agree_in_gemma3() {
    on_thread(|| {
        variant("arch-gemma3", "arch-gemma3.final-softcap");
    });
}

#[test]
fn heads_that_are_rotated_in_part_agree() {
    on_thread(|| {
        variant("arch-phi3", "arch-phi3.partial-rotary0.75");
    });
}

#[test]
fn other_rotary_scalings_than_the_models_own_agree() {
    on_thread(|| {
        variant("arch-qwen2", "arch-qwen2.linear-rope");
        variant("arch-qwen3", "arch-qwen3.yarn");
    });
}

#[test]
fn windows_from_a_layer_on_agree_in_qwen3() {
    on_thread(|| {
        variant("arch-qwen3", "arch-qwen3.max_window_layers1");
    });
}
