//! What is done with adapters, and what an application lets pass.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How adapters get into a model. As text: `auto`, `keep-unmerged`, `merge-dequantized`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AdapterPolicy {
    /// What loses nothing: merged into float weights, and run beside quantized ones; where they cannot run beside these, merged
    /// as [`AdapterPolicy::MergeDequantized`] has it, if the model then fits the memory that is available.
    #[default]
    Auto,
    /// Run beside the weights, of whatever kind these are.
    KeepUnmerged,
    /// Merged. Quantized tensors that an adapter changes become floats, which take more memory; the others stay.
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

/// Something that is an error of an adapter unless the application lets it pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Allowance {
    /// Tensors that the base has nothing for; they are left out.
    UnusedTensors,
    /// Tensors of modules that the adapter's own declaration leaves out; they are applied.
    UndeclaredTensors,
    /// Modules that the adapter declares and has no tensors for.
    MissingTensors,
    /// No effect: nothing of it applies, or its scale and weight are too small for f32. An adapter that is all zeros cannot be
    /// read in the first place.
    NoEffect,
}

impl Allowance {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::UnusedTensors, Self::UndeclaredTensors, Self::MissingTensors, Self::NoEffect];

    /// Its name in a spec.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnusedTensors => "unused-tensors",
            Self::UndeclaredTensors => "undeclared-tensors",
            Self::MissingTensors => "missing-tensors",
            Self::NoEffect => "no-effect",
        }
    }
}

impl fmt::Display for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Allowance {
    type Err = Error;

    /// # Errors
    /// [`Error::InvalidSpec`] that lists the names there are.
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|allowance| allowance.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            Error::invalid_spec("adapters.allow", format!("`{text}` is none of what can be let pass: {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_has_one_name_as_text_and_as_data() {
        for allowance in Allowance::ALL {
            let name = allowance.to_string();
            assert_eq!(name.parse::<Allowance>().unwrap(), allowance);
            assert_eq!(serde_json::to_value(allowance).unwrap(), name);
        }
        let error = "all".parse::<Allowance>().unwrap_err().to_string();
        assert!(error.contains("`all`") && error.contains("unused-tensors, undeclared-tensors"), "{error}");
    }
}
