//! Adapters that run beside the weights of a base, instead of being merged into them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use llm_local_core::{
    Allowance, Error, LoraAdapter, LoraModule, ModelInfo, Result,
    lora::Floats,
    model::{Layout, RowOrder},
};

use super::{
    fit::{FitReport, FittedAdapter, fit_allowing},
    outline::{AdapterOutline, ReplacementOutline},
    targets::BaseModules,
};

/// Why `adapter`, which fits as `fitted` says, can only be merged, if that is so; it continues a sentence about the adapter.
pub(crate) fn only_merged(adapter: &AdapterOutline, fitted: &FittedAdapter, report: &FitReport) -> Option<String> {
    let grows = |replacement: &&ReplacementOutline| {
        let rows = replacement.shape.first().copied();
        let module = replacement.name.strip_suffix(".weight");
        module.is_some_and(|module| BaseModules::is_embedding(module) || BaseModules::is_head(module))
            && report.vocab_size.is_some_and(|grown| rows == Some(grown))
    };
    if adapter.replacements.iter().any(|replacement| grows(&replacement)) {
        return Some("it gives the base new vocabulary rows".into());
    }
    let module = |why: &str, is: fn(&super::outline::ModuleOutline) -> bool| {
        adapter.modules.iter().find(|module| is(module)).map(|module| format!("its pair of `{}` is {why}", module.name))
    };
    let resplit = || {
        let name = fitted.resplit.as_ref()?;
        Some(format!("the base has `{name}` as projections that are split or fused otherwise"))
    };
    module("of experts", |m| m.experts.is_some())
        .or_else(|| module("of a bare parameter", |m| m.is_parameter))
        .or_else(|| module("of a transposed weight", |m| m.transposed))
        .or_else(resplit)
}

/// `adapters` as backends run them beside the weights: what is let pass because the base has no tensor for it is left out,
/// and rows are in the order of the Hugging Face layout.
///
/// # Errors
/// As [`fit_allowing`] and [`in_hugging_face_order`].
pub(crate) fn for_backend(
    adapters: &[(Arc<LoraAdapter>, f32)],
    allow: &[BTreeSet<Allowance>],
    info: &ModelInfo,
) -> Result<Vec<(Arc<LoraAdapter>, f32)>> {
    let report = fit_allowing(adapters, allow, info)?;
    report.warn(&info.id);
    let used = adapters.iter().zip(&report.adapters);
    used.map(|((adapter, weight), fitted)| {
        Ok((in_hugging_face_order(&without(adapter, &fitted.unused), info)?, *weight))
    })
    .collect()
}

/// `adapter` without what it has for the tensors `unused`.
pub(crate) fn without(adapter: &Arc<LoraAdapter>, unused: &[String]) -> Arc<LoraAdapter> {
    if unused.is_empty() {
        return adapter.clone();
    }
    let mut used = LoraAdapter::clone(adapter);
    used.modules.retain(|module| !unused.contains(&module.weight_name()));
    used.replacements.retain(|replacement| !unused.contains(&replacement.name));
    used.rows.retain(|rows| !unused.contains(&rows.name));
    Arc::new(used)
}

/// `adapter` with the rows of queries and keys in the order of the Hugging Face layout, as backends want it whatever the
/// layout of the base.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] for an adapter in GGUF's order on a base that is not described, whose heads are not known,
/// and for whole tensors in that order.
fn in_hugging_face_order(adapter: &Arc<LoraAdapter>, info: &ModelInfo) -> Result<Arc<LoraAdapter>> {
    if adapter.row_order == Layout::HuggingFace {
        return Ok(adapter.clone());
    }
    let failed = |reason: String| Error::adapter(&adapter.reference, reason);
    let decoder = info.decoder.as_ref().map_err(|error| {
        failed(format!(
            "its rows are in the order of GGUF files, and how many heads `{}` has is not known: {error}",
            info.id
        ))
    })?;
    let replaced = adapter.replacements.iter().map(|r| &r.name).chain(adapter.rows.iter().map(|r| &r.name)).next();
    if let Some(name) = replaced {
        return Err(failed(format!("it replaces `{name}` in GGUF's order, which can only be merged")));
    }
    let orders: HashMap<String, RowOrder> = decoder
        .base_tensors(Layout::HuggingFace)
        .into_iter()
        .filter_map(|tensor| {
            let module = tensor.name.strip_suffix(".weight")?.to_owned();
            Some((module, decoder.gguf_row_order(tensor.role)?))
        })
        .collect();
    let mut turned = LoraAdapter::clone(adapter).with_row_order(Layout::HuggingFace);
    for module in &mut turned.modules {
        if let Some(order) = orders.get(&module.name) {
            reorder(module, *order);
        }
    }
    Ok(Arc::new(turned))
}

fn reorder(module: &mut LoraModule, order: RowOrder) {
    let (rank, rows) = (module.rank, module.out_features);
    module.b = match &module.b {
        Floats::F32(v) => Floats::F32(by_rows(v, rank, rows, order)),
        Floats::F16(v) => Floats::F16(by_rows(v, rank, rows, order)),
        Floats::Bf16(v) => Floats::Bf16(by_rows(v, rank, rows, order)),
        other => unreachable!("{} is not a type of `Floats`", other.float_type()),
    };
    for values in [&mut module.magnitude, &mut module.bias].into_iter().flatten() {
        *values = by_rows(values, 1, rows, order);
    }
}

fn by_rows<T: Copy>(values: &[T], width: usize, rows: usize, order: RowOrder) -> Vec<T> {
    (0..rows)
        .map(|row| order.stored(row))
        .flat_map(|row| values[row * width..(row + 1) * width].iter().copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use llm_local_weights::Checkpoint;

    use super::*;

    #[test]
    fn pairs_of_projections_that_the_base_has_fused_can_only_be_merged() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/arch-phi3");
        let files = ["config.json", "model.safetensors"].map(|name| (name.to_owned(), folder.join(name)));
        let info = Checkpoint::open("phi3", &files.into()).unwrap().info;
        let decoder = info.decoder.as_ref().unwrap();
        let why = |name: &str, out: usize| {
            let (a, b) = (vec![1.0; decoder.hidden_size], vec![1.0; out]);
            let module = LoraModule::new(name, (1, decoder.hidden_size, out), a, b, 1.0);
            let adapters = [(Arc::new(LoraAdapter::new("x", "", vec![module])), 1.0)];
            let report = fit_allowing(&adapters, &[], &info).unwrap();
            only_merged(&AdapterOutline::from(&*adapters[0].0), &report.adapters[0], &report)
        };
        let queries = decoder.heads * decoder.head_dim;
        let split = why("model.layers.0.self_attn.q_proj", queries).unwrap();
        assert!(split.contains("q_proj.weight` as projections that are split or fused otherwise"), "{split}");
        assert_eq!(why("model.layers.0.self_attn.qkv_proj", queries + 2 * decoder.kv_heads * decoder.head_dim), None);
    }
}
