//! How several adapters become one change.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// How several adapters, each with a weight, become one change: the exact sum, or one of PEFT's combinations.
///
/// Source of the kinds and of their rules: PEFT `src/peft/tuners/lora/model.py`, `add_weighted_adapter`, and
/// `src/peft/utils/merge_utils.py`. Their names are PEFT's, with `-` for `_`. Papers: TIES arXiv:2306.01708, DARE
/// arXiv:2311.03099.
/// Serialized, it is its name, or its name with its fields: `"cat"`, `{"ties": {"density": 0.5, "majority_sign": "total"}}`.
/// As text, it is `cat` or `ties:density=0.5,majority_sign=total`.
///
/// - `density` is the share of values that are kept, above 0 and at most 1.
/// - `seed` is that of `torch.manual_seed`, of which torch's CPU generator uses the low 32 bits.
/// - The kinds that end with `-svd` work on whole deltas, and take the leading `rank` singular triples of the result. They
///   take memory and time of the base's weights' sizes, except [`Combination::Svd`] itself.
/// - `rank` is that of the result; the largest of the adapters' where it is `None`. It is less for a module where fewer
///   triples exist. PEFT's `svd_full_matrices` and `svd_driver` are no fields: they change how triples are computed, and
///   not what they are.
/// - `clamp` limits the values of both factors to plus and minus this quantile of them all, from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Combination {
    /// The sum of the weighted deltas, exactly: what a merge of several adapters is without a combination. Every kind of
    /// adapter can be summed.
    #[default]
    Sum,
    /// The sums of the weighted A and of the weighted B, each weighted by the root. Not the sum of the deltas, but of one
    /// adapter's rank.
    Linear,
    /// The factors side by side: the exact sum of the deltas as one adapter, whose rank is the sum of the ranks.
    Cat,
    /// Of A and B each, only the largest values, and of those only the ones with the sign that most have.
    Ties {
        /// The share of values that are kept.
        density: f64,
        /// How the sign is elected.
        #[serde(default)]
        majority_sign: MajoritySign,
    },
    /// Of A and B each, values chosen at random, divided by the density.
    DareLinear {
        /// The share of values that are kept, on average.
        density: f64,
        /// The seed.
        seed: u64,
    },
    /// As [`Combination::DareLinear`], and of those only the ones with the sign that most have.
    DareTies {
        /// The share of values that are kept, on average.
        density: f64,
        /// How the sign is elected.
        #[serde(default)]
        majority_sign: MajoritySign,
        /// The seed.
        seed: u64,
    },
    /// Of A and B each, only the largest values.
    MagnitudePrune {
        /// The share of values that are kept.
        density: f64,
    },
    /// The best approximation of the sum of the deltas by so many ranks.
    Svd {
        /// The rank of the result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rank: Option<usize>,
        /// The quantile that values are clamped to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clamp: Option<f64>,
    },
    /// [`Combination::Ties`] of whole deltas.
    TiesSvd {
        /// The share of values that are kept.
        density: f64,
        /// How the sign is elected.
        #[serde(default)]
        majority_sign: MajoritySign,
        /// The rank of the result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rank: Option<usize>,
        /// The quantile that values are clamped to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clamp: Option<f64>,
    },
    /// [`Combination::DareLinear`] of whole deltas.
    DareLinearSvd {
        /// The share of values that are kept, on average.
        density: f64,
        /// The seed.
        seed: u64,
        /// The rank of the result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rank: Option<usize>,
        /// The quantile that values are clamped to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clamp: Option<f64>,
    },
    /// [`Combination::DareTies`] of whole deltas.
    DareTiesSvd {
        /// The share of values that are kept, on average.
        density: f64,
        /// How the sign is elected.
        #[serde(default)]
        majority_sign: MajoritySign,
        /// The seed.
        seed: u64,
        /// The rank of the result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rank: Option<usize>,
        /// The quantile that values are clamped to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clamp: Option<f64>,
    },
    /// [`Combination::MagnitudePrune`] of whole deltas.
    MagnitudePruneSvd {
        /// The share of values that are kept.
        density: f64,
        /// The rank of the result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rank: Option<usize>,
        /// The quantile that values are clamped to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clamp: Option<f64>,
    },
}

/// How the sign of a value is elected among the adapters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MajoritySign {
    /// That of the sum of the values.
    #[default]
    Total,
    /// That of most of the values.
    Frequency,
}

impl Combination {
    /// Its name, as it is serialized.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Linear => "linear",
            Self::Cat => "cat",
            Self::Ties { .. } => "ties",
            Self::DareLinear { .. } => "dare-linear",
            Self::DareTies { .. } => "dare-ties",
            Self::MagnitudePrune { .. } => "magnitude-prune",
            Self::Svd { .. } => "svd",
            Self::TiesSvd { .. } => "ties-svd",
            Self::DareLinearSvd { .. } => "dare-linear-svd",
            Self::DareTiesSvd { .. } => "dare-ties-svd",
            Self::MagnitudePruneSvd { .. } => "magnitude-prune-svd",
        }
    }

    /// Checks what can be checked without adapters.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that names the field.
    pub fn validate(&self) -> Result<()> {
        let invalid =
            |field, reason| Err(Error::invalid_spec(format!("{} of the combination {}", field, self.name()), reason));
        if let Some(density) = self.density()
            && !(density > 0.0 && density <= 1.0)
        {
            return invalid("density", format!("expected a share above 0 and at most 1, found {density}"));
        }
        if self.rank() == Some(0) {
            return invalid("rank", "expected 1 or more, found 0".into());
        }
        match self.clamp() {
            Some(clamp) if !(0.0..=1.0).contains(&clamp) => {
                invalid("clamp", format!("expected a quantile from 0 to 1, found {clamp}"))
            }
            _ => Ok(()),
        }
    }

    /// The share of values that are kept, of those that keep some.
    pub const fn density(&self) -> Option<f64> {
        match *self {
            Self::Sum | Self::Linear | Self::Cat | Self::Svd { .. } => None,
            Self::Ties { density, .. }
            | Self::DareLinear { density, .. }
            | Self::DareTies { density, .. }
            | Self::MagnitudePrune { density }
            | Self::TiesSvd { density, .. }
            | Self::DareLinearSvd { density, .. }
            | Self::DareTiesSvd { density, .. }
            | Self::MagnitudePruneSvd { density, .. } => Some(density),
        }
    }

    /// How the sign of a value is elected, of those that add only values of one sign.
    pub const fn majority_sign(&self) -> Option<MajoritySign> {
        match *self {
            Self::Ties { majority_sign, .. }
            | Self::DareTies { majority_sign, .. }
            | Self::TiesSvd { majority_sign, .. }
            | Self::DareTiesSvd { majority_sign, .. } => Some(majority_sign),
            _ => None,
        }
    }

    /// The seed, of those that are random.
    pub const fn seed(&self) -> Option<u64> {
        match *self {
            Self::DareLinear { seed, .. }
            | Self::DareTies { seed, .. }
            | Self::DareLinearSvd { seed, .. }
            | Self::DareTiesSvd { seed, .. } => Some(seed),
            _ => None,
        }
    }

    /// Whether it works on whole deltas, and cuts the result to a rank.
    pub const fn is_of_deltas(&self) -> bool {
        matches!(
            self,
            Self::Svd { .. }
                | Self::TiesSvd { .. }
                | Self::DareLinearSvd { .. }
                | Self::DareTiesSvd { .. }
                | Self::MagnitudePruneSvd { .. }
        )
    }

    /// The rank that is asked for, of those that cut whole deltas to one.
    pub const fn rank(&self) -> Option<usize> {
        match *self {
            Self::Svd { rank, .. }
            | Self::TiesSvd { rank, .. }
            | Self::DareLinearSvd { rank, .. }
            | Self::DareTiesSvd { rank, .. }
            | Self::MagnitudePruneSvd { rank, .. } => rank,
            _ => None,
        }
    }

    /// The quantile that values are clamped to, of those that do so.
    pub const fn clamp(&self) -> Option<f64> {
        match *self {
            Self::Svd { clamp, .. }
            | Self::TiesSvd { clamp, .. }
            | Self::DareLinearSvd { clamp, .. }
            | Self::DareTiesSvd { clamp, .. }
            | Self::MagnitudePruneSvd { clamp, .. } => clamp,
            _ => None,
        }
    }
}

/// The name, and behind a colon the fields that are set: `ties:density=0.5,majority_sign=total`.
impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        // What is serialized is the name alone, or an object with one object in it.
        let value = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        let fields = value.get(self.name()).and_then(Value::as_object);
        for (at, (field, value)) in fields.into_iter().flatten().enumerate() {
            f.write_str(if at == 0 { ":" } else { "," })?;
            match value {
                Value::String(text) => write!(f, "{field}={text}")?,
                other => write!(f, "{field}={other}")?,
            }
        }
        Ok(())
    }
}

/// From what [`Combination`] is as text, with `-` or `_` in names of fields, or from JSON.
impl FromStr for Combination {
    type Err = Error;

    /// # Errors
    /// [`Error::InvalidSpec`] that names the combination or field and what was expected.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = |reason: String| Error::invalid_spec("combination", format!("`{text}`: {reason}"));
        let value = match text.starts_with(['{', '"']) {
            true => serde_json::from_str(text).map_err(|e| invalid(e.to_string()))?,
            false => by_text(text).map_err(invalid)?,
        };
        let combination: Self = serde_json::from_value(value).map_err(|e| invalid(e.to_string()))?;
        combination.validate()?;
        Ok(combination)
    }
}

/// What `name:field=value,field=value` is as data.
fn by_text(text: &str) -> Result<Value, String> {
    let (name, listed) = text.split_once(':').unwrap_or((text, ""));
    let mut fields = Map::new();
    for field in listed.split(',').filter(|field| !field.is_empty()) {
        let (field, value) = field
            .split_once('=')
            .ok_or_else(|| format!("`{field}` is no field; expected fields as in `ties:density=0.5`"))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        if fields.insert(field.replace('-', "_"), value).is_some() {
            return Err(format!("`{field}` stands there twice"));
        }
    }
    let has_fields =
        ![Combination::Sum, Combination::Linear, Combination::Cat].iter().any(|plain| plain.name() == name);
    Ok(if has_fields || !fields.is_empty() {
        Value::Object(Map::from_iter([(name.to_owned(), Value::Object(fields))]))
    } else {
        Value::from(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_combination_as_text_is_the_same_as_data() {
        for (text, json) in [
            ("sum", r#""sum""#),
            ("cat", r#""cat""#),
            ("ties:density=0.5,majority_sign=total", r#"{"ties":{"density":0.5}}"#),
            ("ties:density=0.25,majority_sign=frequency", r#"{"ties":{"density":0.25,"majority_sign":"frequency"}}"#),
            ("dare-linear:density=0.5,seed=7", r#"{"dare-linear":{"density":0.5,"seed":7}}"#),
            ("svd", r#"{"svd":{}}"#),
            ("svd:clamp=0.99,rank=8", r#"{"svd":{"rank":8,"clamp":0.99}}"#),
        ] {
            let by_text: Combination = text.parse().unwrap();
            assert_eq!(by_text, json.parse().unwrap(), "{text}");
            assert_eq!(by_text, serde_json::from_str(json).unwrap(), "{text}");
            assert_eq!(by_text.to_string(), text);
        }
        assert_eq!("ties:majority-sign=total,density=1".parse::<Combination>().unwrap().density(), Some(1.0));
    }

    #[test]
    fn what_is_wrong_with_a_combination_as_text_is_named() {
        for (text, why) in [
            ("tie:density=1", "`tie`"),
            ("ties", "density"),
            ("ties:density", "`density` is no field"),
            ("ties:density=much", "much"),
            ("ties:density=2", "found 2"),
            ("ties:density=1,density=1", "twice"),
            ("ties:density=1,rank=3", "rank"),
            ("cat:rank=3", "cat"),
            ("dare-linear:density=0.5", "seed"),
            ("{", "EOF"),
            ("", "variant"),
        ] {
            let error = text.parse::<Combination>().unwrap_err();
            assert_eq!(error.code(), "invalid_spec");
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }
}
