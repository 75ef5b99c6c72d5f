//! Names of tensors in a PEFT file.
//!
//! Source of the spellings: PEFT `src/peft/utils/save_and_load.py`, `get_peft_model_state_dict`.

use std::borrow::Cow;

/// What a tensor is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    A,
    B,
    EmbeddingA,
    EmbeddingB,
    /// The bias of B.
    BiasOfB,
    /// DoRA's magnitude.
    Magnitude,
}

impl Part {
    /// How PEFT spells it after the module.
    pub(super) const fn spelling(self) -> &'static str {
        match self {
            Self::A => "lora_A.weight",
            Self::B => "lora_B.weight",
            Self::EmbeddingA => "lora_embedding_A",
            Self::EmbeddingB => "lora_embedding_B",
            Self::BiasOfB => "lora_B.bias",
            Self::Magnitude => "lora_magnitude_vector",
        }
    }
}

/// What the name of a tensor says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub(super) what: What<'a>,
    /// The adapter's name, which PEFT strips when it saves.
    pub(super) adapter: Option<&'a str>,
}

impl Key<'_> {
    /// Whether the tensor is spelled so that an adapter's name could be in it.
    pub(super) fn belongs_to_an_adapter(&self) -> bool {
        !matches!(self.what, What::Full { saved: Saved::Plain | Saved::BaseLayer, .. })
    }
}

/// What a tensor is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum What<'a> {
    /// A part of the low-rank pair of the module at a path in the base. Where the module has pairs of several bare
    /// parameters, each but the outermost is so many `base_layer` deeper.
    Part { module: &'a str, depth: usize, part: Part },
    /// A tensor of the base in full, by its name there.
    Full { tensor: Cow<'a, str>, saved: Saved },
    /// Trained rows of the weight of the module at a path in the base.
    Rows { module: &'a str },
}

/// How a tensor that is saved in full is spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Saved {
    /// As in the base.
    Plain,
    /// As that below a layer with a pair, or with trained rows.
    BaseLayer,
    /// As one of `modules_to_save`, whose path is so long.
    ModulesToSave(usize),
}

/// What PEFT puts before the base's own module paths.
pub(in crate::lora) const PREFIX: &str = "base_model.model.";

/// Reads the name of a tensor. The error is what else the tensor is.
pub(super) fn parse(key: &str) -> Result<Key<'_>, String> {
    let path = key.strip_prefix(PREFIX).unwrap_or(key);
    let parsed = match path.find(".lora_") {
        Some(at) => part(&path[..at], &path[at + 1..])?,
        None => other(path)?,
    };
    if !key.starts_with(PREFIX) {
        let is = if let What::Full { .. } = parsed.what { format!("it is {FULL}; ") } else { String::new() };
        return Err(format!("{is}expected the prefix `{PREFIX}` before the module's path"));
    }
    Ok(parsed)
}

/// What a tensor is that no config accounts for.
pub(super) const FULL: &str = "a full weight (`modules_to_save`, or a checkpoint that is no adapter)";

fn part<'a>(path: &'a str, rest: &'a str) -> Result<Key<'a>, String> {
    let (kind, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let (adapter, parameter) = match rest.split_once('.') {
        Some((adapter, parameter)) => (Some(adapter), parameter),
        // Embeddings' factors and magnitudes are parameters themselves: what stands behind is the adapter's name.
        None if matches!(rest, "" | "weight" | "bias") => (None, rest),
        None => (Some(rest), ""),
    };
    let part = match (kind, parameter) {
        ("lora_A", "weight") => Part::A,
        ("lora_B", "weight") => Part::B,
        ("lora_B", "bias") => Part::BiasOfB,
        ("lora_embedding_A", "") => Part::EmbeddingA,
        ("lora_embedding_B", "") => Part::EmbeddingB,
        ("lora_magnitude_vector", "" | "weight") => Part::Magnitude,
        ("lora_a" | "lora_b", _) => return Err("it is spelled as mlx-lm does, but the config is PEFT's".into()),
        ("lora_diag", _) => return Err("`lora_diag` belongs to KaSA, which changes the base".into()),
        ("lora_A" | "lora_B", _) => return Err(misspelled(kind, "`.weight`")),
        ("lora_embedding_A" | "lora_embedding_B", _) => return Err(misspelled(kind, "nothing")),
        ("lora_magnitude_vector", _) => return Err(misspelled(kind, "nothing, or `.weight`,")),
        _ => return Err(format!("`{kind}` is not a part of a LoRA adapter that is known")),
    };
    if adapter.is_some_and(|name| name.is_empty() || name.starts_with("lora_")) {
        return Err(misspelled(kind, "`.weight`"));
    }
    let mut module = path;
    let mut depth = 0;
    while let Some(outer) = module.strip_suffix(".base_layer") {
        (module, depth) = (outer, depth + 1);
    }
    if module.is_empty() || segment(module, &["base_layer", "modules_to_save", "original_module", "token_adapter"]) {
        return Err(format!("`{path}` is not the path of a module of the base"));
    }
    Ok(Key { what: What::Part { module, depth, part }, adapter })
}

fn misspelled(kind: &str, parameter: &str) -> String {
    format!("expected {parameter} after `{kind}`, with at most an adapter's name between")
}

/// Whether one of `names` is a segment of `path`.
fn segment(path: &str, names: &[&str]) -> bool {
    path.split('.').any(|s| names.contains(&s))
}

/// What a tensor without a `lora_` part in its name is.
fn other(path: &str) -> Result<Key<'_>, String> {
    if segment(path, &["original_module"]) {
        return Err("it is the base's own weight, which stands beside one of `modules_to_save` \
                    (`original_module`) while it is trained; save the adapter with PEFT's save_pretrained"
            .into());
    }
    if let Some((module, adapter)) = path.split_once(".token_adapter.trainable_tokens_delta") {
        let adapter = match adapter.strip_prefix('.') {
            None if adapter.is_empty() => None,
            Some(name) if !name.is_empty() && !name.contains('.') => Some(name),
            _ => return Err(misspelled("trainable_tokens_delta", "nothing")),
        };
        return Ok(Key { what: What::Rows { module }, adapter });
    }
    if let Some((module, rest)) = path.split_once(".modules_to_save.") {
        // `bias`, or `default.bias`, or `default.q_proj.bias`: one segment alone is no adapter's name.
        let (adapter, rest) = rest.split_once('.').map_or((None, rest), |(adapter, rest)| (Some(adapter), rest));
        let tensor = Cow::Owned(format!("{module}.{rest}"));
        return Ok(Key { what: What::Full { tensor, saved: Saved::ModulesToSave(module.len()) }, adapter });
    }
    let full = |tensor, saved| Ok(Key { what: What::Full { tensor, saved }, adapter: None });
    for layer in [".token_adapter.base_layer.", ".base_layer."] {
        if let Some((module, rest)) = path.split_once(layer) {
            return full(Cow::Owned(format!("{module}.{rest}")), Saved::BaseLayer);
        }
    }
    if segment(path, &["base_layer", "token_adapter", "modules_to_save"]) || !path.contains('.') {
        return Err("it is neither a part of a pair nor a tensor of the base".into());
    }
    full(Cow::Borrowed(path), Saved::Plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "model.layers.0.self_attn.q_proj";

    fn read(rest: &str) -> Key<'static> {
        parse(Box::leak(format!("base_model.model.{rest}").into_boxed_str())).unwrap_or_else(|e| panic!("{rest}: {e}"))
    }

    #[test]
    fn parts_of_pairs_are_read_with_and_without_an_adapters_name() {
        for (rest, part, adapter) in [
            ("lora_A.weight", Part::A, None),
            ("lora_B.weight", Part::B, None),
            ("lora_A.default.weight", Part::A, Some("default")),
            ("lora_B.bias", Part::BiasOfB, None),
            ("lora_B.default.bias", Part::BiasOfB, Some("default")),
            ("lora_embedding_A", Part::EmbeddingA, None),
            ("lora_embedding_B.default", Part::EmbeddingB, Some("default")),
            ("lora_magnitude_vector", Part::Magnitude, None),
            ("lora_magnitude_vector.weight", Part::Magnitude, None),
            ("lora_magnitude_vector.default", Part::Magnitude, Some("default")),
            ("lora_magnitude_vector.default.weight", Part::Magnitude, Some("default")),
        ] {
            let what = What::Part { module: MODULE, depth: 0, part };
            assert_eq!(read(&format!("{MODULE}.{rest}")), Key { what, adapter }, "{rest}");
        }
        let what = What::Part { module: "a.experts", depth: 2, part: Part::B };
        assert_eq!(read("a.experts.base_layer.base_layer.lora_B.weight"), Key { what, adapter: None });
        assert_eq!(
            parse("base_model.model.lm_head.lora_B.pirate.weight"),
            Ok(Key { what: What::Part { module: "lm_head", depth: 0, part: Part::B }, adapter: Some("pirate") })
        );
    }

    #[test]
    fn full_tensors_and_rows_are_read_in_each_spelling() {
        for (rest, tensor, saved, adapter) in [
            ("lm_head.weight", "lm_head.weight", Saved::Plain, None),
            ("m.embed_tokens.base_layer.weight", "m.embed_tokens.weight", Saved::BaseLayer, None),
            ("m.embed_tokens.token_adapter.base_layer.weight", "m.embed_tokens.weight", Saved::BaseLayer, None),
            ("m.q_proj.base_layer.bias", "m.q_proj.bias", Saved::BaseLayer, None),
            ("lm_head.modules_to_save.weight", "lm_head.weight", Saved::ModulesToSave(7), None),
            ("lm_head.modules_to_save.default.weight", "lm_head.weight", Saved::ModulesToSave(7), Some("default")),
            ("m.attn.modules_to_save.x.q.bias", "m.attn.q.bias", Saved::ModulesToSave(6), Some("x")),
        ] {
            let what = What::Full { tensor: tensor.into(), saved };
            assert_eq!(read(rest), Key { what, adapter }, "{rest}");
        }
        let rows = |adapter| Key { what: What::Rows { module: "model.embed_tokens" }, adapter };
        let delta = "model.embed_tokens.token_adapter.trainable_tokens_delta";
        assert_eq!(read(delta), rows(None));
        assert_eq!(read(&format!("{delta}.default")), rows(Some("default")));
    }

    #[test]
    fn every_other_tensor_is_named_for_what_it_is() {
        for (key, what) in [
            ("model.layers.3.self_attn.q_proj.weight", "full weight"),
            ("base_model.model.lm_head.original_module.weight", "original_module"),
            ("base_model.model.a.q_proj.lora_diag", "KaSA"),
            ("base_model.model.a.q_proj.lora_velora_embed", "lora_velora_embed"),
            ("base_model.model.a.q_proj.lora_A", "expected `.weight`"),
            ("base_model.model.a.q_proj.lora_A.bias", "expected `.weight`"),
            ("base_model.model.a.q_proj.lora_A.lora_B.weight", "expected `.weight`"),
            ("base_model.model.a.q_proj.lora_A.x.y.weight", "expected `.weight`"),
            ("base_model.model.a.lora_embedding_A.x.weight", "expected nothing"),
            ("base_model.model.a.lora_magnitude_vector.x.y", "expected nothing"),
            ("base_model.model.a.token_adapter.trainable_tokens_delta.x.y", "expected nothing"),
            ("base_model.model..lora_A.weight", "not the path of a module"),
            ("base_model.model.a.base_layer.b.lora_A.weight", "not the path of a module"),
            ("base_model.model.a.modules_to_save.default.lora_A.weight", "not the path of a module"),
            ("base_model.model.a.token_adapter.token_indices", "neither"),
            ("a.q_proj.lora_A.weight", "prefix `base_model.model.`"),
            ("model.layers.0.self_attn.q_proj.lora_a", "mlx-lm"),
            ("prompt_embeddings", "neither"),
            ("", "neither"),
        ] {
            let reason = parse(key).unwrap_err();
            assert!(reason.contains(what), "{key}: {reason}");
        }
    }
}
