//! Config values that candle-transformers' two Llamas ignore or get wrong.

use llm_local_core::{
    DeviceKind,
    model::{Activation, Architecture, DecoderConfig, Layout, RopeScaling},
};

/// Head widths that candle's fused attention on Metal has kernels for (`candle_nn::ops::sdpa`).
const METAL_HEAD_DIMS: [usize; 8] = [32, 64, 72, 80, 96, 128, 256, 512];

/// Says which value cannot be run, what it is and what would be.
pub(crate) fn check(c: &DecoderConfig, layout: Layout, device: DeviceKind) -> Result<(), String> {
    let gguf = layout == Layout::Gguf;
    // Each field has one name in config.json and another in GGUF metadata.
    let refuse = |wrong: bool, (hf, key): (&str, &str), found: String, supported: &str| {
        let name = if gguf { key } else { hf };
        if wrong { Err(format!("{name} is {found}; candle's Llama has {supported}")) } else { Ok(()) }
    };
    if c.architecture != Architecture::Llama {
        return Err(format!("the architecture is {}; this backend runs llama", c.architecture.name()));
    }
    refuse(
        c.head_dim.checked_mul(c.heads) != Some(c.hidden_size),
        ("head_dim", "llama.attention.key_length"),
        format!("{}", c.head_dim),
        &format!("only hidden size / heads = {}/{}", c.hidden_size, c.heads),
    )?;
    refuse(c.attention_bias.any(), ("attention_bias", "a tensor blk.N.attn_*.bias"), "there".into(), "no biases")?;
    refuse(c.mlp_bias, ("mlp_bias", "a tensor blk.N.ffn_*.bias"), "there".into(), "no biases")?;
    refuse(
        c.activation != Activation::Silu,
        ("hidden_act", "the activation"),
        c.activation.name().into(),
        "only silu",
    )?;
    if let Some(window) = &c.sliding_window {
        let names = ("sliding_window", "llama.attention.sliding_window");
        refuse(true, names, window.size.to_string(), "full attention only")?;
    }
    refuse(
        c.experts > 1,
        ("num_local_experts", "llama.expert_count"),
        c.experts.to_string(),
        "dense feed-forward blocks only",
    )?;
    refuse(
        c.rope.dims != c.head_dim,
        ("partial_rotary_factor", "llama.rope.dimension_count"),
        format!("{} of {} dimensions", c.rope.dims, c.head_dim),
        "rotary embeddings over the whole head only",
    )?;
    match &c.rope.scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Llama3 { .. } if !gguf => Ok(()),
        RopeScaling::Divisors { tensor } => {
            Err(format!("the tensor {tensor} scales rotary frequencies; candle's quantized Llama would ignore it"))
        }
        other => refuse(
            true,
            ("rope_type", "llama.rope.scaling.type"),
            other.name().into(),
            if gguf { "no scaling of rotary frequencies" } else { "only default and llama3" },
        ),
    }?;
    refuse(
        gguf && device == DeviceKind::Metal && !METAL_HEAD_DIMS.contains(&c.head_dim),
        ("head_dim", "llama.attention.key_length"),
        c.head_dim.to_string(),
        &format!("on Metal only {METAL_HEAD_DIMS:?}; choose the device cpu"),
    )
}
