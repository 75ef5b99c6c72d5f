//! Tensors of a GGUF adapter, paired and checked from the header alone.

use std::collections::BTreeMap;

use llm_local_core::{
    TensorEntry,
    model::{Layout, rename},
};

use super::metadata::GgufConfig;
use crate::lora::{
    message::shape_text,
    read::plan::{Factor, Pair, Plan, floats_of},
};

/// The embedding, whose A is stored transposed.
const EMBEDDING: &str = "token_embd.weight";

/// What `entries` are: whole pairs and nothing else. The error names the tensor, what was expected and what was found.
pub(super) fn of<'e>(entries: &'e [TensorEntry], config: &GgufConfig) -> Result<Plan<'e>, String> {
    let mut halves: BTreeMap<&str, [Option<&TensorEntry>; 2]> = BTreeMap::new();
    for entry in entries {
        let (tensor, half) = factor_of(&entry.name)?;
        floats_of(entry)?;
        // No name stands in a header twice.
        halves.entry(tensor).or_default()[half] = Some(entry);
    }
    if halves.is_empty() {
        return Err("it holds no tensors; expected `lora_a` and `lora_b` of at least one tensor of the base".into());
    }
    let pairs = halves.into_iter().map(|(tensor, halves)| pair(tensor, halves, config));
    let mut pairs = pairs.collect::<Result<Vec<_>, String>>()?;
    pairs.sort_by(|x, y| x.module.cmp(&y.module));
    Ok(Plan {
        pairs,
        replacements: Vec::new(),
        row_order: Layout::Gguf,
        targets: None,
        notes: config.notes.clone(),
        unknown_fields: config.unknown_fields.clone(),
    })
}

/// The base tensor that the tensor `name` belongs to, and whether it is its A (0) or B (1).
fn factor_of(name: &str) -> Result<(&str, usize), String> {
    if let Some(tensor) = name.strip_suffix(".lora_a") {
        return Ok((tensor, 0));
    }
    if let Some(tensor) = name.strip_suffix(".lora_b") {
        return Ok((tensor, 1));
    }
    Err(if name.ends_with("_norm.weight") {
        format!(
            "the tensor `{name}` is a trained norm, which llama.cpp leaves out without a word, so that the model is none \
             that was trained; convert the adapter without it, or use the adapter it was converted from"
        )
    } else {
        format!("the tensor `{name}` ends neither in `.lora_a` nor in `.lora_b`, and what it is is not known")
    })
}

/// Puts together what there is for a tensor of the base, if it is whole.
fn pair<'e>(tensor: &str, halves: [Option<&'e TensorEntry>; 2], config: &GgufConfig) -> Result<Pair<'e>, String> {
    let (a, b) = match halves {
        [Some(a), Some(b)] => (a, b),
        [Some(_), None] => return Err(format!("`{tensor}.lora_b` is missing: `{tensor}` has only lora_a")),
        _ => return Err(format!("`{tensor}.lora_a` is missing: `{tensor}` has only lora_b")),
    };
    let module = rename(config.architecture, tensor, Layout::Gguf, Layout::HuggingFace)
        .and_then(|name| name.strip_suffix(".weight").map(str::to_owned))
        .ok_or_else(|| {
            format!(
                "`{}` belongs to `{tensor}`, which is no weight of the architecture {:?} (`general.architecture`)",
                a.name, config.architecture_name
            )
        })?;
    let is_embedding = tensor == EMBEDDING;
    // Of an embedding A is (vocab, r) and B (dim, r): llama.cpp looks rows of A up and multiplies them by B.
    let expected = if is_embedding { "(vocab, r) and (dim, r)" } else { "(r, in) and (out, r)" };
    let (rank, other_rank, in_features, out_features) = match (&a.shape[..], &b.shape[..]) {
        ([vocab, rank], [dim, other]) if is_embedding => (*rank, *other, *dim, *vocab),
        ([rank, inputs], [outputs, other]) => (*rank, *other, *inputs, *outputs),
        // ggml leaves the outermost dimension out where it is 1.
        ([inputs], [outputs, 1]) if !is_embedding => (1, 1, *inputs, *outputs),
        (a_shape, b_shape) => {
            return Err(format!(
                "`{}` has the shape {} and `{}` {}; expected {expected}",
                a.name,
                shape_text(a_shape),
                b.name,
                shape_text(b_shape)
            ));
        }
    };
    if rank != other_rank {
        return Err(format!(
            "`{}` has the shape {}, so rank {rank}, and `{}` has {}, so rank {other_rank}; expected {expected} with one \
             rank",
            a.name,
            shape_text(&a.shape),
            b.name,
            shape_text(&b.shape)
        ));
    }
    let (a, b) = if is_embedding {
        (Factor { entry: b, transposed: true }, Factor { entry: a, transposed: false })
    } else {
        (Factor { entry: a, transposed: false }, Factor { entry: b, transposed: false })
    };
    let shape = (rank, in_features, out_features);
    Ok(Pair { module, shape, experts: None, a, b, magnitude: None, scale: config.scale(rank), is_embedding })
}
