//! Rotary position embeddings from GGUF metadata, and from the tensors of divisors that some files have instead.

use super::{
    family::LocalRope,
    keys::{Keys, required},
    tensors::Tensors,
};
use crate::{
    Result,
    model::{Rope, RopeScaling},
};

const TYPE: &str = "rope.scaling.type";
const ATTENTION_FACTOR: &str = "rope.scaling.attn_factor";
/// Divisors of llama3's rope.
const DIVISORS: &str = "rope_freqs.weight";
const SHORT: &str = "rope_factors_short.weight";
const LONG: &str = "rope_factors_long.weight";
/// Tensors that hold divisors of rotary frequencies.
pub(super) const ROPE_TENSORS: [&str; 3] = [DIVISORS, SHORT, LONG];

/// Reads the rotation of heads of `head_dim` dimensions, and that of layers with a window where it is another.
pub(super) fn ropes(
    keys: &Keys<'_>,
    tensors: &Tensors<'_>,
    head_dim: usize,
    max_positions: usize,
    has_windows: bool,
) -> Result<(Rope, Option<Rope>)> {
    let theta = keys.f64("rope.freq_base")?.unwrap_or(10_000.0);
    let dims = keys.usize("rope.dimension_count")?.unwrap_or(head_dim);
    if dims != head_dim && keys.gguf.architecture.permutes_query_key_in_gguf() {
        // Whole heads are permuted, so that pairs of fewer dimensions would not stand side by side.
        return Err(keys.wrong("rope.dimension_count", &format!("{head_dim}, the width of a head")));
    }
    keys.must_be("rope.dimension_count_swa", dims)?;
    let rope = Rope::new(theta, dims).with_scaling(scaling(keys, tensors, max_positions)?);
    if !has_windows {
        return Ok((rope, None));
    }
    let local_theta = keys.f64("rope.freq_base_swa")?;
    let local = match keys.gguf.local_rope {
        LocalRope::Scaled => Rope { theta: local_theta.unwrap_or(theta), ..rope.clone() },
        LocalRope::Unscaled(default) => Rope::new(local_theta.or(default).unwrap_or(theta), dims),
    };
    Ok(if local == rope { (rope, None) } else { (rope, Some(local)) })
}

fn scaling(keys: &Keys<'_>, tensors: &Tensors<'_>, max_positions: usize) -> Result<RopeScaling> {
    let factor = match keys.positive("rope.scaling.factor")? {
        None => keys.positive("rope.scale_linear")?, // the name in the first GGUF files
        factor => factor,
    };
    let original = keys.usize("rope.scaling.original_context_length")?.filter(|n| *n > 0).unwrap_or(max_positions);
    let attention_factor = keys.positive(ATTENTION_FACTOR)?.unwrap_or(1.0);
    // Without a type, llama.cpp takes a factor as linear.
    let kind = keys.string(TYPE)?.unwrap_or("linear");
    let by_metadata = match kind {
        "none" | "longrope" => RopeScaling::None,
        "linear" => match factor {
            None | Some(1.0) => RopeScaling::None,
            Some(factor) => RopeScaling::Linear { factor },
        },
        "yarn" => yarn(keys, factor, original, attention_factor)?,
        _ => return Err(keys.wrong(TYPE, "none, linear, yarn or longrope")),
    };

    let found: Vec<&str> = ROPE_TENSORS.into_iter().filter(|name| tensors.has(name)).collect();
    if let (Some(tensor), true) = (found.first(), by_metadata != RopeScaling::None) {
        let expected = format!("no scaling by {}, since the tensor {tensor} is there too", by_metadata.name());
        return Err(keys.wrong(if keys.get(TYPE).is_some() { TYPE } else { "rope.scaling.factor" }, &expected));
    }
    let scaling = match found.as_slice() {
        [] if kind == "longrope" => {
            return Err(keys.wrong(TYPE, &format!("the tensors {SHORT} and {LONG} with it, which are missing")));
        }
        [] => by_metadata,
        [DIVISORS] if kind != "longrope" => RopeScaling::Divisors { tensor: DIVISORS.into() },
        [SHORT, LONG] => {
            let (short, long) = (SHORT.into(), LONG.into());
            RopeScaling::LongRopeTensors { short, long, original_max_positions: original, attention_factor }
        }
        other => {
            let expected = format!("{DIVISORS} alone, or {SHORT} and {LONG}");
            return Err(tensors.error(format!("it has the tensors {}; expected {expected}", other.join(", "))));
        }
    };
    // llama.cpp multiplies cos and sin by it whatever the type is.
    match scaling {
        RopeScaling::Yarn { .. } | RopeScaling::LongRopeTensors { .. } => Ok(scaling),
        _ if attention_factor != 1.0 => Err(keys.wrong(ATTENTION_FACTOR, "1, or the type yarn or longrope")),
        _ => Ok(scaling),
    }
}

/// YaRN as the model had it: the converter writes down its attention factor and betas, which llama.cpp reads for few
/// architectures. llama.cpp's own factor, `0.1 ln(factor) + 1`, is that of an absent attention factor; `attn_factor`
/// multiplies it.
fn yarn(keys: &Keys<'_>, factor: Option<f64>, original: usize, multiplier: f64) -> Result<RopeScaling> {
    let factor = required(keys, "rope.scaling.factor", factor, "a number above 0, as the type is yarn")?;
    // Below 0 is what llama.cpp has for an absent key, and saves with 1 for the attention factor.
    let extrapolation = keys.f64("rope.scaling.yarn_ext_factor")?;
    let is_saved = extrapolation.is_some_and(|x| x < 0.0);
    if extrapolation.is_some_and(|x| x != 1.0) && !is_saved {
        return Err(keys.wrong("rope.scaling.yarn_ext_factor", "1, or no such key"));
    }
    let given = keys.positive("rope.scaling.yarn_attn_factor")?.filter(|x| !(is_saved && *x == 1.0));
    let computed = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
    let attention_factor = if multiplier == 1.0 { given } else { Some(given.unwrap_or(computed) * multiplier) };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_positions: original,
        beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        attention_factor,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    })
}
