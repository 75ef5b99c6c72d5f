//! The layers of config.json on which the sliding window holds: `layer_types` of transformers 5, or what an
//! architecture had before it.

use super::{
    Architecture, SlidingWindow,
    config_json::usize_or_default,
    family::{Family, Window},
    json_fields::Fields,
};
use crate::Result;

/// Reads the window of a decoder of `layers` layers.
///
/// `layer_types` is what counts, as in transformers, which writes `max_window_layers` and `_sliding_window_pattern`
/// beside it with their defaults. It must agree with `sliding_window_pattern`, which only older readers follow, and with
/// architectures that have a window on all layers or on none.
pub(super) fn sliding_window(
    fields: Fields<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Option<SlidingWindow>> {
    let family = architecture.family();
    // Beside it in configs of Gemma 2, for other readers.
    let (written, again) = (fields.usize("sliding_window")?, fields.usize("sliding_window_size")?);
    if again.is_some() && again != written {
        let expected = written.map_or("no such field".to_owned(), |size| format!("{size}, as sliding_window has"));
        return Err(fields.wrong("sliding_window_size", &format!("{expected}; remove the one that is wrong")));
    }
    let is_off = family.window == Window::UpperLayers && !fields.bool("use_sliding_window")?.unwrap_or(false);
    let size = match usize_or_default(fields, family, "sliding_window")? {
        Some(_) if is_off => None,
        size => size,
    };

    let types = layer_types(fields, layers)?;
    let implied = implied(fields, family, layers, size.is_some())?;
    let must_agree = match family.window {
        Window::Nowhere | Window::Everywhere => true,
        Window::UpperLayers => false,
        Window::AllButEvery(_) => fields.get("sliding_window_pattern").is_some(),
    };
    let windowed = match types {
        Some(types) if must_agree && types != implied => {
            let expected = match family.window {
                Window::Nowhere => format!("full_attention on every layer of {}", architecture.name()),
                Window::Everywhere if size.is_some() => {
                    "sliding_attention on every layer, as sliding_window says".into()
                }
                Window::Everywhere => "full_attention on every layer, as there is no sliding_window".into(),
                _ => "the layers that sliding_window_pattern gives; remove the one that is wrong".into(),
            };
            return Err(fields.wrong("layer_types", &expected));
        }
        types => types.unwrap_or(implied),
    };
    match size {
        _ if !windowed.contains(&true) => Ok(None),
        Some(size) => Ok(Some(SlidingWindow::new(size, windowed))),
        None if is_off => Err(fields.wrong("use_sliding_window", "true, as layer_types has sliding_attention")),
        None => Err(fields.wrong("sliding_window", "a number, as there are layers of sliding_attention")),
    }
}

fn layer_types(fields: Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(types) = fields.strings("layer_types")? else { return Ok(None) };
    if types.len() != layers {
        return Err(fields.wrong("layer_types", &format!("as many as num_hidden_layers, which is {layers}")));
    }
    let is_windowed = |name: &&str| match *name {
        "sliding_attention" => Some(true),
        "full_attention" => Some(false),
        _ => None,
    };
    match types.iter().map(is_windowed).collect() {
        None => Err(fields.wrong("layer_types", "sliding_attention or full_attention on each layer")),
        types => Ok(types),
    }
}

/// The layers without `layer_types`.
fn implied(fields: Fields<'_>, family: &Family, layers: usize, is_sized: bool) -> Result<Vec<bool>> {
    // More are refused later, when all sizes are known.
    let all = 0..layers.min(1 << 16);
    Ok(match family.window {
        Window::Nowhere => vec![false; all.len()],
        Window::Everywhere => vec![is_sized; all.len()],
        Window::UpperLayers => {
            let first = usize_or_default(fields, family, "max_window_layers")?.unwrap_or(0);
            all.map(|layer| is_sized && layer >= first).collect()
        }
        Window::AllButEvery(default) => {
            let mut period = default;
            for name in ["_sliding_window_pattern", "sliding_window_pattern"] {
                match fields.usize(name)? {
                    Some(0) => return Err(fields.wrong(name, "at least 1")),
                    found => period = found.unwrap_or(period),
                }
            }
            all.map(|layer| !(layer + 1).is_multiple_of(period)).collect()
        }
    })
}
