//! Rotary position embeddings from config.json: `rope_parameters` of transformers 5, or `rope_theta`, `rope_scaling`
//! and `partial_rotary_factor` of transformers 4.

use super::{Rope, RopeScaling, json_fields::Fields};
use crate::Result;

/// `theta` if no field says otherwise, as in transformers.
const DEFAULT_THETA: f64 = 10_000.0;

/// Reads the rotation of heads of `head_dim` dimensions. Where both forms are there, they must agree.
pub(super) fn rope(config: Fields<'_>, head_dim: usize, max_positions: usize) -> Result<Rope> {
    let new = config.object("rope_parameters", "rope_parameters.")?;
    let old = config.object("rope_scaling", "rope_scaling.")?;

    let theta = one_value(config, "rope_theta", new, old)?.unwrap_or(DEFAULT_THETA);
    let partial = one_value(config, "partial_rotary_factor", new, old)?.unwrap_or(1.0);
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(config.error(format!("partial_rotary_factor is {partial}; expected more than 0, and at most 1")));
    }

    let read = |fields: Fields<'_>| scaling(config, fields, head_dim, max_positions);
    let scaling = match (new.map(read).transpose()?, old.map(read).transpose()?) {
        (Some(new), Some(old)) if new != old => {
            return Err(config.error(format!(
                "rope_parameters and rope_scaling disagree: {new:?} against {old:?}; remove the one that is wrong"
            )));
        }
        (new, old) => new.or(old).unwrap_or(RopeScaling::None),
    };
    // Rounded down, as transformers does.
    let dims = (head_dim as f64 * partial) as usize;
    Ok(Rope::new(theta, dims).with_scaling(scaling))
}

/// The number `name`, which may stand at the top, in `rope_parameters` and in `rope_scaling`, but only as one value.
fn one_value(config: Fields<'_>, name: &str, new: Option<Fields<'_>>, old: Option<Fields<'_>>) -> Result<Option<f64>> {
    let mut found: Option<(&str, f64)> = None;
    for (place, fields) in [("", Some(config)), ("rope_parameters.", new), ("rope_scaling.", old)] {
        let Some(value) = fields.map(|f| f.f64(name)).transpose()?.flatten() else { continue };
        match found {
            Some((first, other)) if other != value => {
                return Err(config.error(format!(
                    "{first}{name} is {other}, but {place}{name} is {value}; remove the one that is wrong"
                )));
            }
            _ => found = Some((place, value)),
        }
    }
    Ok(found.map(|(_, value)| value))
}

/// Every key that a kind may have beside `rope_type`, `type`, `rope_theta` and `partial_rotary_factor`.
fn known_keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "default" => &[],
        "linear" => &["factor"],
        "dynamic" => &["factor", "original_max_position_embeddings"],
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
        "yarn" => &[
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
        _ => &["factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"],
    }
}

fn scaling(config: Fields<'_>, rope: Fields<'_>, head_dim: usize, max_positions: usize) -> Result<RopeScaling> {
    let kind = match (rope.str("rope_type")?, rope.str("type")?) {
        (Some(new), Some(old)) if new != old => {
            return Err(rope.error(format!("rope_type is {new}, but type is {old}; remove the one that is wrong")));
        }
        (new, old) => new.or(old).unwrap_or("default"),
    };
    let kind = if kind == "su" { "longrope" } else { kind }; // Phi-3's first name for it
    if !["default", "linear", "dynamic", "llama3", "yarn", "longrope"].contains(&kind) {
        let name = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        return Err(rope.wrong(name, "default, linear, dynamic, llama3, yarn or longrope"));
    }
    let shared = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    if let Some(key) = rope.keys().find(|k| !shared.contains(&k.as_str()) && !known_keys(kind).contains(&k.as_str())) {
        return Err(rope.wrong(key, &format!("no such field with the rope type {kind}")));
    }

    let positive = |name: &str| -> Result<Option<f64>> {
        match rope.f64(name)? {
            Some(x) if !(x.is_finite() && x > 0.0) => Err(rope.wrong(name, "a number above 0")),
            x => Ok(x),
        }
    };
    let number = |name: &str| positive(name).and_then(|x| rope.required(name, x, "a number above 0"));
    let original = || -> Result<Option<usize>> {
        let name = "original_max_position_embeddings";
        let value = match rope.usize(name)? {
            None => config.usize(name)?, // Phi-3 has it at the top
            value => value,
        };
        if value == Some(0) { Err(rope.wrong(name, "at least 1")) } else { Ok(value) }
    };

    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "dynamic" => RopeScaling::Dynamic {
            factor: number("factor")?,
            original_max_positions: original()?.unwrap_or(max_positions),
        },
        "llama3" => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high <= low {
                return Err(rope.wrong("high_freq_factor", &format!("more than low_freq_factor, which is {low}")));
            }
            RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: rope.required(
                    "original_max_position_embeddings",
                    original()?,
                    "the context of pre-training",
                )?,
            }
        }
        "yarn" => RopeScaling::Yarn {
            factor: number("factor")?,
            original_max_positions: original()?.unwrap_or(max_positions),
            beta_fast: positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: positive("beta_slow")?.unwrap_or(1.0),
            attention_factor: positive("attention_factor")?,
            mscale: rope.f64("mscale")?,
            mscale_all_dim: rope.f64("mscale_all_dim")?,
            truncate: rope.bool("truncate")?.unwrap_or(true),
        },
        _ => {
            let factors = |name: &str| -> Result<Vec<f64>> {
                let list = rope.required(name, rope.numbers(name)?, "a list of numbers")?;
                // Partial rotary has fewer pairs than the head, so only an upper bound is known here.
                if list.is_empty() || list.len() > head_dim / 2 || list.iter().any(|x| !(x.is_finite() && *x > 0.0)) {
                    return Err(rope.wrong(name, &format!("up to {} numbers above 0", head_dim / 2)));
                }
                Ok(list)
            };
            RopeScaling::LongRope {
                short_factor: factors("short_factor")?,
                long_factor: factors("long_factor")?,
                original_max_positions: rope.required(
                    "original_max_position_embeddings",
                    original()?,
                    "the context of pre-training",
                )?,
                attention_factor: positive("attention_factor")?,
                factor: positive("factor")?,
            }
        }
    })
}
