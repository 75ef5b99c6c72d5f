//! How several adapters become one change.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How several adapters, each with a weight, become one change: the exact sum, or one of PEFT's combinations.
///
/// Source of the kinds and of their rules: PEFT `src/peft/tuners/lora/model.py`, `add_weighted_adapter`, and
/// `src/peft/utils/merge_utils.py`. Their names are PEFT's, with `-` for `_`. Papers: TIES arXiv:2306.01708, DARE
/// arXiv:2311.03099.
/// Serialized, it is its name, or its name with its fields: `"cat"`, `{"ties": {"density": 0.5, "majority_sign": "total"}}`.
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
