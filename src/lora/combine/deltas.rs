//! Combinations of whole deltas, cut to a rank by their singular value decomposition.

use faer::{Mat, MatRef, linalg::solvers::SvdError};

use super::{
    arithmetic::combine_tensors,
    factors::{Weighted, concatenate},
    pair::Pair,
    parts::Arithmetic,
    random::TorchRandom,
};

/// The leading `rank` singular triples of the deltas combined (PEFT,
/// `_svd_generalized_task_arithmetic_weighted_adapter`): A is V transposed, B is U times the singular values. Fewer where
/// fewer exist. The pairs must have one product shape; `transposed` says that PEFT takes the values of deltas by columns.
///
/// The signs of a triple's vectors are free, and a `clamp` depends on them (it takes a quantile of all values, signs
/// included), so that PEFT's result then depends on its LAPACK. Here the largest value of each row of A is positive.
///
/// # Errors
/// If the decomposition does not converge.
pub(super) fn combine_deltas(
    pairs: &[Weighted],
    transposed: bool,
    arithmetic: Arithmetic,
    rank: usize,
    clamp: Option<f64>,
    random: Option<&mut TorchRandom>,
) -> Result<Pair, SvdError> {
    let (inputs, outputs) = (pairs[0].0.inputs, pairs[0].0.outputs);
    let triples = if arithmetic.is_sum() {
        Triples::of_product(&concatenate(pairs))?
    } else {
        let deltas = pairs.iter().map(|(pair, _, scale)| delta(pair, *scale as f32, transposed)).collect();
        let weights: Vec<_> = pairs.iter().map(|(_, weight, _)| *weight).collect();
        let values = combine_tensors(deltas, &weights, arithmetic, random);
        if transposed {
            Triples::of_matrix(MatRef::from_row_major_slice(&values, inputs, outputs).transpose())?
        } else {
            Triples::of_matrix(MatRef::from_row_major_slice(&values, outputs, inputs))?
        }
    };
    let mut pair = triples.leading(rank);
    if let Some(clamp) = clamp {
        let limit = quantile(pair.b.iter().chain(&pair.a).copied().collect(), clamp);
        // Not `f32::clamp`: the limit may be negative, and then all values become it.
        pair.a.iter_mut().chain(&mut pair.b).for_each(|value| *value = value.max(-limit).min(limit));
    }
    Ok(pair)
}

/// The values of `scale * (B @ A)` by rows, or by columns.
fn delta(pair: &Pair, scale: f32, by_columns: bool) -> Vec<f32> {
    let a = MatRef::from_row_major_slice(&pair.a, pair.rank, pair.inputs);
    let b = MatRef::from_row_major_slice(&pair.b, pair.outputs, pair.rank);
    // Products are stored by columns.
    let product: Mat<f32> = if by_columns { b * a } else { a.transpose() * b.transpose() };
    product.col_iter().flat_map(|column| column.iter().map(|value| value * scale)).collect()
}

/// A matrix as U (outputs, n), n singular values in descending order, and V (inputs, n).
struct Triples {
    u: Mat<f64>,
    values: Vec<f64>,
    v: Mat<f64>,
}

impl Triples {
    fn of_matrix(matrix: MatRef<'_, f32>) -> Result<Self, SvdError> {
        let svd = matrix.thin_svd()?;
        let wide = |m: MatRef<'_, f32>| Mat::from_fn(m.nrows(), m.ncols(), |i, j| f64::from(m[(i, j)]));
        let values = svd.S().column_vector().iter().map(|value| f64::from(*value)).collect();
        Ok(Self { u: wide(svd.U()), values, v: wide(svd.V()) })
    }

    /// Those of `B @ A`, which is never made: with B = Qb Rb and A transposed = Qa Ra, they are those of the small matrix
    /// `Rb @ Ra.T`, turned by Qb and Qa.
    fn of_product(pair: &Pair) -> Result<Self, SvdError> {
        let Pair { rank, inputs, outputs, a, b } = pair;
        let b = Mat::from_fn(*outputs, *rank, |out, k| f64::from(b[out * rank + k])).qr();
        let a = Mat::from_fn(*inputs, *rank, |input, k| f64::from(a[k * inputs + input])).qr();
        let svd = (b.thin_R() * a.thin_R().transpose()).thin_svd()?;
        let values = svd.S().column_vector().iter().copied().collect();
        Ok(Self { u: b.compute_thin_Q() * svd.U(), values, v: a.compute_thin_Q() * svd.V() })
    }

    fn leading(&self, rank: usize) -> Pair {
        let rank = rank.min(self.values.len());
        let (inputs, outputs) = (self.v.nrows(), self.u.nrows());
        let signs: Vec<_> = (0..rank)
            .map(|k| {
                let largest = self.v.col(k).iter().fold(0f64, |most, v| if v.abs() > most.abs() { *v } else { most });
                if largest < 0.0 { -1.0 } else { 1.0 }
            })
            .collect();
        let a = (0..rank).flat_map(|k| self.v.col(k).iter().map(move |v| (k, *v)));
        let a = a.map(|(k, v)| (signs[k] * v) as f32).collect();
        let b = (0..outputs).flat_map(|out| (0..rank).map(move |k| (out, k)));
        let b = b.map(|(out, k)| (signs[k] * self.u[(out, k)] * self.values[k]) as f32).collect();
        Pair { rank, inputs, outputs, a, b }
    }
}

/// `torch.quantile(values, quantile)`: between two values in proportion, all in f32. `values` must not be empty.
fn quantile(mut values: Vec<f32>, quantile: f64) -> f32 {
    values.sort_unstable_by(f32::total_cmp);
    let last = values.len() - 1;
    let place = quantile as f32 * last as f32;
    let (below, above) = (values[(place.floor() as usize).min(last)], values[(place.ceil() as usize).min(last)]);
    let part = place - place.floor();
    if part < 0.5 { below + part * (above - below) } else { above - (above - below) * (1.0 - part) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_values_in_proportion() {
        // torch 2.9.0: torch.quantile(torch.tensor([4., -1., 2., 0.]), q).
        for (q, expected) in [
            (0.0, -1.0),
            (0.05, -0.85),
            (0.3, -0.099_999_964),
            (0.5, 1.0),
            (0.62, 1.72),
            (0.9, 3.399_999_6),
            (1.0, 4.0),
        ] {
            assert_eq!(quantile(vec![4.0, -1.0, 2.0, 0.0], q), expected, "{q}");
        }
        assert_eq!(quantile(vec![7.0], 0.3), 7.0);
    }
}
