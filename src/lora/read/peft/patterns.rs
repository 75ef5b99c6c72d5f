//! `rank_pattern` and `alpha_pattern`, in which the order counts.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

use super::fields::Fields;
use crate::lora::targets::Overrides;

const RANKS: &str = "rank_pattern";
const ALPHAS: &str = "alpha_pattern";

/// Ranks and alphas that differ by module.
pub(super) struct Patterns {
    ranks: Overrides<usize>,
    alphas: Overrides<f64>,
}

impl Patterns {
    /// Reads both from a config and from the `bytes` that it was read from, which have them in their order. The error
    /// names the field.
    pub(super) fn new(fields: &Fields<'_>, bytes: &[u8]) -> Result<Self, String> {
        for key in [RANKS, ALPHAS] {
            if let Some(other) = fields.get(key).filter(|value| !value.is_object()) {
                return Fields::wrong(key, "an object with a value by module, or null", other);
            }
        }
        let Ordered { rank_pattern, alpha_pattern } = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        Ok(Self {
            ranks: overrides(RANKS, rank_pattern, Fields::rank)?,
            alphas: overrides(ALPHAS, alpha_pattern, Fields::alpha)?,
        })
    }

    /// The rank of `module`, if it has its own.
    pub(super) fn rank(&self, module: &str) -> Result<Option<usize>, String> {
        self.ranks.get(module)
    }

    /// The alpha of `module`, if it has its own.
    pub(super) fn alpha(&self, module: &str) -> Result<Option<f64>, String> {
        self.alphas.get(module)
    }

    pub(super) fn has_ranks(&self) -> bool {
        !self.ranks.is_empty()
    }

    pub(super) fn has_alphas(&self) -> bool {
        !self.alphas.is_empty()
    }
}

fn overrides<T: Copy>(
    field: &str,
    pairs: Option<Pairs>,
    read: fn(&str, &Value) -> Result<T, String>,
) -> Result<Overrides<T>, String> {
    let one = |(key, value): (String, Value)| Ok((key.clone(), read(&format!("{field}.{key}"), &value)?));
    let pairs = pairs.map_or_else(Vec::new, |Pairs(pairs)| pairs);
    Overrides::new(field, pairs.into_iter().map(one).collect::<Result<_, String>>()?)
}

/// The two fields of a config.
#[derive(Deserialize)]
struct Ordered {
    rank_pattern: Option<Pairs>,
    alpha_pattern: Option<Pairs>,
}

/// An object in its order.
struct Pairs(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs: Vec<(String, Value)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    // Python takes the last value but keeps the first place: what is meant is not clear.
                    if pairs.iter().any(|(other, _)| *other == key) {
                        return Err(serde::de::Error::custom(format_args!("the name `{key}` stands there twice")));
                    }
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
