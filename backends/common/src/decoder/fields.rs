//! Values of a description that no decoder of a backend computes.

use llm_local_core::{
    Error,
    model::{Activation, DecoderConfig, Layout, QkNorm, Rope, RopeScaling},
};

/// Checks the values of a description against what decoders here compute: dense feed-forward blocks, known activations and
/// norms, and rotary frequencies that change at one length.
///
/// # Errors
/// Which value cannot be run, by its name in config.json or in GGUF metadata, what it is and what would be; without the
/// model's id.
pub fn check_fields(c: &DecoderConfig, layout: Layout) -> Result<(), String> {
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
    let long = frequencies(&c.rope, c.max_positions)?;
    let local = c.local_rope.as_ref().map(|rope| frequencies(rope, c.max_positions)).transpose()?.flatten();
    match (long, local) {
        (Some(all), Some(local)) if all != local => Err(format!(
            "rotary frequencies change beyond {all} tokens, and those of windowed layers beyond {local}; this backend runs one such length"
        )),
        _ => Ok(()),
    }
}

/// Computes what the load will compute, unless that needs tensors: those are there only then. Gives the length beyond
/// which the frequencies are others.
fn frequencies(rope: &Rope, max_positions: usize) -> Result<Option<usize>, String> {
    if matches!(rope.scaling, RopeScaling::Divisors { .. } | RopeScaling::LongRopeTensors { .. }) {
        return Ok(None);
    }
    let mut tensor = |name: &str| Err(Error::load(name, "rotary frequencies without tensors asked for one"));
    match rope.resolve("", max_positions, &mut tensor) {
        Ok(resolved) => Ok(resolved.beyond.map(|(original, _)| original)),
        // Without the model's id: whoever passes this on says which model it is about.
        Err(Error::UnsupportedModelFormat { reason, .. }) => Err(reason),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use llm_local_core::model::Architecture;

    use super::*;
    use crate::decoder::tests::description;

    fn longrope(original_max_positions: usize) -> Rope {
        let (short_factor, long_factor) = (vec![1.0; 8], vec![2.0; 8]);
        let scaling = RopeScaling::LongRope {
            short_factor,
            long_factor,
            original_max_positions,
            attention_factor: None,
            factor: None,
        };
        Rope::new(1e4, 16).with_scaling(scaling)
    }

    #[test]
    fn frequencies_change_at_one_length() {
        let mut c = description("arch-phi3", Some("arch-phi3.longrope"));
        assert_eq!((c.architecture, check_fields(&c, Layout::HuggingFace)), (Architecture::Phi3, Ok(())));
        for (local, fits) in [(Rope::new(1e4, 16), true), (longrope(40), true), (longrope(41), false)] {
            c.local_rope = Some(local);
            let found = check_fields(&c, Layout::HuggingFace);
            assert_eq!(found.is_ok(), fits);
            assert!(fits || found.unwrap_err().contains("beyond 40 tokens, and those of windowed layers beyond 41"));
        }
    }
}
