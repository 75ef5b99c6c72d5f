//! Weights that MLX quantized: what stands packed in a file as three tensors, in the form of the contract.
//!
//! mlx-lm writes `<module>.weight` of u32, whose rows are the packed bits, and `<module>.scales` and `<module>.biases` with
//! one float for each group of a row. Here the weight has its logical shape and names the others as its parts.

use std::collections::HashMap;

use llm_local_core::{Encoding, Error, IntType, Result, TensorEntry, model::MlxQuantization, tensor::shape_text};
use serde_json::Value;

/// Gives the weights among `entries` that MLX quantized their shape, encoding and parts, where `config` says that there are
/// such. `shown` is what the model is called in messages. A config that is not understood is left to the description.
///
/// # Errors
/// [`Error::LoadFailed`] naming the tensor that does not agree with config.json or with its scales and biases.
pub(crate) fn unpack<'a>(
    shown: &str,
    config: &Value,
    entries: impl IntoIterator<Item = &'a mut TensorEntry>,
) -> Result<()> {
    let Ok(Some(quantization)) = MlxQuantization::from_config(config) else { return Ok(()) };
    let mut entries: HashMap<String, &mut TensorEntry> = entries.into_iter().map(|e| (e.name.clone(), e)).collect();
    let mut modules: Vec<_> =
        entries.keys().filter_map(|name| name.strip_suffix(".scales").map(str::to_owned)).collect();
    modules.sort_unstable();
    for (module, encoding) in quantization.named() {
        let has_scales = modules.iter().any(|name| name == module);
        if encoding.is_some() && !has_scales && entries.contains_key(&format!("{module}.weight")) {
            return Err(wrong(shown, module, "is quantized, as config.json says, but has no `scales`"));
        }
    }
    for module in &modules {
        let Some(encoding) = quantization.of(module) else {
            return Err(wrong(shown, module, "has `scales`, but config.json says that it is not quantized"));
        };
        let part = |name: &str| {
            let entry = entries.get(&format!("{module}.{name}"));
            entry.map(|entry| &**entry).ok_or_else(|| wrong(shown, module, &format!("has `scales`, but no `{name}`")))
        };
        let shape = logical(encoding, part("weight")?, part("scales")?, part("biases")?)
            .map_err(|why| wrong(shown, module, &why))?;
        if let Some(weight) = entries.get_mut(&format!("{module}.weight")) {
            (weight.shape, weight.encoding) = (shape, encoding);
            weight.parts = ["scales", "biases"].map(|name| format!("{module}.{name}")).into();
        }
    }
    let packed = |entry: &&mut TensorEntry| {
        matches!(entry.encoding, Encoding::Int(IntType::U32)) && entry.name.ends_with(".weight")
    };
    match entries.into_values().filter(packed).map(|entry| entry.name.as_str()).min() {
        Some(name) => {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            Err(wrong(shown, module, "has a packed `weight` (u32), but no `scales`"))
        }
        None => Ok(()),
    }
}

fn wrong(shown: &str, module: &str, why: &str) -> Error {
    Error::load(
        shown,
        format!("the module `{module}` {why}; get the checkpoint again, or convert it anew (mlx_lm convert)"),
    )
}

/// The shape of a weight that is packed with these parts. The error continues a sentence that starts with the module's name.
fn logical(
    encoding: Encoding,
    weight: &TensorEntry,
    scales: &TensorEntry,
    biases: &TensorEntry,
) -> Result<Vec<usize>, String> {
    let Encoding::MlxAffine { bits, group_size } = encoding else { return Err(format!("is stored as {encoding}")) };
    if !matches!(weight.encoding, Encoding::Int(IntType::U32)) {
        return Err(format!("has `scales`, but its `weight` is stored as {}; expected u32", weight.encoding));
    }
    if !matches!(scales.encoding, Encoding::Float(_))
        || (&scales.shape, scales.encoding) != (&biases.shape, biases.encoding)
    {
        return Err(format!(
            "has `scales` of the shape {} in {} and `biases` of {} in {}; expected floats of one shape and type",
            shape_text(&scales.shape),
            scales.encoding,
            shape_text(&biases.shape),
            biases.encoding
        ));
    }
    let ([rows @ .., packed], [groups_rows @ .., groups]) = (&weight.shape[..], &scales.shape[..]) else {
        return Err(format!("has a `weight` of the shape {}; expected a matrix", shape_text(&weight.shape)));
    };
    let columns = groups.checked_mul(group_size as usize);
    let is_whole = |columns: &usize| columns.checked_mul(bits.into()) == packed.checked_mul(32);
    match columns.filter(is_whole).filter(|_| !rows.is_empty() && rows == groups_rows) {
        Some(columns) => Ok([rows, &[columns]].concat()),
        None => Err(format!(
            "has a `weight` of the shape {} and `scales` of {}, which do not go together in {encoding}, as config.json says",
            shape_text(&weight.shape),
            shape_text(&scales.shape)
        )),
    }
}

#[cfg(test)]
mod tests;
