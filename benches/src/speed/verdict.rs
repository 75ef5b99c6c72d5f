//! What a ratio of rates says.

use std::fmt;

use crate::stats::Quartiles;

/// Ours against another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The lower quartile of the ratios is above 1.
    Faster,
    /// Neither.
    Equal,
    /// The upper quartile is below 1.
    Slower,
}

impl Verdict {
    pub(super) fn of(ratio: Quartiles) -> Self {
        match ratio {
            _ if ratio.lower > 1.0 => Self::Faster,
            _ if ratio.upper < 1.0 => Self::Slower,
            _ => Self::Equal,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Faster => "faster",
            Self::Equal => "equal",
            Self::Slower => "SLOWER",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_on_both_sides_of_one_are_equal() {
        let verdict = |lower, median, upper| Verdict::of(Quartiles { lower, median, upper });
        assert_eq!(verdict(1.01, 1.1, 1.2), Verdict::Faster);
        assert_eq!(verdict(0.97, 0.99, 1.0), Verdict::Equal);
        assert_eq!(verdict(1.0, 1.1, 1.2), Verdict::Equal);
        assert_eq!(verdict(0.9, 0.95, 0.99), Verdict::Slower);
    }
}
