//! Names of tensors, per architecture and checkpoint layout.

use super::{Architecture, DecoderConfig, NormPlacement, QkNorm};

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
/// What architectures with norms after their blocks call so is applied to the attention's output; others call the norm before the
/// feed-forward block so.
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

/// What decides which modules there are.
#[derive(Clone, Copy)]
struct Parts {
    norms: NormPlacement,
    has_qk_norm: bool,
    has_fused_projections: bool,
}

impl Parts {
    fn of(c: &DecoderConfig) -> Self {
        Self { norms: c.norms, has_qk_norm: c.qk_norm.is_some(), has_fused_projections: c.fused_projections }
    }

    fn of_architecture(architecture: Architecture) -> Self {
        let family = architecture.family();
        Self {
            norms: family.norms,
            has_qk_norm: family.qk_norm.is_some(),
            has_fused_projections: family.fused_projections,
        }
    }

    /// The modules in the order of the computation, the head included.
    fn rows(self) -> impl Iterator<Item = &'static Row> + Clone {
        let mlp_norm = if self.norms.after() { &PRE_MLP_NORM } else { &MLP_NORM };
        let all: [&Row; 18] = [
            &EMBEDDING,
            &ATTENTION_NORM,
            &QUERY,
            &KEY,
            &VALUE,
            &QUERY_KEY_VALUE,
            &QUERY_NORM,
            &KEY_NORM,
            &OUTPUT,
            &POST_ATTENTION_NORM,
            mlp_norm,
            &GATE,
            &UP,
            &GATE_UP,
            &DOWN,
            &POST_MLP_NORM,
            &FINAL_NORM,
            &HEAD,
        ];
        all.into_iter().filter(move |row| self.has(row.role))
    }

    fn has(self, role: ModuleRole) -> bool {
        match role {
            R::AttentionNorm | R::MlpNorm => self.norms.before(),
            R::PostAttentionNorm | R::PostMlpNorm => self.norms.after(),
            R::QueryNorm | R::KeyNorm => self.has_qk_norm,
            R::Query | R::Key | R::Value | R::Gate | R::Up => !self.has_fused_projections,
            R::QueryKeyValue | R::GateUp => self.has_fused_projections,
            R::Embedding | R::AttentionOutput | R::Down | R::FinalNorm | R::Head => true,
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

    fn has_bias(self, c: &DecoderConfig) -> bool {
        match self {
            Self::Query | Self::Key | Self::Value | Self::QueryKeyValue => c.attention_bias.qkv,
            Self::AttentionOutput => c.attention_bias.output,
            Self::Gate | Self::Up | Self::GateUp | Self::Down => c.mlp_bias,
            _ => false,
        }
    }
}

/// The modules of a decoder; a tied head is none.
fn rows(c: &DecoderConfig) -> impl Iterator<Item = &'static Row> + Clone + use<> {
    let is_tied = c.tied_embeddings;
    Parts::of(c).rows().filter(move |row| !(is_tied && row.role == ModuleRole::Head))
}

pub(super) fn module(config: &DecoderConfig, role: ModuleRole, layer: usize, layout: Layout) -> Option<String> {
    let row = rows(config).find(|row| row.role == role)?;
    Some(row.name(layer, layout))
}

pub(super) fn base_tensors(config: &DecoderConfig, layout: Layout) -> Vec<BaseTensor> {
    let rows = || rows(config);
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
    Parts::of_architecture(architecture).rows().find_map(|row| {
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
