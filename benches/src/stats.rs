//! Quartiles.

use std::fmt;

/// The quartiles of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Quartiles {
    pub(crate) lower: f64,
    pub(crate) median: f64,
    pub(crate) upper: f64,
}

impl Quartiles {
    /// The quartiles of `values`, linear between neighbours (method 7 of Hyndman and Fan 1996, numpy's default).
    ///
    /// # Panics
    /// Without values, or with one that is no number.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        assert!(!sorted.is_empty() && sorted.iter().all(|v| !v.is_nan()), "quartiles of {sorted:?}");
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let position = share * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
            below + (above - below) * position.fract()
        };
        Self { lower: at(0.25), median: at(0.5), upper: at(0.75) }
    }
}

impl fmt::Display for Quartiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lower, median, upper } = self;
        let digits = f.precision().unwrap_or(3);
        write!(f, "{median:.digits$} [{lower:.digits$}, {upper:.digits$}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_linear_between_neighbours() {
        let nine = Quartiles::of([9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]);
        assert_eq!(nine, Quartiles { lower: 3.0, median: 5.0, upper: 7.0 });
        assert_eq!(Quartiles::of([1.0, 2.0]), Quartiles { lower: 1.25, median: 1.5, upper: 1.75 });
        assert_eq!(nine.to_string(), "5.000 [3.000, 7.000]");
    }
}
