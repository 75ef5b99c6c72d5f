//! Trained rows of embeddings, `trainable_token_indices`.
//!
//! Source: PEFT `src/peft/tuners/trainable_tokens/layer.py` and `set_additional_trainable_modules` in
//! `src/peft/utils/other.py`. What is called a delta there are the rows themselves: they replace those of the base.

use std::collections::BTreeMap;

use llm_local_core::TensorEntry;

use super::config::{PeftConfig, TrainedTokens};
use crate::lora::message::{shape_text, some_of};

const FIELD: &str = "trainable_token_indices";

/// Rows of one base tensor.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    pub(super) entry: &'a TensorEntry,
    /// The module whose weight they are of.
    pub(super) module: &'a str,
    /// The rows of the base, ascending, and which row of the tensor goes there.
    pub(super) order: Vec<(usize, usize)>,
}

/// The rows of `trained`, by module, under the name of the base tensor. The error names the tensor or field.
pub(super) fn collect<'a>(
    trained: BTreeMap<&'a str, &'a TensorEntry>,
    config: &PeftConfig,
) -> Result<BTreeMap<String, Rows<'a>>, String> {
    let tokens = config.trained_tokens.as_ref();
    let mut collected = BTreeMap::new();
    for (module, entry) in &trained {
        let indices = tokens.and_then(|tokens| of_module(tokens, module)).ok_or_else(|| {
            format!("`{}` holds trained rows of `{module}`, for which `{FIELD}` names no tokens", entry.name)
        })?;
        let order = sorted(entry, indices)?;
        collected.insert(format!("{module}.weight"), Rows { entry, module, order });
    }
    let has = |end: &str| trained.keys().any(|module| module.ends_with(end));
    match tokens {
        Some(TrainedTokens::OfInput(_)) if trained.is_empty() => Err(absent("its tokens")),
        Some(TrainedTokens::ByModule(lists)) => {
            // What is tied to another, with the same tokens, is saved with that.
            let saved_elsewhere = |list: &Vec<usize>| lists.iter().any(|(end, other)| other == list && has(end));
            let lacking = lists.iter().filter(|(end, list)| !has(end) && !saved_elsewhere(list));
            let lacking: Vec<_> = lacking.map(|(end, _)| end).collect();
            if lacking.is_empty() { Ok(collected) } else { Err(absent(&some_of(&lacking))) }
        }
        _ => Ok(collected),
    }
}

fn absent(of: &str) -> String {
    format!("`{FIELD}` asks for trained rows of {of}, and there is no `token_adapter.trainable_tokens_delta` for them")
}

/// The tokens of `module`. PEFT compares ends of paths without regard to segments.
fn of_module<'t>(tokens: &'t TrainedTokens, module: &str) -> Option<&'t Vec<usize>> {
    match tokens {
        TrainedTokens::OfInput(list) => Some(list),
        TrainedTokens::ByModule(lists) => lists.iter().find(|(end, _)| module.ends_with(*end)).map(|(_, list)| list),
    }
}

/// `indices` ascending, each with its place, if the tensor has a row for each of them.
fn sorted(entry: &TensorEntry, indices: &[usize]) -> Result<Vec<(usize, usize)>, String> {
    if entry.shape.len() != 2 || entry.shape[0] != indices.len() {
        return Err(format!(
            "`{}` has the shape {}; expected ({}, columns), a row for each token of `{FIELD}`",
            entry.name,
            shape_text(&entry.shape),
            indices.len()
        ));
    }
    let mut order: Vec<_> = indices.iter().copied().zip(0..).collect();
    order.sort_unstable();
    match order.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => {
            Err(format!("`{FIELD}` names the token {} twice: which of its rows counts is not clear", pair[0].0))
        }
        None => Ok(order),
    }
}
