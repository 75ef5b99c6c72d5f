//! What a caller can say of files that do not say it.

use std::collections::BTreeSet;

use llm_local_core::{AdapterSpec, Allowance, FetchContext, lora::BareFormat};

/// What is known of an adapter that its files do not say, and what is let pass of them. What they do say is never overruled:
/// giving it too is an error.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ReadOptions {
    /// What `B @ A` is multiplied by, of tensors without a config, of an mlx-lm config without a scale, and of mlx-vlm's
    /// own format, whose scale depends on the version that trained it.
    pub scale: Option<f64>,
    /// How the tensors of a safetensors file without a config are named and laid out.
    pub format: Option<BareFormat>,
    /// What would be an error, and is let pass: of what can be told of files alone, that is
    /// [`Allowance::UnknownFields`] and [`Allowance::NoEffect`].
    pub allow: BTreeSet<Allowance>,
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

    /// Lets pass what would be an error.
    pub fn allowing(mut self, allowance: Allowance) -> Self {
        self.allow.insert(allowance);
        self
    }

    /// Lets pass all that keeps files from being read and that a spec could let pass: whether one does is known later.
    pub(crate) fn lenient(mut self) -> Self {
        self.allow.extend([Allowance::UnknownFields, Allowance::NoEffect]);
        self
    }

    /// `cx` for a source that is asked for an adapter of which this is said: if somebody says what bare tensors are, they may
    /// be one.
    pub(crate) fn context(&self, cx: &FetchContext) -> FetchContext {
        cx.clone().with_any_adapter(cx.any_adapter || self.is_of_bare())
    }

    /// Whether files without a config can be read by what is said here.
    pub(super) fn is_of_bare(&self) -> bool {
        self.scale.is_some() || self.format.is_some()
    }
}

/// What a spec says of its adapter.
impl From<&AdapterSpec> for ReadOptions {
    fn from(adapter: &AdapterSpec) -> Self {
        Self { scale: adapter.scale, format: adapter.format, allow: adapter.allow.clone() }
    }
}
