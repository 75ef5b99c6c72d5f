//! The order in which random numbers are drawn.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use llm_local_core::{
    Error, LoraAdapter, LoraModule, Result,
    model::{Architecture, DecoderConfig, Layout, ModuleRole},
};

use super::{
    check::Pairs,
    pair::is_embedding,
    parts::{Parts, Prune},
    random::TorchRandom,
};
use crate::lora::outline::AdapterOutline;

/// The modules with weights of a decoder, in the order in which transformers' `model.named_modules` gives them: the
/// embedding, layer by layer the attention and the feed-forward block, the head, which is a module of its own also where it
/// is tied to the embedding. Phi-3's attention has its output projection first.
pub fn module_order(config: &DecoderConfig) -> Vec<String> {
    let mut untied = config.clone();
    untied.tied_embeddings = false;
    let mut tensors = untied.base_tensors(Layout::HuggingFace);
    tensors.retain(|tensor| !tensor.bias && tensor.shape.len() == 2);
    if config.architecture == Architecture::Phi3 {
        for at in 1..tensors.len() {
            if tensors[at].role == ModuleRole::AttentionOutput && tensors[at - 1].role == ModuleRole::QueryKeyValue {
                tensors.swap(at - 1, at);
            }
        }
    }
    tensors.iter().filter_map(|tensor| tensor.name.strip_suffix(".weight").map(str::to_owned)).collect()
}

/// A module to be combined, and the generator as it is when its turn comes.
pub(super) type Visit<'a> = (Pairs<'a>, Option<TorchRandom>);

/// The modules in the order of `order`, each with the generator's state, where `parts` says that values are random; else
/// by name.
///
/// PEFT makes the new adapter before it combines: that initializes its pairs, of one rank for all modules, and takes random
/// numbers for them (`torch.nn.Linear` for A and B, then `kaiming_uniform_` for A; for an embedding `torch.randn` for both
/// and `normal_` for B).
///
/// # Errors
/// [`Error::AdapterMergeFailed`] if `order` lacks a module.
pub(super) fn visits<'a>(
    mut by_module: BTreeMap<&'a str, Pairs<'a>>,
    parts: Parts,
    adapters: &[(Arc<LoraAdapter>, f32)],
    order: &[impl AsRef<str>],
) -> Result<Vec<Visit<'a>>> {
    let Some(seed) = parts.seed else {
        return Ok(by_module.into_values().map(|pairs| (pairs, None)).collect());
    };
    let ordered: Vec<_> = order.iter().filter_map(|name| by_module.remove(name.as_ref())).collect();
    if let Some(name) = by_module.keys().next() {
        let owner = adapters.iter().find(|(adapter, _)| adapter.module(name).is_some());
        return Err(lacks(owner.map_or("", |(adapter, _)| adapter.reference.as_str()), name));
    }
    let rank = parts.truncation.and_then(|truncation| truncation.rank).unwrap_or_else(|| largest_rank(adapters));
    let mut random = TorchRandom::new(seed);
    ordered.iter().for_each(|pairs| skip_initialization(&mut random, pairs[0].0, rank));
    let visit = |pairs: Pairs<'a>| {
        let state = random.clone();
        random.skip_uniform(draws(&pairs, parts));
        (pairs, Some(state))
    };
    Ok(ordered.into_iter().map(visit).collect())
}

/// Checks that `order` has every module of `adapters`, as what is drawn at random needs it.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] that names the adapter and the module.
pub(crate) fn check_order(adapters: &[(AdapterOutline, f32)], order: &[String]) -> Result<()> {
    let known: BTreeSet<_> = order.iter().map(String::as_str).collect();
    for (adapter, _) in adapters {
        if let Some(module) = adapter.modules.iter().find(|module| !known.contains(module.name.as_str())) {
            return Err(lacks(&adapter.reference, &module.name));
        }
    }
    Ok(())
}

fn lacks(reference: &str, module: &str) -> Error {
    let reason = format!(
        "the order of the base's modules, by which random values are drawn, lacks `{module}`; give the order of the base \
         that the adapter is for, or choose a combination without a seed"
    );
    Error::adapter(reference, reason)
}

/// The largest rank of any module.
pub(super) fn largest_rank(adapters: &[(Arc<LoraAdapter>, f32)]) -> usize {
    adapters.iter().flat_map(|(adapter, _)| &adapter.modules).map(|module| module.rank).max().unwrap_or(0)
}

fn skip_initialization(random: &mut TorchRandom, module: &LoraModule, rank: usize) {
    let LoraModule { name, in_features, out_features, .. } = module;
    if is_embedding(name) {
        let (vocabulary, dimension) = (out_features, in_features);
        [vocabulary, dimension, dimension].into_iter().for_each(|side| random.skip_normal(rank * side));
    } else {
        random.skip_uniform(rank * (in_features + out_features + in_features));
    }
}

/// How many values are drawn for a module.
fn draws(pairs: &Pairs<'_>, parts: Parts) -> usize {
    if !parts.arithmetic.is_some_and(|a| matches!(a.prune, Prune::Random(density) if density < 1.0)) {
        return 0;
    }
    let values = |module: &LoraModule| match parts.truncation {
        Some(_) => module.in_features * module.out_features,
        None => module.a.len() + module.b.len(),
    };
    pairs.iter().map(|(module, _)| values(module)).sum()
}
