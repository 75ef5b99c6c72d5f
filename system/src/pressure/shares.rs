//! When what is free is too little.

use super::PressureLevel;

/// Shares of what may be used, from 0 to 1, below which what is free is short.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares {
    /// Below this share it is [`PressureLevel::Warn`].
    pub warn: f64,
    /// Below this share it is [`PressureLevel::Critical`].
    pub critical: f64,
}

impl Shares {
    /// These shares.
    pub fn new(warn: f64, critical: f64) -> Self {
        Self { warn, critical }
    }

    /// How short memory is where `free` bytes of `usable` are left.
    pub fn level(&self, free: u64, usable: u64) -> PressureLevel {
        let share = free as f64 / usable.max(1) as f64;
        match () {
            () if share < self.critical => PressureLevel::Critical,
            () if share < self.warn => PressureLevel::Warn,
            () => PressureLevel::Normal,
        }
    }
}

impl Default for Shares {
    /// A tenth, and a twentieth.
    fn default() -> Self {
        Self::new(0.1, 0.05)
    }
}
