//! Adapters beside the weights and merged into them, against references that PEFT and mlx-lm computed in float32.

use llm_local_core::{AdapterSet, LoraAdapter};

use super::{
    lora::{logits_with, mlx_lm, patterns, peft, pirate, rslora, set, twice},
    merging::load_merged,
    reference::largest_error_with,
    *,
};

#[track_caller]
pub(super) fn beside(model: &mut Decoder, adapter: LoraAdapter, reference: &str, bound: f32) {
    let adapted = model.prepare_adapters(&set(adapter)).unwrap();
    let error = largest_error_with(model, Some(&adapted), reference, false);
    assert!(error <= bound, "{reference}: largest error {error}, allowed {bound}");
}

/// Beside the weights, and merged into them in f64, against the reference of each.
#[track_caller]
fn both(base: &str, adapter: LoraAdapter, bound: f32) {
    let checkpoint = checkpoint(base, None);
    let reference = format!("{base}__{}", adapter.reference);
    let mut merged = load_merged(&checkpoint, &set(adapter.clone()));
    let error = largest_error_with(&mut merged, None, &reference, true);
    assert!(error <= bound, "{reference}, merged: largest error {error}, allowed {bound}");
    beside(&mut load(&checkpoint, ComputeDtype::F32), adapter, &reference, bound);
}

const TINY: f32 = 2e-5;

#[test]
fn plain_pairs_agree() {
    on_thread(|| {
        both("tiny-llama", pirate(), TINY);
        both("tiny-llama", rslora(), TINY);
        both("tiny-llama", peft("tiny-llama-lora-qv-last2", |_, rank| 16.0 / rank as f64), TINY);
        both("tiny-llama", twice("tiny-llama-lora-bias-lora_only"), TINY);
        both("tiny-llama", peft("tiny-llama-lora-mlx-trained-as-peft", |_, rank| 24.0 / rank as f64), TINY);
    });
}

#[test]
fn patterns_agree() {
    on_thread(|| both("tiny-llama", patterns(), TINY));
}

#[test]
fn dora_agrees() {
    on_thread(|| {
        let adapter = twice("tiny-llama-lora-dora");
        assert!(adapter.modules.iter().all(|module| module.magnitude.is_some()));
        both("tiny-llama", adapter, TINY);
    });
}

/// mlx-lm's own logits, of its own adapters: beside the weights, and fused into them.
#[test]
fn adapters_of_mlx_lm_agree() {
    on_thread(|| {
        let mut model = tiny(ComputeDtype::F32);
        let lora = || mlx_lm("tiny-llama-lora-mlx", 2.0);
        let dora = || mlx_lm("tiny-llama-lora-dora-mlx", 2.0);
        beside(&mut model, lora(), "mlx__tiny-llama.f32__tiny-llama-lora-mlx", TINY);
        beside(&mut model, dora(), "mlx__tiny-llama.f32__tiny-llama-lora-dora-mlx", TINY);
        beside(&mut model, mlx_lm("tiny-llama-lora-mlx-trained", 6.0), "mlx__tiny-llama.f32__lora-mlx-trained", TINY);
        for (adapter, name) in [(lora(), "lora-mlx"), (dora(), "lora-dora-mlx")] {
            let mut merged = load_merged(&checkpoint("tiny-llama", None), &set(adapter));
            agrees(&mut merged, &format!("mlx__tiny-llama.f32__tiny-llama-{name}.fused"), TINY);
        }
    });
}

/// With activations and adapters in bf16, as mlx-lm has them: both round, each in its own places.
#[test]
fn adapters_in_bf16_stay_near_those_of_mlx_lm() {
    on_thread(|| {
        let mut model = tiny(ComputeDtype::Bf16);
        for (adapter, name) in [
            (mlx_lm("tiny-llama-lora-mlx", 2.0), "tiny-llama-lora-mlx"),
            (mlx_lm("tiny-llama-lora-dora-mlx", 2.0), "tiny-llama-lora-dora-mlx"),
            (mlx_lm("tiny-llama-lora-mlx-trained", 6.0), "lora-mlx-trained"),
        ] {
            beside(&mut model, adapter, &format!("mlx__tiny-llama.bf16__{name}"), 0.1);
        }
    });
}

/// Beside packed weights, as mlx-lm computes them.
#[test]
fn adapters_agree_beside_quantized_weights() {
    on_thread(|| {
        for bits in [4, 8] {
            let name = format!("tiny-llama-mlx-{bits}bit");
            let mut model = load(&checkpoint(&name, None), ComputeDtype::Auto);
            let adapter = mlx_lm("tiny-llama-lora-mlx", 2.0);
            beside(&mut model, adapter, &format!("mlx__{name}.quant.f32__lora"), TINY);
        }
    });
}

/// PEFT gives the tied head the pair of the embedding only where it is merged: unmerged it is off by 3.5.
#[test]
fn a_pair_of_the_embedding_is_one_of_the_tied_head_too() {
    on_thread(|| {
        let mut model = tiny(ComputeDtype::F32);
        let set = set(twice("tiny-llama-lora-embed"));
        let adapted = model.prepare_adapters(&set).unwrap();
        let reference = "tiny-llama__tiny-llama-lora-embed";
        let merged = largest_error_with(&mut model, Some(&adapted), reference, true);
        assert!(merged <= TINY, "largest error {merged}");
        let unmerged = largest_error_with(&mut model, Some(&adapted), reference, false);
        assert!(unmerged > 3.0, "{unmerged}");
    });
}

#[test]
fn replaced_embeddings_and_heads_untie_the_two() {
    on_thread(|| {
        let mut model = tiny(ComputeDtype::F32);
        for name in ["embed_tokens", "lm_head"] {
            let name = format!("tiny-llama-lora-modules-to-save-{name}");
            let adapter = twice(&name);
            assert_eq!(adapter.replacements.len(), 1);
            beside(&mut model, adapter, &format!("tiny-llama__{name}"), TINY);
        }
    });
}

#[test]
fn every_architecture_agrees() {
    on_thread(|| {
        for name in ["gemma2", "gemma3", "llama3rope", "mistral", "phi3", "qwen2", "qwen3"] {
            both(&format!("arch-{name}"), twice(&format!("arch-{name}-lora")), 1e-4);
        }
    });
}

#[test]
fn an_adapter_leaves_the_base_and_other_adapters_alone() {
    on_thread(|| {
        let mut model = tiny(ComputeDtype::F32);
        let prompt = [1, 5, 9, 200];
        let base = |model: &mut Decoder| {
            let mut cache = model.new_cache(4).unwrap();
            model.forward(&mut cache, &prompt, 0, None).unwrap()
        };
        let before = base(&mut model);
        let one = logits_with(&mut model, &prompt, &set(pirate()));
        let other = logits_with(&mut model, &prompt, &set(twice("tiny-llama-lora-modules-to-save-embed_tokens")));
        assert!(difference(&one, &before) > 0.05 && difference(&other, &before) > 0.05);
        assert_eq!(logits_with(&mut model, &prompt, &set(pirate())), one);
        assert_eq!(base(&mut model), before);
    });
}

#[test]
fn an_empty_set_and_a_weight_of_zero_are_the_base() {
    on_thread(|| {
        let mut model = tiny(ComputeDtype::F32);
        let prompt = [1, 5, 9, 200];
        let base = model.new_cache(4).and_then(|mut cache| model.forward(&mut cache, &prompt, 0, None)).unwrap();
        assert_eq!(logits_with(&mut model, &prompt, &AdapterSet::new()), base);
        let off = AdapterSet::new().with(pirate().into(), 0.0).with(twice("tiny-llama-lora-dora").into(), 0.0);
        assert_eq!(logits_with(&mut model, &prompt, &off), base);
    });
}
