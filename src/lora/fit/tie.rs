//! Tied embeddings, and vocabularies that grow.
//!
//! What PEFT 0.21 does, and what is done here when a base ties its output head to its embedding:
//!
//! | adapter has | merged |
//! |---|---|
//! | a pair of the embedding or of the head | both change, being one tensor, as by `merge_and_unload`; PEFT's unmerged model changes the one alone |
//! | such pairs with `ensure_weight_tying` | both change, once: the unmerged model. (PEFT saves the pair twice, and its merge adds it twice) |
//! | a replacement of one or both (`modules_to_save`) | they are untied |
//! | that with `ensure_weight_tying` | both change |
//! | a replacement below a pair (`base_layer`), or rows (`trainable_token_indices`) | both change |

use std::collections::BTreeMap;

use llm_local_core::{
    ModelFormat, ModelInfo,
    lora::AdapterFeature,
    model::{DecoderConfig, Layout, ModuleRole},
};
use serde_json::Value;

use super::{
    change::{Change, Term, TermKind},
    view::layout,
};
use crate::lora::outline::AdapterOutline;

/// A base whose output head is its embedding.
#[derive(Debug, Clone)]
pub(super) struct Tied {
    /// The embedding's name in the base.
    pub(super) embedding: String,
    /// The name that the head has where it is not tied.
    pub(super) head: String,
    /// Whether the base stores the head a second time.
    is_stored_twice: bool,
}

impl Tied {
    pub(super) fn of(info: &ModelInfo) -> Option<Self> {
        let (embedding, head) = match (&info.decoder, &info.format) {
            (Ok(decoder), _) if decoder.tied_embeddings => vocabulary_tensors(decoder, layout(info))?,
            (Err(_), ModelFormat::Safetensors { config })
                if config.get("tie_word_embeddings").and_then(Value::as_bool) == Some(true) =>
            {
                ("model.embed_tokens.weight".into(), "lm_head.weight".into())
            }
            _ => return None,
        };
        info.tensor(&embedding)?;
        let is_stored_twice = info.tensor(&head).is_some();
        Some(Self { embedding, head, is_stored_twice })
    }

    /// Makes the head's changes the embedding's, or both separate where an adapter unties them; tells which.
    pub(super) fn resolve(
        &self,
        changes: &mut BTreeMap<String, Change>,
        adapters: &[(AdapterOutline, f32)],
        grows: bool,
    ) -> bool {
        let (embedding, head) = (changes.remove(&self.embedding), changes.remove(&self.head));
        let Some(blank) = embedding.as_ref().or(head.as_ref()).cloned() else { return false };
        let own = |change: Option<Change>| change.map(|change| change.terms).unwrap_or_default();
        let (mut embedding, mut head) = (own(embedding), own(head));
        let is_untied = untie(&embedding, adapters) || untie(&head, adapters);
        // Only one of them has the new rows, so the other can only be the same.
        let replaced = |terms: &[Term]| terms.iter().any(|term| matches!(term.kind, TermKind::Replacement { .. }));
        let is_untied = is_untied && !(grows && replaced(&embedding) != replaced(&head));
        if !is_untied {
            let has =
                |terms: &[Term], of: &Term| terms.iter().any(|t| t.adapter == of.adapter && is_alike(t.kind, of.kind));
            head.retain(|term| !(keeps_tied(&adapters[term.adapter].0) && has(&embedding, term)));
            embedding.append(&mut head);
            embedding.sort_by_key(|term| term.adapter);
        }
        let mut put = |name: &String, from: &String, terms: Vec<Term>| {
            let change = Change { name: name.clone(), from: from.clone(), terms, ..blank.clone() };
            changes.insert(name.clone(), change);
        };
        if is_untied {
            put(&self.head, &self.embedding, head);
            if !embedding.is_empty() {
                put(&self.embedding, &self.embedding, embedding);
            }
        } else {
            if self.is_stored_twice {
                put(&self.head, &self.embedding, embedding.clone());
            }
            put(&self.embedding, &self.embedding, embedding);
        }
        is_untied
    }
}

/// The names that the embedding and the head have, tied or not.
pub(super) fn vocabulary_tensors(decoder: &DecoderConfig, layout: Layout) -> Option<(String, String)> {
    let mut untied = decoder.clone();
    untied.tied_embeddings = false;
    let name = |role| untied.module(role, 0, layout).map(|module| format!("{module}.weight"));
    Some((name(ModuleRole::Embedding)?, name(ModuleRole::Head)?))
}

/// Whether the adapter keeps tied what was tied.
pub(super) fn keeps_tied(adapter: &AdapterOutline) -> bool {
    adapter.features.contains(&AdapterFeature::WeightTying)
}

fn is_alike(x: TermKind, y: TermKind) -> bool {
    std::mem::discriminant(&x) == std::mem::discriminant(&y)
}

/// Whether one of `terms`, all those of a tensor, makes it a tensor of its own.
fn untie(terms: &[Term], adapters: &[(AdapterOutline, f32)]) -> bool {
    terms.iter().any(|term| {
        let has_pair = || terms.iter().any(|t| t.adapter == term.adapter && matches!(t.kind, TermKind::Pair { .. }));
        matches!(term.kind, TermKind::Replacement { .. }) && !keeps_tied(&adapters[term.adapter].0) && !has_pair()
    })
}
