//! What an architecture's config comes to: its sizes, its tensors, its model.

use std::fmt;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use llm_local_backend_common::decoder::check_count;
use serde_json::{Value, json};

use super::fields::Fields;

/// A model of candle-transformers, as far as this backend knows it.
#[derive(Clone)]
pub(super) struct Description {
    /// `model_type` of config.json.
    pub(super) name: &'static str,
    pub(super) sizes: Sizes,
    /// Every tensor, with its shape.
    pub(super) tensors: Vec<(String, Vec<usize>)>,
    /// The longest context in which what is computed is right, in tokens.
    pub(super) max_context: usize,
    /// Whether a prompt can be computed in several steps of more than one token. Some masks of candle-transformers
    /// leave out the keys that are there already.
    pub(super) takes_chunks: bool,
    /// The fields of candle-transformers' `Config`, some of which are private to it but can be read from JSON; without
    /// the length of its rotary table.
    pub(super) config: Value,
    pub(super) build: Build,
}

/// Makes a model with an empty KV cache; the tensors are shared with every other one.
pub(super) type Build = fn(Value, VarBuilder<'static>) -> candle_core::Result<Box<dyn Forward>>;

/// A model with the KV cache of one sequence.
pub(super) trait Forward {
    /// Logits after the last of `tokens`, of shape (1, n), which stand at the positions from `position` on.
    fn forward(&mut self, tokens: &Tensor, position: usize) -> candle_core::Result<Tensor>;
}

impl Description {
    /// A model with an empty KV cache for at most `context` tokens.
    pub(super) fn build(&self, context: usize, tensors: VarBuilder<'static>) -> candle_core::Result<Box<dyn Forward>> {
        let mut config = self.config.clone();
        config["max_position_embeddings"] = json!(context);
        (self.build)(config, tensors)
    }
}

impl fmt::Debug for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Description").field("name", &self.name).field("config", &self.config).finish_non_exhaustive()
    }
}

/// The sizes that every config.json has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    pub(super) ffn: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) max_positions: usize,
    /// Experts of each layer; 0 where it has none.
    pub(super) experts: usize,
}

impl Sizes {
    /// candle-transformers takes the width of a head to be the hidden size divided by the heads.
    pub(super) fn read(f: &Fields<'_>) -> Result<Self, String> {
        let (hidden, heads) = (f.size("hidden_size")?, f.size("num_attention_heads")?);
        if !hidden.is_multiple_of(heads) {
            return Err(f.wrong("num_attention_heads", &format!("a divisor of the hidden size {hidden}")));
        }
        let kv_heads = f.size_or_none("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(f.wrong("num_key_value_heads", &format!("a divisor of the {heads} heads")));
        }
        let layers = f.size("num_hidden_layers")?;
        if layers > 1 << 16 {
            return Err(f.wrong("num_hidden_layers", "at most 65536"));
        }
        f.only_size("head_dim", hidden / heads)?;
        Ok(Self {
            vocab: f.size("vocab_size")?,
            hidden,
            ffn: f.size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim: hidden / heads,
            max_positions: f.size("max_position_embeddings")?,
            experts: 0,
        })
    }

    /// Checks that `part` of a head is an even number of dimensions, which can be rotated.
    pub(super) fn check_rotated(&self, part: f64) -> Result<(), String> {
        let dims = (part * self.head_dim as f64) as usize;
        if dims > 0 && dims.is_multiple_of(2) {
            return Ok(());
        }
        let head_dim = self.head_dim;
        Err(format!("config.json: {dims} of the {head_dim} dimensions of a head are rotated; expected an even number"))
    }

    /// The fields of candle-transformers' configs that all have.
    pub(super) fn config(&self, activation: &str) -> Value {
        json!({
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "hidden_act": activation,
        })
    }
}

/// The tensors of a model, as they are named one after the other.
pub(super) struct Tensors(Vec<(String, Vec<usize>)>);

impl Tensors {
    /// The embedding, and what `layer` adds for the prefix of each layer, `model.layers.N`. Refuses layers that a
    /// checkpoint of `found` tensors cannot hold.
    pub(super) fn of_layers(s: &Sizes, found: usize, layer: impl Fn(&mut Self, &str)) -> Result<Self, String> {
        let mut tensors = Self(vec![("model.embed_tokens.weight".into(), vec![s.vocab, s.hidden])]);
        layer(&mut tensors, "model.layers.0");
        let fields = match s.experts {
            0 => format!("config.json: num_hidden_layers is {}", s.layers),
            experts => format!("config.json: num_hidden_layers is {} and num_local_experts is {experts}", s.layers),
        };
        check_count(&fields, s.layers, tensors.0.len() - 1, 1, found)?;
        for n in 1..s.layers {
            layer(&mut tensors, &format!("model.layers.{n}"));
        }
        Ok(tensors)
    }

    /// Queries, keys, values with biases if `qkv_bias`; the output projection `output` with one if `output_bias`.
    pub(super) fn attention(&mut self, s: &Sizes, module: &str, output: &str, qkv_bias: bool, output_bias: bool) {
        let (queries, keys) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        for (name, rows) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
            self.linear(&format!("{module}.{name}"), rows, s.hidden, qkv_bias);
        }
        self.linear(&format!("{module}.{output}"), s.hidden, queries, output_bias);
    }

    pub(super) fn linear(&mut self, module: &str, rows: usize, columns: usize, bias: bool) {
        self.0.push((format!("{module}.weight"), vec![rows, columns]));
        if bias {
            self.0.push((format!("{module}.bias"), vec![rows]));
        }
    }

    pub(super) fn norm(&mut self, module: &str, size: usize, bias: bool) {
        self.0.push((format!("{module}.weight"), vec![size]));
        if bias {
            self.0.push((format!("{module}.bias"), vec![size]));
        }
    }

    pub(super) fn done(self) -> Vec<(String, Vec<usize>)> {
        self.0
    }
}
