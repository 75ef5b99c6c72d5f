//! Rotary position embeddings from config.json: `rope_parameters` of transformers 5, or `rope_theta`, `rope_scaling`,
//! `partial_rotary_factor` and `rope_local_base_freq` of transformers 4.

use super::{Architecture, Rope, RopeScaling, config_json::usize_or_default, json_fields::Fields};
use crate::Result;

/// Reads the rotation of heads of `head_dim` dimensions, and that of layers with a window where it is another. Where both
/// forms are there, they must agree.
pub(super) fn ropes(
    config: Fields<'_>,
    architecture: Architecture,
    head_dim: usize,
    max_positions: usize,
) -> Result<(Rope, Option<Rope>)> {
    let family = architecture.family();
    let new = config.object("rope_parameters", "rope_parameters.")?;
    let old = config.object("rope_scaling", "rope_scaling.")?;
    let model = Model { config, architecture, head_dim, max_positions };
    // Phi-3 has it without a scaling too, for which alone it counts.
    config.usize("original_max_position_embeddings")?;
    let Some(local_theta) = family.local_theta else {
        return Ok((model.rope(new, old, "rope_theta", family.theta)?, None));
    };

    let (mut full, mut sliding) = (None, None);
    if let Some(new) = new {
        full = new.object("full_attention", "rope_parameters.full_attention.")?;
        sliding = new.object("sliding_attention", "rope_parameters.sliding_attention.")?;
        if let Some(key) = new.keys().find(|key| !["full_attention", "sliding_attention"].contains(&key.as_str())) {
            return Err(new.wrong(key, "full_attention and sliding_attention, each with the parameters of its layers"));
        }
    }
    let local = model.rope(sliding, None, "rope_local_base_freq", local_theta)?;
    Ok((model.rope(full, old, "rope_theta", family.theta)?, Some(local)))
}

/// What the rotation of a model depends on, beside its own fields.
struct Model<'a> {
    config: Fields<'a>,
    architecture: Architecture,
    head_dim: usize,
    max_positions: usize,
}

impl Model<'_> {
    /// One rotation, by the two forms that it may have. `theta` is the name of its base at the top of config.json.
    fn rope(&self, new: Option<Fields<'_>>, old: Option<Fields<'_>>, theta: &str, default_theta: f64) -> Result<Rope> {
        let config = self.config;
        let base = one_value([(Some(config), theta), (new, "rope_theta"), (old, "rope_theta")])?;
        let name = "partial_rotary_factor";
        let partial = one_value([(Some(config), name), (new, name), (old, name)])?.unwrap_or(1.0);
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(config.error(format!("{name} is {partial}; expected more than 0, and at most 1")));
        }
        if partial != 1.0 && !self.architecture.family().has(name) {
            let architecture = self.architecture.name();
            return Err(config.error(format!(
                "{name} is {partial}; expected 1, or no such field, for the architecture {architecture}"
            )));
        }
        // Rounded down, as transformers does.
        let dims = (self.head_dim as f64 * partial) as usize;

        let read = |fields: Option<Fields<'_>>| fields.map(|f| scaling(self, f, dims / 2)).transpose();
        let scaling = match (read(new)?, read(old)?) {
            (Some(new), Some(old)) if new != old => {
                return Err(config.error(format!(
                    "rope_parameters and rope_scaling disagree: {new:?} against {old:?}; remove the one that is wrong"
                )));
            }
            (new, old) => new.or(old).unwrap_or(RopeScaling::None),
        };
        Ok(Rope::new(base.unwrap_or(default_theta), dims).with_scaling(scaling))
    }
}

/// A number that may stand in several places, but only as one value.
fn one_value(places: [(Option<Fields<'_>>, &str); 3]) -> Result<Option<f64>> {
    let mut found: Option<(String, f64)> = None;
    for (fields, name) in places {
        let Some(fields) = fields else { continue };
        let Some(value) = fields.f64(name)? else { continue };
        match &found {
            Some((first, other)) if *other != value => {
                let path = fields.path(name);
                return Err(
                    fields.error(format!("{first} is {other}, but {path} is {value}; remove the one that is wrong"))
                );
            }
            _ => found = Some((fields.path(name), value)),
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
            // Beside `factor` in configs of DeepSeek: llama.cpp's name of a number that transformers does not read.
            "attn_factor",
        ],
        _ => &["factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"],
    }
}

fn scaling(model: &Model<'_>, rope: Fields<'_>, pairs: usize) -> Result<RopeScaling> {
    let kind = match (rope.str("rope_type")?, rope.str("type")?) {
        (Some(new), Some(old)) if new != old => {
            return Err(rope.error(format!("rope_type is {new}, but type is {old}; remove the one that is wrong")));
        }
        (new, old) => match new.or(old).unwrap_or("default") {
            "su" => "longrope", // Phi-3's first names for it
            "yarn" if model.architecture == Architecture::Phi3 => "longrope",
            kind => kind,
        },
    };
    if !["default", "linear", "dynamic", "llama3", "yarn", "longrope"].contains(&kind) {
        let name = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        return Err(rope.wrong(name, "default, linear, dynamic, llama3, yarn or longrope"));
    }
    let shared = ["rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"];
    if let Some(key) = rope.keys().find(|k| !shared.contains(&k.as_str()) && !known_keys(kind).contains(&k.as_str())) {
        return Err(rope.wrong(key, &format!("no such field with the rope type {kind}")));
    }

    let number = |name: &str| rope.required(name, rope.positive(name)?, "a number above 0");
    let original = || original_max_positions(model, rope);

    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: number("factor")?, original_max_positions: original()? },
        "llama3" => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high <= low {
                return Err(rope.wrong("high_freq_factor", &format!("more than low_freq_factor, which is {low}")));
            }
            RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original()?,
            }
        }
        "yarn" => RopeScaling::Yarn {
            factor: number("factor")?,
            original_max_positions: original()?,
            beta_fast: rope.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: rope.positive("beta_slow")?.unwrap_or(1.0),
            attention_factor: rope.positive("attention_factor")?,
            mscale: rope.f64("mscale")?,
            mscale_all_dim: rope.f64("mscale_all_dim")?,
            truncate: rope.bool("truncate")?.unwrap_or(true),
        },
        _ => {
            let factors = |name: &str| -> Result<Vec<f64>> {
                let list = rope.required(name, rope.numbers(name)?, "a list of numbers")?;
                if list.len() != pairs || list.iter().any(|x| !(x.is_finite() && *x > 0.0)) {
                    return Err(rope.wrong(name, &format!("{pairs} numbers above 0, one per pair of dimensions")));
                }
                Ok(list)
            };
            RopeScaling::LongRope {
                short_factor: factors("short_factor")?,
                long_factor: factors("long_factor")?,
                original_max_positions: original()?,
                attention_factor: rope.positive("attention_factor")?,
                factor: rope.positive("factor")?,
            }
        }
    })
}

/// The context of pre-training: the longest one, if no field says otherwise.
fn original_max_positions(model: &Model<'_>, rope: Fields<'_>) -> Result<usize> {
    let name = "original_max_position_embeddings";
    let found = match (rope.usize(name)?, model.config.usize(name)?) {
        (Some(inner), Some(outer)) if inner != outer => {
            return Err(rope.wrong(name, &format!("{outer}, as {name} at the top has; remove the one that is wrong")));
        }
        (Some(n), _) | (None, Some(n)) => n,
        (None, None) => {
            usize_or_default(model.config, model.architecture.family(), name)?.unwrap_or(model.max_positions)
        }
    };
    if found == 0 { Err(rope.wrong(name, "at least 1")) } else { Ok(found) }
}
