//! Bytes for people.

use std::fmt;

/// A number of bytes, shown in powers of ten: `269.0 MB`, `2.00 GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DecimalBytes(pub u64);

impl fmt::Display for DecimalBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n >= 1_000_000_000 => write!(f, "{:.2} GB", n as f64 / 1e9),
            n if n >= 1_000_000 => write!(f, "{:.1} MB", n as f64 / 1e6),
            n if n >= 1_000 => write!(f, "{:.1} kB", n as f64 / 1e3),
            n => write!(f, "{n} B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        for (n, shown) in [(0, "0 B"), (1_500, "1.5 kB"), (269_000_000, "269.0 MB"), (2_000_000_000, "2.00 GB")] {
            assert_eq!(DecimalBytes(n).to_string(), shown);
        }
    }
}
