//! Tensors of a PEFT file, paired by module and checked from the header alone.

use std::collections::BTreeMap;

use llm_local_core::{Encoding, TensorEntry};

use crate::lora::message::shape_text;

use super::{
    FACTOR_TYPES,
    keys::{self, Factor},
};

/// Both factors of a module, of shapes (r, in) and (out, r).
#[derive(Debug)]
pub(super) struct Pair<'a> {
    pub(super) module: &'a str,
    pub(super) a: &'a TensorEntry,
    pub(super) b: &'a TensorEntry,
}

/// Pairs up `entries`, which must be whole pairs of rank `rank` of one adapter and nothing else. The error names the
/// tensor, what was expected and what was found.
pub(super) fn collect(entries: &[TensorEntry], rank: usize) -> Result<Vec<Pair<'_>>, String> {
    let mut halves: BTreeMap<&str, [Option<&TensorEntry>; 2]> = BTreeMap::new();
    let mut first: Option<(Option<&str>, &str)> = None;
    for entry in entries {
        let key = keys::parse(&entry.name).map_err(|reason| format!("the tensor `{}`: {reason}", entry.name))?;
        check_entry(entry)?;
        let slot = &mut halves.entry(key.module).or_default()[key.factor as usize];
        if let Some(other) = slot {
            return Err(format!("`{}` and `{}` are the same factor of one module", other.name, entry.name));
        }
        *slot = Some(entry);
        match first {
            None => first = Some((key.adapter, &entry.name)),
            Some((adapter, _)) if adapter == key.adapter => {}
            Some((_, other)) => {
                return Err(format!(
                    "`{other}` and `{}` belong to different adapters; expected one adapter in one file",
                    entry.name
                ));
            }
        }
    }
    if halves.is_empty() {
        return Err("it holds no tensors; expected `lora_A.weight` and `lora_B.weight` of at least one module".into());
    }
    halves.into_iter().map(|(module, halves)| pair(module, halves, rank)).collect()
}

/// Whether a factor is a float matrix with elements.
fn check_entry(entry: &TensorEntry) -> Result<(), String> {
    let TensorEntry { name, shape, encoding, .. } = entry;
    match encoding {
        Encoding::Float(t) if FACTOR_TYPES.contains(t) => {}
        other => return Err(format!("`{name}` is stored as {other}; expected floats (f32, f16 or bf16)")),
    }
    match shape.as_slice() {
        [rows, columns] if *rows > 0 && *columns > 0 => Ok(()),
        [_, _] => Err(format!("`{name}` has the shape {}, which is empty", shape_text(shape))),
        [_, _, _, _] => Err(format!(
            "`{name}` has the shape {}: LoRA on a convolution is not supported yet; expected 2 dimensions",
            shape_text(shape)
        )),
        _ => Err(format!("`{name}` has the shape {}; expected 2 dimensions", shape_text(shape))),
    }
}

/// Puts together what there is of a module, if it is whole and of rank `rank`.
fn pair<'a>(module: &'a str, halves: [Option<&'a TensorEntry>; 2], rank: usize) -> Result<Pair<'a>, String> {
    let (a, b) = match halves {
        [Some(a), Some(b)] => (a, b),
        [Some(one), None] | [None, Some(one)] => {
            let (has, lacks) = if halves[0].is_some() { ("lora_A", "lora_B") } else { ("lora_B", "lora_A") };
            let missing = one.name.replace(&format!(".{has}."), &format!(".{lacks}."));
            return Err(format!("`{missing}` is missing: the module `{module}` has only {has}"));
        }
        [None, None] => unreachable!("a module is entered with its first factor"),
    };
    for (factor, entry, found, wanted) in
        [(Factor::A, a, a.shape[0], format!("({rank}, in)")), (Factor::B, b, b.shape[1], format!("(out, {rank})"))]
    {
        if found != rank {
            let other = if factor == Factor::A { b } else { a };
            return Err(format!(
                "`{}` has the shape {}, so rank {found}; expected {wanted}, rank {rank}, as the config's `r` says \
                 (`{}` has the shape {})",
                entry.name,
                shape_text(&entry.shape),
                other.name,
                shape_text(&other.shape)
            ));
        }
    }
    Ok(Pair { module, a, b })
}
