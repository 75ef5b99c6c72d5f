//! What a combination consists of.

use llm_local_core::lora::{Combination, MajoritySign};

/// What a combination consists of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Parts {
    /// What is done with tensors of one shape; `None` where factors are put side by side.
    pub(super) arithmetic: Option<Arithmetic>,
    /// For combinations of whole deltas.
    pub(super) truncation: Option<Truncation>,
    /// For random ones.
    pub(super) seed: Option<u64>,
}

impl Parts {
    pub(super) fn of(combination: &Combination) -> Self {
        if matches!(combination, Combination::Sum | Combination::Cat) {
            return Self { arithmetic: None, truncation: None, seed: None };
        }
        let seed = combination.seed();
        let prune = match combination.density() {
            None => Prune::Nothing,
            Some(density) if seed.is_some() => Prune::Random(density),
            Some(density) => Prune::Magnitude(density),
        };
        let truncation = Truncation { rank: combination.rank(), clamp: combination.clamp() };
        Self {
            arithmetic: Some(Arithmetic { prune, sign: combination.majority_sign() }),
            truncation: combination.is_of_deltas().then_some(truncation),
            seed,
        }
    }
}

/// What is done with tensors of one shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Arithmetic {
    pub(super) prune: Prune,
    /// Whether only values of the elected sign are added, and how it is elected.
    pub(super) sign: Option<MajoritySign>,
}

impl Arithmetic {
    /// Whether all values are added.
    pub(super) fn is_sum(self) -> bool {
        self.prune == Prune::Nothing && self.sign.is_none()
    }
}

/// Which values are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Prune {
    /// All.
    Nothing,
    /// The largest, this share.
    Magnitude(f64),
    /// Random ones, this share on average.
    Random(f64),
}

/// How much of a delta is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Truncation {
    pub(super) rank: Option<usize>,
    pub(super) clamp: Option<f64>,
}
