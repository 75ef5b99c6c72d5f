//! Names of tensors, per architecture and checkpoint layout.

use super::{Architecture, DecoderConfig, QkNorm};

/// How a checkpoint names its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// As transformers does: `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
    /// As llama.cpp does: `blk.0.attn_q.weight`. Rows of Llama's q and k are permuted there.
    Gguf,
}

/// What a module of a decoder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ModuleRole {
    /// Token ids to the residual stream: (vocab, hidden).
    Embedding,
    /// The norm before the attention.
    AttentionNorm,
    /// Queries: (heads · head_dim, hidden).
    Query,
    /// Keys: (kv_heads · head_dim, hidden).
    Key,
    /// Values: (kv_heads · head_dim, hidden).
    Value,
    /// Queries, keys and values in one, with their rows in this order.
    QueryKeyValue,
    /// The norm of queries.
    QueryNorm,
    /// The norm of keys.
    KeyNorm,
    /// The attention's output projection: (hidden, heads · head_dim).
    AttentionOutput,
    /// The norm after the attention.
    PostAttentionNorm,
    /// The norm before the feed-forward block.
    MlpNorm,
    /// What the activation is applied to: (intermediate, hidden).
    Gate,
    /// What it is multiplied with: (intermediate, hidden).
    Up,
    /// Gate and up in one, with their rows in this order.
    GateUp,
    /// Back to the residual stream: (hidden, intermediate).
    Down,
    /// The norm after the feed-forward block.
    PostMlpNorm,
    /// The norm before the head.
    FinalNorm,
    /// The residual stream to logits: (vocab, hidden).
    Head,
}

/// A tensor that a checkpoint of a decoder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BaseTensor {
    /// Its name: the module's, and `.weight` or `.bias`.
    pub name: String,
    /// The module that it is of.
    pub role: ModuleRole,
    /// The layer, counted from 0; 0 for a module of no layer.
    pub layer: usize,
    /// Whether it is the module's bias instead of its weight.
    pub bias: bool,
    /// Its shape: (out, in) for a projection's weight.
    pub shape: Vec<usize>,
}

struct Row {
    role: ModuleRole,
    hugging_face: &'static str,
    gguf: &'static str,
}

const fn row(role: ModuleRole, hugging_face: &'static str, gguf: &'static str) -> Row {
    Row { role, hugging_face, gguf }
}

use ModuleRole as R;

const EMBEDDING: Row = row(R::Embedding, "model.embed_tokens", "token_embd");
const ATTENTION_NORM: Row = row(R::AttentionNorm, "model.layers.{}.input_layernorm", "blk.{}.attn_norm");
const QUERY: Row = row(R::Query, "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q");
const KEY: Row = row(R::Key, "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k");
const VALUE: Row = row(R::Value, "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v");
const QUERY_KEY_VALUE: Row = row(R::QueryKeyValue, "model.layers.{}.self_attn.qkv_proj", "blk.{}.attn_qkv");
const QUERY_NORM: Row = row(R::QueryNorm, "model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm");
const KEY_NORM: Row = row(R::KeyNorm, "model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm");
const OUTPUT: Row = row(R::AttentionOutput, "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output");
/// What Gemma and OLMo call so is applied to the attention's output; others call the norm before the feed-forward
/// block so.
const POST_ATTENTION_NORM: Row =
    row(R::PostAttentionNorm, "model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm");
const MLP_NORM: Row = row(R::MlpNorm, "model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm");
const PRE_MLP_NORM: Row = row(R::MlpNorm, "model.layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm");
const GATE: Row = row(R::Gate, "model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate");
const UP: Row = row(R::Up, "model.layers.{}.mlp.up_proj", "blk.{}.ffn_up");
const GATE_UP: Row = row(R::GateUp, "model.layers.{}.mlp.gate_up_proj", "blk.{}.ffn_up");
const DOWN: Row = row(R::Down, "model.layers.{}.mlp.down_proj", "blk.{}.ffn_down");
const POST_MLP_NORM: Row = row(R::PostMlpNorm, "model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm");
const FINAL_NORM: Row = row(R::FinalNorm, "model.norm", "output_norm");
const HEAD: Row = row(R::Head, "lm_head", "output");

/// The modules of an architecture in the order of the computation, `{}` for the layer's number. A weight is the
/// module's name and `.weight`.
fn table(architecture: Architecture) -> &'static [Row] {
    match architecture {
        Architecture::Llama
        | Architecture::Mistral
        | Architecture::Qwen2
        | Architecture::Gemma
        | Architecture::Granite => {
            &[EMBEDDING, ATTENTION_NORM, QUERY, KEY, VALUE, OUTPUT, MLP_NORM, GATE, UP, DOWN, FINAL_NORM, HEAD]
        }
        Architecture::Qwen3 => &[
            EMBEDDING,
            ATTENTION_NORM,
            QUERY,
            KEY,
            VALUE,
            QUERY_NORM,
            KEY_NORM,
            OUTPUT,
            MLP_NORM,
            GATE,
            UP,
            DOWN,
            FINAL_NORM,
            HEAD,
        ],
        Architecture::Gemma2 | Architecture::Gemma3 => &[
            EMBEDDING,
            ATTENTION_NORM,
            QUERY,
            KEY,
            VALUE,
            QUERY_NORM,
            KEY_NORM,
            OUTPUT,
            POST_ATTENTION_NORM,
            PRE_MLP_NORM,
            GATE,
            UP,
            DOWN,
            POST_MLP_NORM,
            FINAL_NORM,
            HEAD,
        ],
        Architecture::Phi3 => {
            &[EMBEDDING, ATTENTION_NORM, QUERY_KEY_VALUE, OUTPUT, MLP_NORM, GATE_UP, DOWN, FINAL_NORM, HEAD]
        }
        Architecture::Olmo2 => &[
            EMBEDDING,
            QUERY,
            KEY,
            VALUE,
            QUERY_NORM,
            KEY_NORM,
            OUTPUT,
            POST_ATTENTION_NORM,
            GATE,
            UP,
            DOWN,
            POST_MLP_NORM,
            FINAL_NORM,
            HEAD,
        ],
    }
}

impl Row {
    fn pattern(&self, layout: Layout) -> &'static str {
        match layout {
            Layout::HuggingFace => self.hugging_face,
            Layout::Gguf => self.gguf,
        }
    }

    fn name(&self, layer: usize, layout: Layout) -> String {
        self.pattern(layout).replace("{}", &layer.to_string())
    }

    fn is_of_layer(&self) -> bool {
        self.hugging_face.contains("{}")
    }
}

impl ModuleRole {
    fn shape(self, c: &DecoderConfig) -> Vec<usize> {
        let (hidden, ffn, queries, keys) =
            (c.hidden_size, c.intermediate_size, c.heads * c.head_dim, c.kv_heads * c.head_dim);
        match self {
            Self::Embedding | Self::Head => vec![c.vocab_size, hidden],
            Self::AttentionNorm | Self::PostAttentionNorm | Self::MlpNorm | Self::PostMlpNorm | Self::FinalNorm => {
                vec![hidden]
            }
            Self::Query => vec![queries, hidden],
            Self::Key | Self::Value => vec![keys, hidden],
            Self::QueryKeyValue => vec![queries + 2 * keys, hidden],
            Self::QueryNorm => vec![if c.qk_norm == Some(QkNorm::WholeProjection) { queries } else { c.head_dim }],
            Self::KeyNorm => vec![if c.qk_norm == Some(QkNorm::WholeProjection) { keys } else { c.head_dim }],
            Self::AttentionOutput => vec![hidden, queries],
            Self::Gate | Self::Up => vec![ffn, hidden],
            Self::GateUp => vec![2 * ffn, hidden],
            Self::Down => vec![hidden, ffn],
        }
    }

    fn is_in(self, c: &DecoderConfig) -> bool {
        match self {
            Self::AttentionNorm | Self::MlpNorm => c.norms.before(),
            Self::PostAttentionNorm | Self::PostMlpNorm => c.norms.after(),
            Self::QueryNorm | Self::KeyNorm => c.qk_norm.is_some(),
            Self::Query | Self::Key | Self::Value | Self::Gate | Self::Up => !c.fused_projections,
            Self::QueryKeyValue | Self::GateUp => c.fused_projections,
            Self::Head => !c.tied_embeddings,
            Self::Embedding | Self::AttentionOutput | Self::Down | Self::FinalNorm => true,
        }
    }

    fn has_bias(self, c: &DecoderConfig) -> bool {
        match self {
            Self::Query | Self::Key | Self::Value | Self::QueryKeyValue => c.attention_bias.qkv,
            Self::AttentionOutput => c.attention_bias.output,
            Self::Gate | Self::Up | Self::GateUp | Self::Down => c.mlp_bias,
            _ => false,
        }
    }
}

pub(super) fn module(config: &DecoderConfig, role: ModuleRole, layer: usize, layout: Layout) -> Option<String> {
    let row = table(config.architecture).iter().find(|r| r.role == role && role.is_in(config))?;
    Some(row.name(layer, layout))
}

pub(super) fn base_tensors(config: &DecoderConfig, layout: Layout) -> Vec<BaseTensor> {
    let rows = || table(config.architecture).iter().filter(|r| r.role.is_in(config));
    let first = rows().filter(|r| r.role == ModuleRole::Embedding).map(|r| (r, 0));
    let layers = (0..config.layers).flat_map(|layer| rows().filter(|r| r.is_of_layer()).map(move |r| (r, layer)));
    let last = rows().filter(|r| !r.is_of_layer() && r.role != ModuleRole::Embedding).map(|r| (r, 0));
    let mut tensors = Vec::new();
    for (row, layer) in first.chain(layers).chain(last) {
        let (module, shape, role) = (row.name(layer, layout), row.role.shape(config), row.role);
        if role.has_bias(config) {
            let shape = shape[..1].to_vec();
            tensors.push(BaseTensor { name: format!("{module}.bias"), role, layer, bias: true, shape });
        }
        tensors.push(BaseTensor { name: format!("{module}.weight"), role, layer, bias: false, shape });
    }
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
