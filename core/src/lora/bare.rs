//! Adapters whose files do not say what they are.

use serde::{Deserialize, Serialize};

/// How tensors without a config are named and laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BareFormat {
    /// `base_model.model.<module>.lora_A.weight` of shape (r, in), `.lora_B.weight` of shape (out, r).
    Peft,
    /// `<module>.lora_a` of shape (in, r), `.lora_b` of shape (r, out).
    MlxLm,
}

impl BareFormat {
    /// Its name, as [`crate::LoraAdapter::format`] has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::MlxLm => "mlx-lm",
        }
    }
}
