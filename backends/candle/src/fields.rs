//! Values of a description that the decoder does not compute.

use llm_local_core::model::{Activation, DecoderConfig, Layout, QkNorm, RopeScaling};

/// Says which value cannot be run, what it is and what would be.
pub(crate) fn check(c: &DecoderConfig, layout: Layout) -> Result<(), String> {
    // Each field has one name in config.json and another in GGUF metadata.
    let refuse = |wrong: bool, (hf, key): (&str, &str), found: &str, supported: &str| {
        let name = if layout == Layout::Gguf { key } else { hf };
        if wrong { Err(format!("{name} is {found}; this backend runs {supported}")) } else { Ok(()) }
    };
    refuse(
        c.experts > 1,
        ("num_local_experts", "expert_count"),
        &c.experts.to_string(),
        "dense feed-forward blocks only",
    )?;
    let known = matches!(c.activation, Activation::Silu | Activation::Gelu | Activation::GeluTanh | Activation::Relu);
    refuse(!known, ("hidden_act", "the activation"), c.activation.name(), "silu, gelu, gelu_pytorch_tanh and relu")?;
    let known = matches!(c.qk_norm, None | Some(QkNorm::PerHead | QkNorm::WholeProjection));
    refuse(
        !known,
        ("the norm of queries and keys", "attn_q_norm"),
        &format!("{:?}", c.qk_norm),
        "norms per head or projection",
    )?;
    for rope in [Some(&c.rope), c.local_rope.as_ref()].into_iter().flatten() {
        let known = matches!(
            rope.scaling,
            RopeScaling::None
                | RopeScaling::Linear { .. }
                | RopeScaling::Llama3 { .. }
                | RopeScaling::Yarn { .. }
                | RopeScaling::LongRope { .. }
                | RopeScaling::Divisors { .. }
                | RopeScaling::LongRopeTensors { .. }
        );
        refuse(
            !known,
            ("rope_type", "rope.scaling.type"),
            rope.scaling.name(),
            "default, linear, llama3, yarn and longrope",
        )?;
    }
    Ok(())
}
