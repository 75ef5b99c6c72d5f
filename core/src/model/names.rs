//! Names of tensors, per architecture and checkpoint layout.

use super::{Architecture, DecoderConfig};

/// How a checkpoint names its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// As transformers does: `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
    /// As llama.cpp does: `blk.0.attn_q.weight`. Rows of Llama's q and k are permuted there.
    Gguf,
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Embedding,
    AttentionNorm,
    Query,
    Key,
    Value,
    AttentionOutput,
    MlpNorm,
    Gate,
    Up,
    Down,
    FinalNorm,
    Head,
}

struct Row {
    role: Role,
    hugging_face: &'static str,
    gguf: &'static str,
}

const fn row(role: Role, hugging_face: &'static str, gguf: &'static str) -> Row {
    Row { role, hugging_face, gguf }
}

/// The modules of an architecture, `{}` for the layer's number. A weight is the module's name and `.weight`.
fn table(architecture: Architecture) -> &'static [Row] {
    match architecture {
        Architecture::Llama => {
            const LLAMA: &[Row] = &[
                row(Role::Embedding, "model.embed_tokens", "token_embd"),
                row(Role::AttentionNorm, "model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
                row(Role::Query, "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"),
                row(Role::Key, "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k"),
                row(Role::Value, "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"),
                row(Role::AttentionOutput, "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"),
                row(Role::MlpNorm, "model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
                row(Role::Gate, "model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"),
                row(Role::Up, "model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"),
                row(Role::Down, "model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"),
                row(Role::FinalNorm, "model.norm", "output_norm"),
                row(Role::Head, "lm_head", "output"),
            ];
            LLAMA
        }
    }
}

impl Row {
    fn pattern(&self, layout: Layout) -> &'static str {
        match layout {
            Layout::HuggingFace => self.hugging_face,
            Layout::Gguf => self.gguf,
        }
    }

    fn shape(&self, c: &DecoderConfig) -> Vec<usize> {
        let (hidden, ffn) = (c.hidden_size, c.intermediate_size);
        match self.role {
            Role::Embedding | Role::Head => vec![c.vocab_size, hidden],
            Role::AttentionNorm | Role::MlpNorm | Role::FinalNorm => vec![hidden],
            Role::Query => vec![c.heads * c.head_dim, hidden],
            Role::Key | Role::Value => vec![c.kv_heads * c.head_dim, hidden],
            Role::AttentionOutput => vec![hidden, c.heads * c.head_dim],
            Role::Gate | Role::Up => vec![ffn, hidden],
            Role::Down => vec![hidden, ffn],
        }
    }
}

pub(super) fn base_tensors(config: &DecoderConfig, layout: Layout) -> Vec<(String, Vec<usize>)> {
    let rows = table(config.architecture);
    let one = |row: &Row, layer: usize| {
        let module = row.pattern(layout).replace("{}", &layer.to_string());
        (format!("{module}.weight"), row.shape(config))
    };
    let of_layer = |row: &&Row| row.hugging_face.contains("{}");
    let mut tensors: Vec<_> = rows.iter().filter(|r| r.role == Role::Embedding).map(|r| one(r, 0)).collect();
    for layer in 0..config.layers {
        tensors.extend(rows.iter().filter(of_layer).map(|r| one(r, layer)));
    }
    tensors.extend(rows.iter().filter(|r| r.role == Role::FinalNorm).map(|r| one(r, 0)));
    tensors.extend(rows.iter().filter(|r| r.role == Role::Head && !config.tied_embeddings).map(|r| one(r, 0)));
    tensors
}

/// The name that `to` has for the tensor or module that `from` calls `name`, with whatever stands after the module's
/// name (`.weight`, `.bias`) kept; `None` if the architecture has no such module.
pub fn rename(architecture: Architecture, name: &str, from: Layout, to: Layout) -> Option<String> {
    table(architecture).iter().find_map(|row| {
        let (before, after) = row.pattern(from).split_once("{}").unwrap_or((row.pattern(from), ""));
        let rest = name.strip_prefix(before)?;
        let digits =
            if row.pattern(from).contains("{}") { rest.bytes().take_while(u8::is_ascii_digit).count() } else { 0 };
        if digits == 0 && row.pattern(from).contains("{}") {
            return None;
        }
        let (layer, rest) = rest.split_at(digits);
        let suffix = rest.strip_prefix(after)?;
        (suffix.is_empty() || suffix.starts_with('.'))
            .then(|| format!("{}{suffix}", row.pattern(to).replace("{}", layer)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_layouts_are_turned_into_each_other() {
        let pairs = [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.11.self_attn.q_proj.bias", "blk.11.attn_q.bias"),
            ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight"),
            ("model.layers.3.mlp.down_proj", "blk.3.ffn_down"),
            ("model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight"),
        ];
        for (hf, gguf) in pairs {
            assert_eq!(rename(Architecture::Llama, hf, Layout::HuggingFace, Layout::Gguf).as_deref(), Some(gguf));
            assert_eq!(rename(Architecture::Llama, gguf, Layout::Gguf, Layout::HuggingFace).as_deref(), Some(hf));
        }
    }

    #[test]
    fn unknown_names_have_no_other_name() {
        for name in
            ["model.layers.x.mlp.up_proj", "model.layers.1.mlp.up_projection", "model.normal.weight", "blk.1.attn_q"]
        {
            assert_eq!(rename(Architecture::Llama, name, Layout::HuggingFace, Layout::Gguf), None, "{name}");
        }
    }
}
