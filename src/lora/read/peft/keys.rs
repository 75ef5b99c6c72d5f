//! Names of tensors in a PEFT file.

/// Which factor of a pair a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factor {
    A,
    B,
}

/// What the name of a factor says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FactorKey<'a> {
    /// The module's path in the base.
    pub(super) module: &'a str,
    pub(super) factor: Factor,
    /// The adapter's name, which PEFT strips when it saves.
    pub(super) adapter: Option<&'a str>,
}

/// What PEFT puts before the base's own module paths.
const PREFIX: &str = "base_model.model.";

/// Reads the name of a tensor. The error is what else the tensor is.
pub(super) fn parse(key: &str) -> Result<FactorKey<'_>, String> {
    let path = key.strip_prefix(PREFIX).unwrap_or(key);
    let Some(at) = path.find(".lora_") else { return Err(not_low_rank(path)) };
    let (module, rest) = (&path[..at], &path[at + 1..]);
    let (kind, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let factor = match kind {
        "lora_A" => Factor::A,
        "lora_B" => Factor::B,
        "lora_a" | "lora_b" => return Err("it is spelled as mlx-lm does, but the config is PEFT's".into()),
        "lora_embedding_A" | "lora_embedding_B" => return Err("LoRA on an embedding is not supported yet".into()),
        "lora_magnitude_vector" => return Err("it is a magnitude of DoRA, which is not supported yet".into()),
        _ => return Err(format!("`{kind}` is not a part of a LoRA adapter that is known")),
    };
    let (adapter, parameter) = match rest.split_once('.') {
        Some((adapter, parameter)) => (Some(adapter), parameter),
        None => (None, rest),
    };
    if parameter == "bias" {
        return Err("a bias of lora_B (`lora_bias`) is not supported yet".into());
    }
    if parameter != "weight" || adapter.is_some_and(|name| name.is_empty() || name.starts_with("lora_")) {
        return Err(format!("expected `.weight` after `{kind}`, with at most an adapter's name between"));
    }
    if !key.starts_with(PREFIX) {
        return Err(format!("expected the prefix `{PREFIX}` before the module's path"));
    }
    Ok(FactorKey { module, factor, adapter })
}

/// What a tensor without a `lora_` part in its name is.
fn not_low_rank(path: &str) -> String {
    let has = |segment: &str| path.split('.').any(|s| s == segment);
    let what = if has("base_layer") {
        "is the full weight of a base layer, which PEFT saves beside LoRA on an embedding or head"
    } else if has("token_adapter") || path.contains("trainable_tokens") {
        "holds trained rows of the embedding (`trainable_token_indices`)"
    } else if has("modules_to_save") || path.ends_with(".weight") {
        "is a full weight (`modules_to_save`, or a checkpoint that is no adapter)"
    } else if path.ends_with(".bias") {
        "is a bias (`bias` other than \"none\", or `modules_to_save`)"
    } else {
        return "it is neither `lora_A.weight` nor `lora_B.weight` of a module".into();
    };
    format!("it {what}; llm-local does not support that yet; expected only `lora_A.weight` and `lora_B.weight`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_read_with_and_without_an_adapters_name() {
        let module = "model.layers.0.self_attn.q_proj";
        let key = |rest: &str| format!("base_model.model.{module}.{rest}");
        let read = |rest: &str| parse(&key(rest)).map(|k| (k.module.to_owned(), k.factor, k.adapter.map(String::from)));
        assert_eq!(read("lora_A.weight"), Ok((module.into(), Factor::A, None)));
        assert_eq!(read("lora_B.weight"), Ok((module.into(), Factor::B, None)));
        assert_eq!(read("lora_A.default.weight"), Ok((module.into(), Factor::A, Some("default".into()))));
        assert_eq!(parse("base_model.model.lm_head.lora_B.pirate.weight").unwrap().module, "lm_head");
    }

    #[test]
    fn every_other_tensor_is_named_for_what_it_is() {
        for (key, what) in [
            ("base_model.model.lm_head.weight", "modules_to_save"),
            ("model.layers.3.self_attn.q_proj.weight", "full weight"),
            ("base_model.model.model.embed_tokens.base_layer.weight", "base layer"),
            ("base_model.model.model.layers.0.self_attn.q_proj.bias", "bias"),
            ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
            ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "trainable_token_indices"),
            ("base_model.model.a.q_proj.lora_magnitude_vector", "DoRA"),
            ("base_model.model.a.q_proj.lora_magnitude_vector.weight", "DoRA"),
            ("base_model.model.a.q_proj.lora_magnitude_vector.default.weight", "DoRA"),
            ("base_model.model.a.q_proj.lora_B.bias", "lora_bias"),
            ("base_model.model.a.q_proj.lora_B.default.bias", "lora_bias"),
            ("base_model.model.a.q_proj.lora_diag", "lora_diag"),
            ("base_model.model.a.q_proj.lora_A", "expected `.weight`"),
            ("base_model.model.a.q_proj.lora_A.lora_B.weight", "expected `.weight`"),
            ("base_model.model.a.q_proj.lora_A.x.y.weight", "expected `.weight`"),
            ("a.q_proj.lora_A.weight", "prefix `base_model.model.`"),
            ("model.layers.0.self_attn.q_proj.lora_a", "mlx-lm"),
            ("base_model.model.a.q_proj.ia3_l", "neither"),
            ("", "neither"),
        ] {
            let reason = parse(key).unwrap_err();
            assert!(reason.contains(what), "{key}: {reason}");
        }
    }
}
