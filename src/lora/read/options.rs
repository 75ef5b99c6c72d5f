//! What a caller can say of files that do not say it.

use llm_local_core::lora::BareFormat;

/// What is known of an adapter that its files do not say. What they do say is never overruled: giving it too is an error.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct ReadOptions {
    /// What `B @ A` is multiplied by, of tensors without a config, of an mlx-lm config without a scale, and of mlx-vlm's
    /// own format, whose scale depends on the version that trained it.
    pub scale: Option<f64>,
    /// How the tensors of a safetensors file without a config are named and laid out.
    pub format: Option<BareFormat>,
}

impl ReadOptions {
    /// Nothing: the files must say it all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what `B @ A` is multiplied by: alpha / r of PEFT's (alpha / sqrt(r) with rsLoRA), `scale` of mlx-lm's.
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Sets how the tensors of a file without a config are named and laid out.
    pub fn with_format(mut self, format: BareFormat) -> Self {
        self.format = Some(format);
        self
    }
}
