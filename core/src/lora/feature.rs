//! What adapters use beside plain pairs.

use std::fmt;

/// What an adapter uses beside plain pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum AdapterFeature {
    /// alpha / sqrt(r) instead of alpha / r (arXiv:2312.03732).
    RankStabilized,
    /// Ranks that differ by module.
    RankPattern,
    /// Alphas that differ by module.
    AlphaPattern,
    /// A magnitude for each row (arXiv:2402.09353).
    Dora,
    /// A bias of B.
    LoraBias,
    /// Trained biases of the base.
    TrainedBias,
    /// Modules saved in full.
    ModulesToSave,
    /// Pairs of an embedding.
    Embedding,
    /// Base weights stored as (in, out).
    FanInFanOut,
    /// Pairs of bare parameters.
    TargetParameters,
    /// Pairs of experts' stacked weights.
    Experts,
    /// Trained rows of the embedding.
    TrainableTokens,
    /// Trained weights that were tied to others.
    WeightTying,
}

impl AdapterFeature {
    /// Its name, as its own paper or format calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RankStabilized => "rsLoRA",
            Self::RankPattern => "rank_pattern",
            Self::AlphaPattern => "alpha_pattern",
            Self::Dora => "DoRA",
            Self::LoraBias => "lora_bias",
            Self::TrainedBias => "bias",
            Self::ModulesToSave => "modules_to_save",
            Self::Embedding => "embedding LoRA",
            Self::FanInFanOut => "fan_in_fan_out",
            Self::TargetParameters => "target_parameters",
            Self::Experts => "experts",
            Self::TrainableTokens => "trainable_token_indices",
            Self::WeightTying => "ensure_weight_tying",
        }
    }
}

impl fmt::Display for AdapterFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
