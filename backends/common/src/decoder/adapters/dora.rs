//! DoRA (arXiv:2402.09353): the norms of a matrix with a pair, and what divides by them.

use std::{borrow::Cow, ops::Range};

use llm_local_core::{Error, LoraModule, Result};

use super::{By, Values};

/// A pair of DoRA beside some rows of a matrix W.
#[derive(Debug)]
pub struct Dora<'s> {
    by: &'s By<'s, LoraModule>,
    rows: Range<usize>,
    of_module: Range<usize>,
    magnitude: &'s [f32],
    /// Shape (rank, in).
    a: Cow<'s, [f32]>,
    /// Shape (rows, rank).
    b: Cow<'s, [f32]>,
}

impl<'s> Dora<'s> {
    /// That of `by` beside the rows `rows` of the matrix, which are the module's `of_module`; `None` for a pair without a
    /// magnitude. Of B, the rows are given that are these.
    pub(super) fn new(
        by: &'s By<'_, LoraModule>,
        rows: Range<usize>,
        of_module: Range<usize>,
        (a, b): (&'s Values, &'s Values),
    ) -> Option<Self> {
        let magnitude = &by.what.magnitude.as_ref()?[of_module.clone()];
        Some(Self { by, rows, of_module, magnitude, a: a.all(), b: b.all() })
    }

    /// The rows of the matrix whose norms are wanted.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Columns of the matrix.
    pub fn width(&self) -> usize {
        self.by.what.in_features
    }

    /// For each row of `w`, whole rows of W, row-major, the norm of that of `W + s B A`. The first of them is the row
    /// `rows().start + first` of the matrix. The adapter's own weight is no part of it.
    pub fn norms(&self, first: usize, w: &[f32]) -> Vec<f64> {
        let (width, rank, scale) = (self.width(), self.by.what.rank, self.by.what.scale as f32);
        let mut sum = vec![0f32; width];
        let rows = w.chunks_exact(width).zip(self.b[first * rank..].chunks_exact(rank));
        let norm = |(w, b): (&[f32], &[f32])| {
            sum.copy_from_slice(w);
            for (a, b) in self.a.chunks_exact(width).zip(b) {
                let by = scale * b;
                sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += by * a);
            }
            sum.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
        };
        rows.map(norm).collect()
    }

    /// `m / n` for each of the rows, whose norms are `norms`.
    pub(super) fn gains(&self, norms: Vec<f64>) -> Result<Vec<f64>> {
        let gains: Vec<f64> = self.magnitude.iter().zip(norms).map(|(m, n)| f64::from(*m) / n).collect();
        match gains.iter().position(|gain| !gain.is_finite()) {
            Some(row) => Err(Error::adapter(
                &self.by.adapter.reference,
                format!(
                    "row {} of `{}` has the magnitude {}, and a norm that it cannot be divided by; expected finite numbers",
                    self.of_module.start + row,
                    self.by.what.name,
                    self.magnitude[row]
                ),
            )),
            None => Ok(gains),
        }
    }
}
