//! Rotary position embeddings, as data (RoFormer, arXiv:2104.09864).

/// How positions are rotated into queries and keys.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Rope {
    /// The base: dimension pair `i` turns by `theta^(-2i/dims)` per position.
    pub theta: f64,
    /// Leading dimensions of a head that are rotated; fewer than the head has is partial rotary.
    pub dims: usize,
    /// How the frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Unscaled rotation of `dims` dimensions.
    pub fn new(theta: f64, dims: usize) -> Self {
        Self { theta, dims, scaling: RopeScaling::None }
    }

    /// Sets the scaling.
    pub fn with_scaling(mut self, scaling: RopeScaling) -> Self {
        self.scaling = scaling;
        self
    }

    /// Checks what no rotation of heads of `head_dim` dimensions can be; the error names a field of the description.
    pub(super) fn validate(&self, head_dim: usize) -> Result<(), (&'static str, String)> {
        let Self { dims, theta, .. } = *self;
        if dims == 0 || !dims.is_multiple_of(2) || dims > head_dim {
            return Err((
                "rope.dims",
                format!("makes {dims} rotated dimensions of {head_dim}; expected an even number"),
            ));
        }
        if !(theta.is_finite() && theta > 0.0) {
            return Err(("rope.theta", format!("is {theta}; expected a number above 0")));
        }
        Ok(())
    }
}

/// How rotary frequencies are changed for longer contexts. The formulas are those of transformers'
/// `modeling_rope_utils.py`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor` (arXiv:2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// A larger base once the sequence is longer than the original context ("NTK-aware").
    Dynamic {
        /// How many times longer the context becomes.
        factor: f64,
        /// The context of pre-training, in tokens.
        original_max_positions: usize,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between them.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context of pre-training, in tokens.
        original_max_positions: usize,
    },
    /// YaRN (arXiv:2309.00071).
    Yarn {
        /// How many times longer the context becomes.
        factor: f64,
        /// The context of pre-training, in tokens.
        original_max_positions: usize,
        /// Rotations over the original context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations over the original context below which a frequency is divided by `factor`.
        beta_slow: f64,
        /// What cos and sin are multiplied by; without it, `0.1 ln(factor) + 1` (or what `mscale` gives).
        attention_factor: Option<f64>,
        /// Numerator of the attention factor, where both are given (DeepSeek).
        mscale: Option<f64>,
        /// Denominator of the attention factor.
        mscale_all_dim: Option<f64>,
        /// Whether the ramp's bounds are rounded outwards to whole dimensions.
        truncate: bool,
    },
    /// LongRoPE (arXiv:2402.13753): a divisor per frequency, one list for short sequences and one for long ones.
    LongRope {
        /// Divisors up to the original context, one per dimension pair.
        short_factor: Vec<f64>,
        /// Divisors beyond it, one per dimension pair.
        long_factor: Vec<f64>,
        /// The context of pre-training, in tokens.
        original_max_positions: usize,
        /// What cos and sin are multiplied by; without it, `sqrt(1 + ln(factor) / ln(original))`.
        attention_factor: Option<f64>,
        /// How many times longer the context becomes; without it, from the two context lengths.
        factor: Option<f64>,
    },
    /// A divisor per frequency, stored as a tensor of GGUF files (`rope_freqs.weight`).
    Divisors {
        /// The tensor's name.
        tensor: String,
    },
    /// [`RopeScaling::LongRope`] with its divisors stored as tensors of GGUF files.
    LongRopeTensors {
        /// The tensor of divisors up to the original context.
        short: String,
        /// The tensor of divisors beyond it.
        long: String,
        /// The context of pre-training, in tokens.
        original_max_positions: usize,
        /// What cos and sin are multiplied by.
        attention_factor: f64,
    },
}

impl RopeScaling {
    /// The kind's name, as in `rope_type` of config.json.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "default",
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Llama3 { .. } => "llama3",
            Self::Yarn { .. } => "yarn",
            Self::LongRope { .. } => "longrope",
            Self::Divisors { .. } => "a tensor of divisors",
            Self::LongRopeTensors { .. } => "longrope, by tensors of divisors",
        }
    }
}
