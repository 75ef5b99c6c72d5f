//! Tensors of an MLX file, put together by module and checked from the header alone.

use std::collections::{BTreeMap, BTreeSet};

use llm_local_core::{TensorEntry, model::Layout};

use super::{
    config::{MlxConfig, Tuning},
    keys::{Part, Spelling, canonical},
};
use crate::lora::{
    message::{shape_text, some_of},
    read::plan::{Factor, Pair, Plan, floats_of},
    targets::BaseModules,
};

/// What `entries` are by `config`: whole pairs and nothing else, or the base's own tensors. The error names the tensor,
/// what was expected and what was found.
pub(super) fn of<'e>(entries: &'e [TensorEntry], config: &MlxConfig) -> Result<Plan<'e>, String> {
    if entries.is_empty() {
        return Err("it holds no tensors; expected those of at least one module".into());
    }
    entries.iter().try_for_each(floats_of)?;
    let mut plan = Plan {
        pairs: Vec::new(),
        replacements: Vec::new(),
        row_order: Layout::HuggingFace,
        targets: None,
        notes: config.notes.clone(),
        unknown_fields: config.unknown_fields.clone(),
    };
    if config.tuning == Tuning::Full {
        plan.replacements = full(entries)?;
        return Ok(plan);
    }
    plan.pairs = pairs(entries, config)?;
    plan.targets = config.targets(plan.pairs.iter().map(|pair| pair.module.as_str()));
    plan.notes.extend(other_ranks(&plan.pairs, config));
    Ok(plan)
}

/// The base tensors that a file of full weights has.
fn full(entries: &[TensorEntry]) -> Result<Vec<(String, &TensorEntry)>, String> {
    let mut tensors = BTreeMap::new();
    for entry in entries {
        if Spelling::MlxLm.parse(&entry.name).is_ok() {
            return Err(format!("the tensor `{}` is of a pair, but `fine_tune_type` is \"full\"", entry.name));
        }
        if let Some(of) = entry.name.strip_suffix(".scales").or(entry.name.strip_suffix(".biases")) {
            return Err(format!("`{}` says that `{of}.weight` is quantized; expected full weights", entry.name));
        }
        let name = canonical(&entry.name).to_owned();
        if let Some(other) = tensors.insert(name, entry) {
            return Err(format!("`{}` and `{}` are the same tensor of the base", other.name, entry.name));
        }
    }
    Ok(tensors.into_iter().collect())
}

fn pairs<'e>(entries: &'e [TensorEntry], config: &MlxConfig) -> Result<Vec<Pair<'e>>, String> {
    let mut modules: BTreeMap<&str, [Option<&TensorEntry>; 3]> = BTreeMap::new();
    for entry in entries {
        let parsed = config.spelling.parse(&entry.name);
        let (module, part) = parsed.map_err(|reason| format!("the tensor `{}`: {reason}", entry.name))?;
        let slot = &mut modules.entry(canonical(module)).or_default()[part as usize];
        if let Some(other) = slot.replace(entry) {
            return Err(format!("`{}` and `{}` are the same part of one module", other.name, entry.name));
        }
    }
    modules.into_iter().map(|(module, parts)| pair(module, parts, config)).collect()
}

/// Puts together what there is of a module, if it is whole.
fn pair<'e>(module: &str, parts: [Option<&'e TensorEntry>; 3], config: &MlxConfig) -> Result<Pair<'e>, String> {
    let spelled = |part| format!("{module}.{}", config.spelling.of(part));
    let missing = |part, has: Part| {
        format!("`{}` is missing: the module `{module}` has only `{}`", spelled(part), config.spelling.of(has))
    };
    let (a, b, magnitude) = match parts {
        [Some(a), Some(b), magnitude] => (a, b, magnitude),
        [Some(_), None, _] => return Err(missing(Part::B, Part::A)),
        [None, Some(_), _] => return Err(missing(Part::A, Part::B)),
        [None, None, _] => {
            return Err(format!(
                "`{}` and `{}` are missing: the module has only `m`",
                spelled(Part::A),
                spelled(Part::B)
            ));
        }
    };
    match (config.tuning, magnitude) {
        (Tuning::Dora, None) => {
            return Err(format!("`{}` is missing: `fine_tune_type` is \"dora\"", spelled(Part::Magnitude)));
        }
        (Tuning::Lora, Some(entry)) => {
            return Err(format!("`{}` is a magnitude of DoRA, but `fine_tune_type` is not \"dora\"", entry.name));
        }
        _ => {}
    }
    let is_embedding = BaseModules::is_embedding(module);
    let (experts, shape) = shape(a, b, is_embedding)?;
    if let Some(entry) = magnitude {
        if experts.is_some() {
            return Err(format!("`{}` is a magnitude of DoRA on experts, which mlx-lm does not have", entry.name));
        }
        if entry.shape != [shape.2] {
            return Err(format!(
                "`{}` has the shape {}; expected ({},), the output features of `{}`",
                entry.name,
                shape_text(&entry.shape),
                shape.2,
                if is_embedding { &a.name } else { &b.name }
            ));
        }
    }
    let stored = |entry, transposed| Factor { entry, transposed };
    // The delta of an embedding is lora_a @ lora_b of shape (vocab, dim): B and A as they stand there. Experts' factors are
    // stored as here; those of linear modules are transposed.
    let (a, b) = match (is_embedding, experts) {
        (true, _) => (stored(b, false), stored(a, false)),
        (false, Some(_)) => (stored(a, false), stored(b, false)),
        (false, None) => (stored(a, true), stored(b, true)),
    };
    Ok(Pair { module: module.to_owned(), shape, experts, a, b, magnitude, scale: config.scale, is_embedding })
}

/// Number of experts; rank, input and output features.
type Shape = (Option<usize>, (usize, usize, usize));

/// What the shapes of `lora_a` and `lora_b` say.
fn shape(a: &TensorEntry, b: &TensorEntry, is_embedding: bool) -> Result<Shape, String> {
    let (experts, rank, other_rank, inputs, outputs) = match (&a.shape[..], &b.shape[..]) {
        ([vocab, rank], [other, dim]) if is_embedding => (None, *rank, *other, *dim, *vocab),
        ([inputs, rank], [other, outputs]) => (None, *rank, *other, *inputs, *outputs),
        ([experts, rank, inputs], [others, outputs, other]) if experts == others && !is_embedding => {
            (Some(*experts), *rank, *other, *inputs, *outputs)
        }
        (a_shape, b_shape) => {
            return Err(format!(
                "`{}` has the shape {} and `{}` {}; expected (in, r) and (r, out), or (experts, r, in) and (experts, out, \
                 r)",
                a.name,
                shape_text(a_shape),
                b.name,
                shape_text(b_shape)
            ));
        }
    };
    if rank != other_rank {
        return Err(format!(
            "`{}` has the shape {}, so rank {rank}, and `{}` has {}, so rank {other_rank}; expected one rank",
            a.name,
            shape_text(&a.shape),
            b.name,
            shape_text(&b.shape)
        ));
    }
    Ok((experts, (rank, inputs, outputs)))
}

/// What there is to report where tensors have other ranks than the config says: the tensors are what was trained, and no
/// scale is made of the rank.
fn other_ranks(pairs: &[Pair<'_>], config: &MlxConfig) -> Option<String> {
    let said = config.rank?;
    let others: Vec<_> = pairs.iter().filter(|pair| pair.shape.0 != said).collect();
    let ranks: BTreeSet<_> = others.iter().map(|pair| pair.shape.0.to_string()).collect();
    let ranks: Vec<_> = ranks.into_iter().collect();
    let names: Vec<_> = others.iter().map(|pair| pair.module.as_str()).collect();
    (!others.is_empty()).then(|| {
        format!("the config's `rank` is {said}, but the tensors of {} have rank {}", some_of(&names), ranks.join(", "))
    })
}
