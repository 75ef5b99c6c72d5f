//! Tied embeddings, and vocabularies that grow.

use std::sync::Arc;

use llm_local_core::{
    Error, FloatType, LoraAdapter, LoraModule, ModelFormat, TensorSource,
    lora::{AdapterFeature, ReplacedRows, ReplacementTensor},
    model::Layout,
};

use super::{
    MergedSource, bytes, decode,
    layouts::{Small, VOCABULARY, small},
    numbers,
};
use crate::lora::fit;

const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";
const WIDTH: usize = 16;

fn values(seed: u64, rows: usize) -> Vec<f32> {
    numbers(seed, rows * WIDTH).iter().map(|v| *v as f32).collect()
}

fn pair(module: &str, seed: u64, rows: usize) -> LoraModule {
    LoraModule::new(module, (1, WIDTH, rows), values(seed, 1), values(seed + 1, rows)[..rows].to_vec(), 0.5)
}

fn replacement(module: &str, seed: u64, rows: usize) -> ReplacementTensor {
    ReplacementTensor::new(format!("{module}.weight"), vec![rows, WIDTH], values(seed, rows))
}

fn adapter(modules: Vec<LoraModule>, replacements: Vec<ReplacementTensor>) -> LoraAdapter {
    LoraAdapter::new("some/adapter", "", modules).with_replacements(replacements)
}

fn merge(small: &Small, adapters: &[(&LoraAdapter, f32)]) -> Result<MergedSource, Error> {
    let adapters: Vec<_> = adapters.iter().map(|(adapter, weight)| (Arc::new((*adapter).clone()), *weight)).collect();
    let merged = MergedSource::new(small.tensors.clone(), adapters.clone(), &small.info)?;
    // What the source says is what it gives, and what is known before any weight is read.
    for entry in merged.entries() {
        assert_eq!(merged.entry(&entry.name), Some(entry));
        let elements = entry.elements().unwrap();
        assert_eq!(merged.read(&entry.name, None).unwrap().byte_len(), elements * 4, "{}", entry.name);
    }
    let info = fit(&adapters, &small.info)?.merged_info(&Arc::new(small.info.clone()));
    assert_eq!(info.tensors, merged.info().tensors);
    assert_eq!(*info.tensors, *merged.entries());
    assert_eq!(info.decoder.as_ref().unwrap(), merged.info().decoder.as_ref().unwrap());
    Ok(merged)
}

fn read(source: &MergedSource, name: &str) -> Vec<f32> {
    decode(&bytes(&source.read(name, None).unwrap()), FloatType::F32).map(|v| v as f32).collect()
}

fn close(found: &[f32], expected: &[f32]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-6)
}

/// The embedding's values, and the values with the deltas of `pairs`.
fn own(small: &Small) -> Vec<f32> {
    small.by_name["model.embed_tokens.weight"].2.iter().map(|v| *v as f32).collect()
}

fn with(mut values: Vec<f32>, pairs: &[(&LoraModule, f32)]) -> Vec<f32> {
    for (pair, weight) in pairs {
        let (a, b) = (super::naive::wide(&pair.a), super::naive::wide(&pair.b));
        for (row, values) in values.chunks_mut(WIDTH).enumerate().take(b.len()) {
            values.iter_mut().zip(&a).for_each(|(v, a)| *v += (0.5 * f64::from(*weight) * b[row] * a) as f32);
        }
    }
    values
}

fn names(layout: Layout) -> (&'static str, &'static str) {
    if layout == Layout::Gguf {
        ("token_embd.weight", "output.weight")
    } else {
        ("model.embed_tokens.weight", "lm_head.weight")
    }
}

#[test]
fn a_pair_of_a_tied_embedding_or_head_changes_the_one_tensor_as_by_peft() {
    for layout in [Layout::HuggingFace, Layout::Gguf] {
        let (embedding, head) = names(layout);
        let small = small("llama", layout, true, FloatType::F32);
        let (x, y) = (pair(EMBEDDING, 3, VOCABULARY), pair(HEAD, 5, VOCABULARY));
        for pairs in [vec![x.clone()], vec![y.clone()], vec![x.clone(), y.clone()]] {
            let merged = merge(&small, &[(&adapter(pairs.clone(), vec![]), 2.0)]).unwrap();
            let all: Vec<_> = pairs.iter().map(|pair| (pair, 2.0)).collect();
            assert!(close(&read(&merged, embedding), &with(own(&small), &all)));
            assert!(merged.entry(head).is_none() && !merged.report().unties_embeddings);
            assert!(merged.info().decoder.as_ref().unwrap().tied_embeddings);
        }
        // One pair that was trained as one, which PEFT saves for both.
        let mut twin = x.clone();
        twin.name = HEAD.into();
        let tied = |pairs| adapter(pairs, vec![]).with_features([AdapterFeature::WeightTying]);
        let merged = merge(&small, &[(&tied(vec![x.clone(), twin]), 1.0)]).unwrap();
        assert!(close(&read(&merged, embedding), &with(own(&small), &[(&x, 1.0)])));
        let error = merge(&small, &[(&tied(vec![x, y]), 1.0)]).err().unwrap().to_string();
        assert!(error.contains("`ensure_weight_tying`") && error.contains("differs"), "{error}");
    }
}

#[test]
fn replacing_embedding_or_head_unties_them() {
    for layout in [Layout::HuggingFace, Layout::Gguf] {
        let (embedding, head) = names(layout);
        let small = small("llama", layout, true, FloatType::F32);
        let (e, h) = (replacement(EMBEDDING, 3, VOCABULARY), replacement(HEAD, 4, VOCABULARY));
        for (replacements, expected) in [
            (vec![e.clone()], (values(3, VOCABULARY), own(&small))),
            (vec![h.clone()], (own(&small), values(4, VOCABULARY))),
            (vec![e.clone(), h.clone()], (values(3, VOCABULARY), values(4, VOCABULARY))),
        ] {
            let first = adapter(vec![], replacements);
            let merged = merge(&small, &[(&first, 1.0)]).unwrap();
            assert_eq!((read(&merged, embedding), read(&merged, head)), expected);
            assert!(merged.report().unties_embeddings);
            let info = merged.info();
            assert!(!info.decoder.as_ref().unwrap().tied_embeddings);
            if let ModelFormat::Safetensors { config } = &info.format {
                assert_eq!(config["tie_word_embeddings"], false);
            }
            // Pairs of another adapter then are of the one tensor alone.
            let (x, y) = (pair(EMBEDDING, 6, VOCABULARY), pair(HEAD, 7, VOCABULARY));
            let merged = merge(&small, &[(&first, 1.0), (&adapter(vec![x.clone(), y.clone()], vec![]), 1.0)]).unwrap();
            assert!(close(&read(&merged, embedding), &with(expected.0.clone(), &[(&x, 1.0)])));
            assert!(close(&read(&merged, head), &with(expected.1.clone(), &[(&y, 1.0)])));
        }
        // Half of it: the head starts from the embedding.
        let merged = merge(&small, &[(&adapter(vec![], vec![h]), 0.5)]).unwrap();
        let half: Vec<_> = own(&small).iter().zip(values(4, VOCABULARY)).map(|(x, y)| (x + y) / 2.0).collect();
        assert!(close(&read(&merged, head), &half) && read(&merged, embedding) == own(&small));
    }
}

#[test]
fn what_keeps_embedding_and_head_tied_changes_the_one_tensor() {
    let small = small("llama", Layout::HuggingFace, true, FloatType::F32);
    let (e, h) = (replacement(EMBEDDING, 3, VOCABULARY), replacement(HEAD, 3, VOCABULARY));
    let tied = |replacements| adapter(vec![], replacements).with_features([AdapterFeature::WeightTying]);
    for replacements in [vec![e.clone()], vec![h.clone()], vec![e.clone(), h]] {
        let merged = merge(&small, &[(&tied(replacements), 1.0)]).unwrap();
        assert_eq!(read(&merged, "model.embed_tokens.weight"), values(3, VOCABULARY));
        assert!(merged.entry("lm_head.weight").is_none());
    }
    let error = merge(&small, &[(&tied(vec![e.clone(), replacement(HEAD, 4, VOCABULARY)]), 1.0)]).err().unwrap();
    assert!(error.to_string().contains("`ensure_weight_tying`"), "{error}");
    // A pair's own base, which PEFT saves below it.
    let x = pair(EMBEDDING, 6, VOCABULARY);
    let merged = merge(&small, &[(&adapter(vec![x.clone()], vec![e]), 1.0)]).unwrap();
    assert!(close(&read(&merged, "model.embed_tokens.weight"), &with(values(3, VOCABULARY), &[(&x, 1.0)])));
    assert!(merged.entry("lm_head.weight").is_none());
    let rows = ReplacedRows::new("model.embed_tokens.weight", vec![2], values(8, 1));
    let merged = merge(&small, &[(&adapter(vec![], vec![]).with_rows(vec![rows]), 1.0)]).unwrap();
    assert_eq!(read(&merged, "model.embed_tokens.weight")[2 * WIDTH..3 * WIDTH], values(8, 1));
    assert!(merged.entry("lm_head.weight").is_none());
}

#[test]
fn new_rows_grow_the_vocabulary() {
    let grown = VOCABULARY + 3;
    for layout in [Layout::HuggingFace, Layout::Gguf] {
        let (embedding, head) = names(layout);
        let (e, h) = (replacement(EMBEDDING, 3, grown), replacement(HEAD, 4, grown));
        let tied = small("llama", layout, true, FloatType::F32);
        let untied = small("llama", layout, false, FloatType::F32);
        let is_grown = |merged: &MergedSource, is_tied: bool| {
            let decoder = merged.info().decoder.as_ref().unwrap();
            assert_eq!((decoder.vocab_size, decoder.tied_embeddings), (grown, is_tied));
            assert_eq!(merged.entry(embedding).unwrap().shape, [grown, WIDTH]);
            assert_eq!(merged.report().vocab_size, Some(grown));
            if let ModelFormat::Safetensors { config } = &merged.info().format {
                assert_eq!(config["vocab_size"], grown);
            }
        };
        let both = adapter(vec![pair(EMBEDDING, 5, VOCABULARY)], vec![h.clone()]);
        for small in [&tied, &untied] {
            let merged = merge(small, &[(&adapter(vec![], vec![e.clone(), h.clone()]), 1.0)]).unwrap();
            is_grown(&merged, false);
            assert_eq!((read(&merged, embedding), read(&merged, head)), (values(3, grown), values(4, grown)));
        }
        // Only one of a tied base: the other is it.
        let merged = merge(&tied, &[(&adapter(vec![], vec![h.clone()]), 1.0)]).unwrap();
        is_grown(&merged, true);
        assert_eq!(read(&merged, embedding), values(4, grown));
        // A pair of the base's own vocabulary leaves the new rows as they are.
        let merged = merge(&tied, &[(&both, 1.0)]).unwrap();
        let pairs = [(&both.modules[0], 1.0)];
        assert!(close(&read(&merged, embedding), &with(values(4, grown), &pairs)));
        let pairs = adapter(vec![pair(EMBEDDING, 5, grown)], vec![h.clone()]);
        let merged = merge(&tied, &[(&pairs, 1.0)]).unwrap();
        assert!(close(&read(&merged, embedding), &with(values(4, grown), &[(&pairs.modules[0], 1.0)])));

        let refused = |small: &Small, adapters: &[(&LoraAdapter, f32)], word: &str| {
            let error = merge(small, adapters).err().unwrap();
            assert_eq!(error.code(), "adapter_merge_failed");
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        };
        let one = adapter(vec![], vec![e.clone()]);
        refused(&untied, &[(&one, 1.0)], "only one of embedding and head");
        refused(&tied, &[(&one, 0.5)], "its weight is 0.5");
        refused(&tied, &[(&one, 1.0), (&one, 1.0)], "only one of them can");
        let fewer = adapter(vec![], vec![replacement(EMBEDDING, 3, VOCABULARY - 1)]);
        refused(&tied, &[(&fewer, 1.0)], "cannot be taken away");
        let other = adapter(vec![], vec![e.clone(), replacement(HEAD, 3, grown + 1)]);
        refused(&tied, &[(&other, 1.0)], "must have as many");
        let other = adapter(vec![], vec![e.clone(), replacement(HEAD, 3, VOCABULARY)]);
        refused(&tied, &[(&other, 1.0)], "must have as many");
    }
}
