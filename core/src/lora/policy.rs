//! What is done with adapters.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How adapters get into a model. As text: `auto`, `keep-unmerged`, `merge-dequantized`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AdapterPolicy {
    /// What loses nothing: merged into float weights, and run beside quantized ones.
    #[default]
    Auto,
    /// Run beside the weights, of whatever kind these are.
    KeepUnmerged,
    /// Merged into the weights as floats.
    MergeDequantized,
}

impl fmt::Display for AdapterPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::KeepUnmerged => "keep-unmerged",
            Self::MergeDequantized => "merge-dequantized",
        })
    }
}
