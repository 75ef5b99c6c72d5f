//! Adapters that run beside the weights of a base, instead of being merged into them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use llm_local_core::{
    Allowance, Error, LoraAdapter, LoraModule, ModelInfo, Result,
    model::{DecoderConfig, Layout, RowOrder},
};

use super::{
    fit::{FitReport, FittedAdapter, fit_allowing},
    outline::{AdapterOutline, ReplacementOutline},
    rows::permute,
    targets::BaseModules,
};

/// Why `adapter`, which fits as `fitted` says, can only be merged, if that is so; it continues a sentence about the adapter.
///
/// Projections that are split or fused otherwise than the base's are no reason: backends take the names of both. These are:
///
/// | adapter | why |
/// |---|---|
/// | new vocabulary rows | the number of logits, the token ids that are taken and the tokenizer are those of the loaded model, for all its requests |
/// | pairs of experts | no decoder here has experts, and each would need the rows of activations that are routed to it |
/// | whole tensors or rows in GGUF's order | backends want the order of the Hugging Face layout, whatever that of the base |
/// | a pair of a weight that is stored (in, out): DoRA on an embedding, a `Conv1D` | DoRA's norms are then of columns, and what multiplies columns is beside the input of a tied head |
pub(crate) fn only_merged(adapter: &AdapterOutline, fitted: &FittedAdapter, report: &FitReport) -> Option<String> {
    let grows = |replacement: &&ReplacementOutline| {
        let rows = replacement.shape.first().copied();
        let module = replacement.name.strip_suffix(".weight");
        module.is_some_and(|module| BaseModules::is_embedding(module) || BaseModules::is_head(module))
            && report.vocab_size.is_some_and(|grown| rows == Some(grown))
    };
    if adapter.replacements.iter().any(|replacement| grows(&replacement)) {
        return Some("it gives the base new vocabulary rows, and the vocabulary of a loaded model cannot grow".into());
    }
    if let Some(module) = adapter.modules.iter().find(|module| module.experts.is_some()) {
        return Some(format!(
            "its pairs of `{}` are of experts, which no backend runs beside their weights",
            module.name
        ));
    }
    let replaced =
        adapter.replacements.iter().map(|r| &r.name).chain(adapter.rows.iter().map(|rows| &rows.name)).next();
    if let (Layout::Gguf, Some(name)) = (adapter.row_order, replaced) {
        return Some(format!(
            "it replaces `{name}` in the order of a GGUF file, which no backend takes beside its weights"
        ));
    }
    let turned = fitted.transposed.as_ref()?;
    Some(format!("its pair of `{turned}` is of a transposed weight, whose columns it changes, and not its rows"))
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
        return Err(failed(format!(
            "it replaces `{name}` in GGUF's order, which can only be merged (`adapter_policy` `merge-dequantized`)"
        )));
    }
    let orders = orders(decoder);
    // Of rows that several modules have, no order is known here.
    let own: BTreeSet<_> = decoder.base_tensors(Layout::HuggingFace).into_iter().map(|tensor| tensor.name).collect();
    let other = |module: &&LoraModule| !own.contains(&module.weight_name()) && !BaseModules::is_head(&module.name);
    if let (false, Some(module)) = (orders.is_empty(), adapter.modules.iter().find(other)) {
        return Err(failed(format!(
            "its rows are in the order of GGUF files, and the base has `{}` split or fused otherwise, so that it can only \
             be merged (`adapter_policy` `merge-dequantized`)",
            module.name
        )));
    }
    let mut turned = LoraAdapter::clone(adapter).with_row_order(Layout::HuggingFace);
    for module in &mut turned.modules {
        if let Some(order) = orders.get(&module.weight_name()) {
            permute(module, |row| order.stored(row));
        }
    }
    Ok(Arc::new(turned))
}

/// The orders of tensors whose rows are in another one in GGUF files, by the names of the Hugging Face layout.
fn orders(decoder: &DecoderConfig) -> HashMap<String, RowOrder> {
    let tensors = decoder.base_tensors(Layout::HuggingFace).into_iter();
    tensors.filter_map(|tensor| Some((tensor.name, decoder.gguf_row_order(tensor.role)?))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use llm_local_core::lora::ReplacementTensor;
    use llm_local_weights::Checkpoint;

    use super::*;

    fn info(name: &str) -> Arc<ModelInfo> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name);
        let files = ["config.json", "model.safetensors"].map(|name| (name.to_owned(), folder.join(name)));
        Checkpoint::open(name, &files.into()).unwrap().info
    }

    fn why(adapter: LoraAdapter, info: &ModelInfo) -> Option<String> {
        let adapters = [(Arc::new(adapter), 1.0)];
        let report = fit_allowing(&adapters, &[], info).unwrap();
        only_merged(&AdapterOutline::from(&*adapters[0].0), &report.adapters[0], &report)
    }

    fn pair(name: &str, width: usize, out: usize) -> LoraModule {
        LoraModule::new(name, (1, width, out), vec![1.0; width], vec![1.0; out], 1.0)
    }

    #[test]
    fn pairs_of_projections_that_the_base_has_otherwise_run_beside_it() {
        for base in ["arch-phi3", "tiny-llama"] {
            let info = info(base);
            let decoder = info.decoder.as_ref().unwrap();
            let (hidden, queries) = (decoder.hidden_size, decoder.heads * decoder.head_dim);
            let all = queries + 2 * decoder.kv_heads * decoder.head_dim;
            for (name, out) in [("q_proj", queries), ("qkv_proj", all)] {
                let module = pair(&format!("model.layers.0.self_attn.{name}"), hidden, out);
                assert_eq!(why(LoraAdapter::new("x", "", vec![module]), &info), None, "{name} on {base}");
            }
        }
    }

    #[test]
    fn what_can_only_be_merged_says_why() {
        let info = info("tiny-llama");
        let decoder = info.decoder.as_ref().unwrap();
        let (hidden, vocab) = (decoder.hidden_size, decoder.vocab_size);
        let of = |module: LoraModule| LoraAdapter::new("x", "", vec![module]);
        let query = || pair("model.layers.0.self_attn.q_proj", hidden, decoder.heads * decoder.head_dim);
        // PEFT ignores the mark on a layer that is not stored so.
        assert_eq!(why(of(query().with_transposed(true)), &info), None);
        let mut parameter = query().of_parameter();
        parameter.name.push_str(".weight");
        assert_eq!(why(of(parameter), &info), None);
        let embedding = pair("model.embed_tokens", vocab, hidden).with_transposed(true);
        let said = why(of(embedding.with_magnitude(vec![1.0; hidden])), &info).unwrap();
        assert!(said.contains("`model.embed_tokens` is of a transposed weight"), "{said}");
        let grown = ReplacementTensor::new(
            "model.embed_tokens.weight",
            vec![vocab + 2, hidden],
            vec![0.1; (vocab + 2) * hidden],
        );
        let said = why(LoraAdapter::new("x", "", Vec::new()).with_replacements(vec![grown]), &info).unwrap();
        assert!(said.contains("new vocabulary rows"), "{said}");
        let norm = ReplacementTensor::new("model.norm.weight", vec![hidden], vec![0.1; hidden]);
        let whole = LoraAdapter::new("x", "", Vec::new()).with_replacements(vec![norm]);
        assert_eq!(why(whole.clone(), &info), None);
        let said = why(whole.with_row_order(Layout::Gguf), &info).unwrap();
        assert!(said.contains("`model.norm.weight` in the order of a GGUF file"), "{said}");
    }
}
