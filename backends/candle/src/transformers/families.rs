//! The architectures, each with what candle-transformers 0.11.1 computes of it. What its code ignores or gets wrong is
//! refused here; what follows from more tokens than it gets right bounds the context.

use candle_core::{Error, Result as CandleResult, Tensor};
use candle_transformers::models::{mixtral, olmo, phi, stable_lm, starcoder2};
use serde_json::{Value, from_value, json};

use super::{
    description::{Description, Forward, Sizes, Tensors},
    fields::Fields,
};

/// Experts of a layer that are believed: twice those of the widest model published, Switch-C (arXiv:2101.03961). The
/// tensors of one layer are listed before they are counted.
const MOST_EXPERTS: usize = 4096;

/// An architecture of candle-transformers.
pub(super) struct Family {
    /// `model_type` of config.json.
    pub(super) name: &'static str,
    /// The class in `architectures` of config.json.
    pub(super) class: &'static str,
    /// What a config comes to, of a checkpoint with so many tensors.
    pub(super) describe: fn(&Fields<'_>, usize) -> Result<Description, String>,
}

/// All of them.
pub(super) const FAMILIES: [Family; 5] = [
    Family { name: "mixtral", class: "MixtralForCausalLM", describe: mixtral },
    Family { name: "olmo", class: "OlmoForCausalLM", describe: olmo },
    Family { name: "phi", class: "PhiForCausalLM", describe: phi },
    Family { name: "stablelm", class: "StableLmForCausalLM", describe: stablelm },
    Family { name: "starcoder2", class: "Starcoder2ForCausalLM", describe: starcoder2 },
];

/// Sparse experts. The sliding window reaches one key too far and not beyond a step's own tokens, so that the context
/// ends where it begins to count.
fn mixtral(f: &Fields<'_>, found: usize) -> Result<Description, String> {
    let s = Sizes::read(f)?;
    let (theta, _) = f.rope(1e6, None)?;
    f.only_bool("tie_word_embeddings", false, false)?;
    let max_context = window_or_all(f, &s)?;
    let (experts, per_token) = (f.size("num_local_experts")?, f.size("num_experts_per_tok")?);
    if experts > MOST_EXPERTS {
        return Err(f.wrong("num_local_experts", &format!("at most {MOST_EXPERTS}")));
    }
    if per_token > experts {
        return Err(f.wrong("num_experts_per_tok", &format!("at most num_local_experts, which is {experts}")));
    }
    let s = Sizes { experts, ..s };
    let mut tensors = Tensors::of_layers(&s, found, |t, layer| {
        t.norm(&format!("{layer}.input_layernorm"), s.hidden, false);
        t.attention(&s, &format!("{layer}.self_attn"), "o_proj", false, false);
        t.norm(&format!("{layer}.post_attention_layernorm"), s.hidden, false);
        t.linear(&format!("{layer}.block_sparse_moe.gate"), experts, s.hidden, false);
        for n in 0..experts {
            let expert = format!("{layer}.block_sparse_moe.experts.{n}");
            t.linear(&format!("{expert}.w1"), s.ffn, s.hidden, false);
            t.linear(&format!("{expert}.w2"), s.hidden, s.ffn, false);
            t.linear(&format!("{expert}.w3"), s.ffn, s.hidden, false);
        }
    })?;
    tensors.norm("model.norm", s.hidden, false);
    tensors.linear("lm_head", s.vocab, s.hidden, false);
    let more = json!({
        "rms_norm_eps": f.number("rms_norm_eps")?,
        "rope_theta": theta,
        "sliding_window": s.max_positions,
        "num_experts_per_tok": per_token,
        "num_local_experts": experts,
        "use_flash_attn": false,
    });
    Ok(Description {
        name: "mixtral",
        tensors: tensors.done(),
        max_context,
        takes_chunks: true,
        config: merged(s.config(f.activation()?), more),
        build: |config, tensors| boxed(mixtral::Model::new(&from_value(config).map_err(Error::wrap)?, tensors)?),
        sizes: s,
    })
}

/// Norms without weights, with the epsilon 1e-5.
fn olmo(f: &Fields<'_>, found: usize) -> Result<Description, String> {
    let s = Sizes::read(f)?;
    let (theta, _) = f.rope(1e4, None)?;
    let tied = f.bool("tie_word_embeddings", false)?;
    let bias = f.bool("attention_bias", false)?;
    f.only_size("pretraining_tp", 1)?;
    let mut tensors = Tensors::of_layers(&s, found, |t, layer| {
        t.attention(&s, &format!("{layer}.self_attn"), "o_proj", bias, bias);
        gated(t, &s, layer);
    })?;
    if !tied {
        tensors.linear("lm_head", s.vocab, s.hidden, false);
    }
    let more = json!({
        "attention_bias": bias,
        "rope_theta": theta,
        "tie_word_embeddings": tied,
        "clip_qkv": f.number_or_none("clip_qkv")?,
    });
    Ok(Description {
        name: "olmo",
        tensors: tensors.done(),
        max_context: s.max_positions,
        takes_chunks: true,
        config: merged(s.config(f.activation()?), more),
        build: |config, tensors| boxed(olmo::Model::new(&from_value(config).map_err(Error::wrap)?, tensors)?),
        sizes: s,
    })
}

/// Attention and feed-forward block side by side. Its norms of queries and keys are built in the wrong shape, and its
/// mask is as wide as a step's own tokens.
fn phi(f: &Fields<'_>, found: usize) -> Result<Description, String> {
    let s = Sizes::read(f)?;
    let (theta, part) = f.rope(1e4, Some(0.5))?;
    s.check_rotated(part)?;
    f.only_bool("tie_word_embeddings", false, false)?;
    f.only_bool("qk_layernorm", false, false)?;
    let mut tensors = Tensors::of_layers(&s, found, |t, layer| {
        t.norm(&format!("{layer}.input_layernorm"), s.hidden, true);
        t.attention(&s, &format!("{layer}.self_attn"), "dense", true, true);
        t.linear(&format!("{layer}.mlp.fc1"), s.ffn, s.hidden, true);
        t.linear(&format!("{layer}.mlp.fc2"), s.hidden, s.ffn, true);
    })?;
    tensors.norm("model.final_layernorm", s.hidden, true);
    tensors.linear("lm_head", s.vocab, s.hidden, true);
    let more = json!({
        "layer_norm_eps": f.number("layer_norm_eps")?,
        "tie_word_embeddings": false,
        "rope_theta": theta,
        "partial_rotary_factor": part,
        "qk_layernorm": false,
    });
    Ok(Description {
        name: "phi",
        tensors: tensors.done(),
        max_context: s.max_positions,
        takes_chunks: false,
        config: merged(s.config(f.activation()?), more),
        build: |config, tensors| boxed(phi::Model::new(&from_value(config).map_err(Error::wrap)?, tensors)?),
        sizes: s,
    })
}

/// Neither parallel residuals nor norms of queries and keys are there.
fn stablelm(f: &Fields<'_>, found: usize) -> Result<Description, String> {
    let s = Sizes::read(f)?;
    let (theta, part) = f.rope(1e4, Some(0.25))?;
    s.check_rotated(part)?;
    f.only_bool("tie_word_embeddings", false, false)?;
    f.only_bool("qk_layernorm", false, false)?;
    f.only_bool("use_parallel_residual", false, false)?;
    let bias = f.bool("use_qkv_bias", false)?;
    let mut tensors = Tensors::of_layers(&s, found, |t, layer| {
        t.norm(&format!("{layer}.input_layernorm"), s.hidden, true);
        t.attention(&s, &format!("{layer}.self_attn"), "o_proj", bias, false);
        t.norm(&format!("{layer}.post_attention_layernorm"), s.hidden, true);
        gated(t, &s, layer);
    })?;
    tensors.norm("model.norm", s.hidden, true);
    tensors.linear("lm_head", s.vocab, s.hidden, false);
    let more = json!({
        "layer_norm_eps": f.number("layer_norm_eps")?,
        "rope_theta": theta,
        "partial_rotary_factor": part,
        "use_qkv_bias": bias,
        "use_cache": true,
    });
    Ok(Description {
        name: "stablelm",
        tensors: tensors.done(),
        max_context: s.max_positions,
        takes_chunks: true,
        config: merged(s.config(f.activation()?), more),
        build: |config, tensors| boxed(stable_lm::Model::new(&from_value(config).map_err(Error::wrap)?, tensors)?),
        sizes: s,
    })
}

/// The head is always the embedding. The sliding window is as wrong as Mixtral's.
fn starcoder2(f: &Fields<'_>, found: usize) -> Result<Description, String> {
    let s = Sizes::read(f)?;
    let (theta, _) = f.rope(1e4, None)?;
    f.only_bool("tie_word_embeddings", true, true)?;
    f.only_text("norm_type", "layer_norm")?;
    f.only_text("mlp_type", "default")?;
    // Published checkpoints have them, and transformers computes without.
    f.unused(&[
        "activation_function",
        "attention_softmax_in_fp32",
        "layer_norm_epsilon",
        "scale_attention_softmax_in_fp32",
        "scale_attn_weights",
    ]);
    let max_context = window_or_all(f, &s)?;
    let bias = f.bool("use_bias", true)?;
    let mut tensors = Tensors::of_layers(&s, found, |t, layer| {
        t.norm(&format!("{layer}.input_layernorm"), s.hidden, true);
        t.attention(&s, &format!("{layer}.self_attn"), "o_proj", bias, bias);
        t.norm(&format!("{layer}.post_attention_layernorm"), s.hidden, true);
        t.linear(&format!("{layer}.mlp.c_fc"), s.ffn, s.hidden, bias);
        t.linear(&format!("{layer}.mlp.c_proj"), s.hidden, s.ffn, bias);
    })?;
    tensors.norm("model.norm", s.hidden, true);
    let more = json!({ "norm_epsilon": f.number("norm_epsilon")?, "rope_theta": theta, "use_bias": bias });
    Ok(Description {
        name: "starcoder2",
        tensors: tensors.done(),
        max_context,
        takes_chunks: true,
        config: merged(s.config(f.activation()?), more),
        build: |config, tensors| boxed(starcoder2::Model::new(&from_value(config).map_err(Error::wrap)?, tensors)?),
        sizes: s,
    })
}

/// A context within the sliding window, if there is one: there it hides nothing.
fn window_or_all(f: &Fields<'_>, s: &Sizes) -> Result<usize, String> {
    Ok(f.size_or_none("sliding_window")?.map_or(s.max_positions, |window| window.min(s.max_positions)))
}

fn gated(t: &mut Tensors, s: &Sizes, layer: &str) {
    t.linear(&format!("{layer}.mlp.gate_proj"), s.ffn, s.hidden, false);
    t.linear(&format!("{layer}.mlp.up_proj"), s.ffn, s.hidden, false);
    t.linear(&format!("{layer}.mlp.down_proj"), s.hidden, s.ffn, false);
}

fn merged(mut config: Value, more: Value) -> Value {
    if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
        config.extend(more);
    }
    config
}

fn boxed(model: impl Forward + 'static) -> CandleResult<Box<dyn Forward>> {
    Ok(Box::new(model))
}

impl Forward for phi::Model {
    fn forward(&mut self, tokens: &Tensor, _: usize) -> CandleResult<Tensor> {
        phi::Model::forward(self, tokens)
    }
}

impl Forward for mixtral::Model {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> CandleResult<Tensor> {
        mixtral::Model::forward(self, tokens, position)
    }
}

impl Forward for olmo::Model {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> CandleResult<Tensor> {
        olmo::Model::forward(self, tokens, position)
    }
}

impl Forward for stable_lm::Model {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> CandleResult<Tensor> {
        stable_lm::Model::forward(self, tokens, position)
    }
}

impl Forward for starcoder2::Model {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> CandleResult<Tensor> {
        starcoder2::Model::forward(self, tokens, position)
    }
}
