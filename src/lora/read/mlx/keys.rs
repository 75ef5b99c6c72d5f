//! Names of tensors in files of MLX.

/// What a tensor is of its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    A,
    B,
    Magnitude,
}

/// How a module calls its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `lora_a`, `lora_b` and DoRA's `m`: mlx-lm, and mlx-vlm since it has `lora_parameters`.
    MlxLm,
    /// `A` and `B`: mlx-vlm's own format.
    MlxVlm,
}

impl Spelling {
    pub(super) fn of(self, part: Part) -> &'static str {
        match (self, part) {
            (Self::MlxLm, Part::A) => "lora_a",
            (Self::MlxLm, Part::B) => "lora_b",
            (Self::MlxVlm, Part::A) => "A",
            (Self::MlxVlm, Part::B) => "B",
            (_, Part::Magnitude) => "m",
        }
    }

    /// The module and the part of it that the tensor `key` is. The error is what else it is.
    pub(super) fn parse(self, key: &str) -> Result<(&str, Part), String> {
        let (module, leaf) = key.rsplit_once('.').unwrap_or(("", key));
        let parts: &[Part] = match self {
            Self::MlxLm => &[Part::A, Part::B, Part::Magnitude],
            Self::MlxVlm => &[Part::A, Part::B],
        };
        match parts.iter().find(|part| self.of(**part) == leaf) {
            Some(part) if !module.is_empty() => Ok((module, *part)),
            _ => Err(self.otherwise(key, leaf)),
        }
    }

    fn otherwise(self, key: &str, leaf: &str) -> String {
        let (a, b) = (self.of(Part::A), self.of(Part::B));
        let expected = format!("expected only `{a}` and `{b}` of modules");
        if key.contains(".lora_A") || key.contains(".lora_B") || key.contains(".lora_embedding_") {
            return "it is spelled as PEFT does, but the config is not PEFT's".into();
        }
        match leaf {
            "lora_a" | "lora_b" => format!("it is spelled as mlx-lm does; {expected}, as mlx-vlm's config says"),
            "A" | "B" => format!("it is spelled as mlx-vlm's own format does; {expected}, as the config says"),
            "weight" | "bias" => format!("it is a full weight, and `fine_tune_type` is not \"full\"; {expected}"),
            "scales" | "biases" => format!("it is a part of a quantized weight; {expected}"),
            _ => format!("it is not known what it is; {expected}"),
        }
    }
}

/// What MLX's models with several parts call the decoder, whose modules are named as those of a decoder alone behind it.
pub(in crate::lora) const DECODER: &str = "language_model.";

/// The name of a module, or tensor, in the Hugging Face layout of a decoder.
pub(super) fn canonical(name: &str) -> &str {
    name.strip_prefix(DECODER).unwrap_or(name)
}

/// The path of a module within its layer, or the whole path of one that is of no layer.
pub(super) fn within_layer(module: &str) -> &str {
    let is_index = |segment: &str| !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit());
    let mut rest = module;
    while let Some((segment, behind)) = rest.split_once('.') {
        if is_index(segment) {
            return behind;
        }
        rest = behind;
    }
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_by_their_spelling_alone() {
        let q = "model.layers.0.self_attn.q_proj";
        for (spelling, leaf, part) in [
            (Spelling::MlxLm, "lora_a", Part::A),
            (Spelling::MlxLm, "lora_b", Part::B),
            (Spelling::MlxLm, "m", Part::Magnitude),
            (Spelling::MlxVlm, "A", Part::A),
            (Spelling::MlxVlm, "B", Part::B),
        ] {
            assert_eq!(spelling.parse(&format!("{q}.{leaf}")), Ok((q, part)));
        }
    }

    #[test]
    fn every_other_tensor_is_named_for_what_it_is() {
        for (spelling, key, what) in [
            (Spelling::MlxLm, "base_model.model.q_proj.lora_A.weight", "as PEFT does"),
            (Spelling::MlxLm, "model.q_proj.A", "mlx-vlm"),
            (Spelling::MlxVlm, "model.q_proj.lora_a", "mlx-lm"),
            (Spelling::MlxVlm, "model.q_proj.m", "not known"),
            (Spelling::MlxLm, "model.q_proj.weight", "full weight"),
            (Spelling::MlxLm, "model.q_proj.scales", "quantized"),
            (Spelling::MlxLm, "model.q_proj.lora_a.0", "not known"),
            (Spelling::MlxLm, "lora_a", "mlx-lm"),
            (Spelling::MlxLm, "", "not known"),
        ] {
            let reason = spelling.parse(key).unwrap_err();
            assert!(reason.contains(what), "{key}: {reason}");
        }
    }

    #[test]
    fn a_path_within_a_layer_begins_behind_the_layers_index() {
        assert_eq!(within_layer("model.layers.12.self_attn.q_proj"), "self_attn.q_proj");
        assert_eq!(within_layer("model.layers.0.mlp.experts.3.up_proj"), "mlp.experts.3.up_proj");
        assert_eq!(within_layer("model.embed_tokens"), "model.embed_tokens");
        assert_eq!(canonical("language_model.model.layers.0.q"), "model.layers.0.q");
        assert_eq!(canonical("model.layers.0.q"), "model.layers.0.q");
    }
}
