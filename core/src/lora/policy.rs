//! What is done with adapters, and what an application lets pass.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How adapters get into a model.
///
/// As data: `"auto"`, `"keep-unmerged"`, `"merge-dequantized"`, `{ "merge-requantized": { "max_error": 0.1 } }`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
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
    /// Merged, and what was quantized is quantized again, as it was. That can erase an adapter, so it is measured at every
    /// load, and refused above a limit.
    ///
    /// Where the backend can run the adapters unmerged, two models are loaded for that, one after the other: that with the
    /// adapters beside the weights, and the merged one. Where it cannot, there are three, and what is lost is measured
    /// against a merge into f16 instead ([`AdapterPolicy::MergeDequantized`]), which must fit the memory that is available.
    /// A head that leaves a packed embedding (MLX) to which it was tied becomes f16, and is not quantized again.
    MergeRequantized {
        /// The largest part of the adapters' effect that may be lost: on probe prompts, the Euclidean distance of the logits
        /// after requantizing from those with the adapters unmerged (or merged into f16, as above), over the distance of the latter from those of the
        /// base alone. At 1 as much is lost as the adapters do.
        max_error: f32,
    },
}

impl AdapterPolicy {
    /// Checks what serde cannot.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a limit that is not finite and above 0.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::MergeRequantized { max_error } if !max_error.is_finite() || *max_error <= 0.0 => {
                let reason =
                    format!("`max_error` is {max_error}; expected a finite number above 0, such as 0.1 for a tenth");
                Err(Error::invalid_spec("adapter_policy", reason))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for AdapterPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::KeepUnmerged => f.write_str("keep-unmerged"),
            Self::MergeDequantized => f.write_str("merge-dequantized"),
            Self::MergeRequantized { max_error } => write!(f, "merge-requantized, at most {max_error} lost"),
        }
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
    /// Fields of its config that are not known and set to something; they are left unread.
    UnknownFields,
    /// No effect: nothing of it applies, all its values are zeros, or its scale and weight are too small for f32.
    NoEffect,
}

impl Allowance {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::UnusedTensors, Self::UndeclaredTensors, Self::MissingTensors, Self::UnknownFields, Self::NoEffect];

    /// Its name in a spec.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnusedTensors => "unused-tensors",
            Self::UndeclaredTensors => "undeclared-tensors",
            Self::MissingTensors => "missing-tensors",
            Self::UnknownFields => "unknown-fields",
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
