//! Adapters beside the weights, against the same adapters merged into them in f64: what no reference has.

use std::sync::Arc;

use llm_local_core::{
    AdapterSet, LoraAdapter, ModelFormat, ModelInfo, TensorSource,
    lora::{AdapterFeature, ReplacedRows, ReplacementTensor},
};

use super::{
    lora::{logits_with, pair, pirate, twice},
    merging::{Merged, load_merged},
    *,
};

/// The largest difference between `set` beside a model and merged into it, for prompts in one step and token by token.
fn difference_of(model: &str, set: &AdapterSet) -> f32 {
    let checkpoint = checkpoint(model, None);
    let mut beside = load(&checkpoint, ComputeDtype::F32);
    let mut merged = load_merged(&checkpoint, set);
    let adapted = beside.prepare_adapters(set).unwrap();
    let prompt: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 300).collect();
    let mut largest = 0f32;
    for chunk in [40, 3, 1] {
        let (mut one, mut other) = (beside.new_cache(40).unwrap(), merged.new_cache(40).unwrap());
        for (i, step) in prompt.chunks(chunk).enumerate() {
            let found = beside.forward(&mut one, step, i * chunk, Some(&adapted)).unwrap();
            largest = largest.max(difference(&found, &merged.forward(&mut other, step, i * chunk, None).unwrap()));
        }
    }
    let base = beside.new_cache(40).and_then(|mut cache| beside.forward(&mut cache, &prompt, 0, None)).unwrap();
    let changed = difference(&logits_with(&mut beside, &prompt, set), &base);
    assert!(changed > 0.05, "the adapters change next to nothing: {changed}");
    largest
}

#[track_caller]
fn is_merged(model: &str, set: &AdapterSet) {
    let difference = difference_of(model, set);
    assert!(difference < 5e-5, "{model}: {difference}");
}

/// Measured: 3e-6 to 1e-5.
#[test]
fn several_adapters_with_weights_add_up() {
    on_thread(|| {
        let (plain, dora) = (Arc::new(pirate()), Arc::new(twice("tiny-llama-lora-dora")));
        let set = AdapterSet::new().with(plain.clone(), 0.7).with(dora.clone(), -0.4);
        is_merged("tiny-llama", &set);
        // The same twice is the same once, with the sum of the weights.
        let set = AdapterSet::new().with(dora.clone(), 0.25).with(dora, 0.5).with(plain.clone(), 1.0).with(plain, 1.0);
        is_merged("tiny-llama", &set);
    });
}

#[test]
fn biases_of_pairs_and_trained_biases_are_added() {
    on_thread(|| {
        let c = description("arch-qwen2");
        let (hidden, keys) = (c.hidden_size, c.kv_heads * c.head_dim);
        let name = "model.layers.1.self_attn.k_proj";
        let with_bias = pair(name, (3, hidden, keys), 1).with_bias(numbers(keys, 5, 2.0));
        let trained = |layer: usize| {
            let name = format!("model.layers.{layer}.self_attn.v_proj.bias");
            ReplacementTensor::new(name, vec![keys], numbers(keys, 6, 1.0))
        };
        let one = LoraAdapter::new("one", "one", vec![with_bias]).with_replacements(vec![trained(0), trained(1)]);
        let two =
            LoraAdapter::new("two", "two", vec![pair(name, (2, hidden, keys), 9)]).with_replacements(vec![trained(1)]);
        is_merged("arch-qwen2", &AdapterSet::new().with(one.clone().into(), 1.0));
        is_merged("arch-qwen2", &AdapterSet::new().with(one.into(), 0.6).with(two.into(), 0.3));
    });
}

/// Of one module among three that are held as one, of norms, and with pairs on top: DoRA's norms are those of what
/// replaces.
#[test]
fn replaced_matrices_and_norms_are_blended() {
    on_thread(|| {
        for model in ["tiny-llama", "arch-gemma2"] {
            let c = description(model);
            let (hidden, keys) = (c.hidden_size, c.kv_heads * c.head_dim);
            let module = "model.layers.1.self_attn.k_proj";
            let weight = format!("{module}.weight");
            let matrix = |seed| ReplacementTensor::new(&weight, vec![keys, hidden], numbers(keys * hidden, seed, 0.2));
            let norm = ReplacementTensor::new("model.norm.weight", vec![hidden], numbers(hidden, 4, 1.0));
            let first =
                ReplacementTensor::new("model.layers.0.input_layernorm.weight", vec![hidden], numbers(hidden, 5, 1.0));
            let dora = pair(module, (3, hidden, keys), 1).with_magnitude(numbers(keys, 8, 1.5));
            let one = LoraAdapter::new("one", "one", vec![dora]).with_replacements(vec![matrix(2), norm, first]);
            let two = LoraAdapter::new("two", "two", Vec::new()).with_replacements(vec![matrix(3)]);
            is_merged(model, &AdapterSet::new().with(one.clone().into(), 1.0));
            is_merged(model, &AdapterSet::new().with(one.into(), 0.5).with(two.into(), 0.75));
        }
    });
}

/// The head is tied, and has the new rows too, as it has them where they are merged.
#[test]
fn replaced_rows_are_those_of_embedding_and_tied_head() {
    on_thread(|| {
        let c = description("tiny-llama");
        assert!(c.tied_embeddings);
        let rows = |adapter: &str, rows: Vec<usize>, seed: usize| {
            let values = numbers(rows.len() * c.hidden_size, seed, 0.4);
            let rows = ReplacedRows::new("model.embed_tokens.weight", rows, values);
            LoraAdapter::new(adapter, adapter, Vec::new()).with_rows(vec![rows])
        };
        let embedding = pair("model.embed_tokens", (3, c.hidden_size, c.vocab_size), 7);
        let embedding = LoraAdapter::new("pair", "pair", vec![embedding]);
        is_merged("tiny-llama", &AdapterSet::new().with(rows("one", vec![3, 10, 17, 800], 2).into(), 1.0));
        let set = AdapterSet::new()
            .with(rows("one", vec![3, 10, 17, 800], 2).into(), 0.5)
            .with(embedding.into(), 0.3)
            .with(rows("two", vec![10, 24], 3).into(), 0.8);
        is_merged("tiny-llama", &set);
    });
}

/// The tensor of an adapter that trained the two as one replaces both.
#[test]
fn a_replaced_embedding_that_was_trained_tied_is_the_head_too() {
    on_thread(|| {
        let c = description("tiny-llama");
        let shape = vec![c.vocab_size, c.hidden_size];
        let new =
            ReplacementTensor::new("model.embed_tokens.weight", shape, numbers(c.vocab_size * c.hidden_size, 2, 0.3));
        let untied = LoraAdapter::new("a", "a", Vec::new()).with_replacements(vec![new]);
        let tied = untied.clone().with_features([AdapterFeature::WeightTying]);
        is_merged("tiny-llama", &AdapterSet::new().with(tied.into(), 1.0));
        assert!(difference_of("tiny-llama", &AdapterSet::new().with(untied.into(), 1.0)) > 0.1);
    });
}

/// A pair of the head, one of the embedding, and either saved for both: what is tied has all of them, once each.
#[test]
fn pairs_of_a_tied_head_are_of_the_embedding_too() {
    on_thread(|| {
        let c = description("tiny-llama");
        let shape = (3, c.hidden_size, c.vocab_size);
        let of = |name: &str, module: &str, seed| LoraAdapter::new(name, name, vec![pair(module, shape, seed)]);
        let (head, embedding) = (of("head", "lm_head", 1), of("embedding", "model.embed_tokens", 1));
        let mut model = tiny(ComputeDtype::F32);
        let mut logits = |adapter: &LoraAdapter| {
            logits_with(&mut model, &[1, 5, 9, 200], &AdapterSet::new().with(adapter.clone().into(), 0.4))
        };
        let expected = logits(&embedding);
        assert_eq!(logits(&head), expected);
        let both = vec![pair("lm_head", shape, 1), pair("model.embed_tokens", shape, 1)];
        let saved_twice = LoraAdapter::new("both", "both", both).with_features([AdapterFeature::WeightTying]);
        assert_eq!(logits(&saved_twice), expected);
        is_merged("tiny-llama", &AdapterSet::new().with(embedding.into(), 0.4));
    });
}

/// Whatever else there is in the set: the pair of the embedding is the head's no more.
#[test]
fn a_replaced_head_leaves_the_pairs_of_the_embedding_to_that() {
    on_thread(|| {
        let c = description("tiny-llama");
        let shape = vec![c.vocab_size, c.hidden_size];
        let head = numbers(c.vocab_size * c.hidden_size, 2, 0.3);
        let replaced = ReplacementTensor::new("lm_head.weight", shape, head.clone());
        let replaced = LoraAdapter::new("head", "head", Vec::new()).with_replacements(vec![replaced]);
        let embedding = pair("model.embed_tokens", (3, c.hidden_size, c.vocab_size), 1);
        let set = AdapterSet::new()
            .with(LoraAdapter::new("pair", "pair", vec![embedding]).into(), 1.0)
            .with(replaced.into(), 1.0);
        let mut model = tiny(ComputeDtype::F32);
        let hidden = logits_with(&mut model, &[1, 5, 9, 200], &set);
        // The same model, untied as it is stored.
        let checkpoint = checkpoint("tiny-llama", None);
        let mut config = match &checkpoint.info.format {
            ModelFormat::Safetensors { config } => (**config).clone(),
            other => panic!("{other:?}"),
        };
        config["tie_word_embeddings"] = false.into();
        let tensors = Merged::new(&checkpoint, &set).with_head([c.vocab_size, c.hidden_size], head);
        let format = ModelFormat::Safetensors { config: Arc::new(config) };
        let info = ModelInfo::new("untied", format, tensors.entries().to_vec());
        let mut untied = load_with(&info, &tensors, &options(64, ComputeDtype::F32));
        let expected =
            untied.new_cache(4).and_then(|mut cache| untied.forward(&mut cache, &[1, 5, 9, 200], 0, None)).unwrap();
        assert!(difference(&hidden, &expected) < 5e-5);
    });
}
