//! What the kernel works with, from adapters and what they change.

use std::sync::Arc;

use llm_local_core::{LoraAdapter, LoraModule};

use super::{
    kernel::{Delta, Dora, Sum},
    overlay::Overlay,
    product::Panels,
};
use crate::lora::{
    fit::{Change, Placement, Term, TermKind},
    floats,
};

/// Adapters, each with its weight.
pub(super) type Adapters = [(Arc<LoraAdapter>, f32)];

/// Matrices in a tensor of this shape, and rows and columns of each. A vector is a column, and only the outermost of three
/// dimensions is of matrices: no pair has more.
pub(super) fn matrices(shape: &[usize]) -> (usize, usize, usize) {
    match shape {
        [] => (1, 1, 1),
        [elements] => (1, *elements, 1),
        [rows, columns] => (1, *rows, *columns),
        [matrices, rows, columns] => (*matrices, *rows, *columns),
        [rows @ .., columns] => (1, rows.iter().product(), *columns),
    }
}

/// What replaces values of the tensor: tensors, then rows.
pub(super) fn overlays<'a>(change: &Change, adapters: &'a Adapters) -> [Vec<Overlay<'a>>; 2] {
    let mut all = [Vec::new(), Vec::new()];
    for Term { adapter, kind, rows } in &change.terms {
        let (adapter, weight) = &adapters[*adapter];
        let (weight, rows) = (f64::from(*weight), *rows);
        match *kind {
            TermKind::Replacement { index, offset } => {
                let values = &adapter.replacements[index].values;
                all[0].push(Overlay { values, weight, offset, rows, listed: None });
            }
            TermKind::Rows { index } => {
                let replaced = &adapter.rows[index];
                let listed = Some(&replaced.rows[..]);
                all[1].push(Overlay { values: &replaced.values, weight, offset: 0.0, rows, listed });
            }
            _ => {}
        }
    }
    all
}

/// Whether anything is placed in each row of the tensor, by what replaces values or by pairs and their biases. The matrix of
/// a transposed pair has all of its rows changed.
pub(super) fn changed_rows(change: &Change, overlays: &[Vec<Overlay<'_>>; 2]) -> Vec<bool> {
    let (count, rows, _) = matrices(&change.shape);
    let mut changed: Vec<_> =
        (0..count * rows).map(|row| overlays.iter().flatten().any(|o| o.source_of(row).is_some())).collect();
    for Term { kind, rows: placement, .. } in &change.terms {
        let together = match kind {
            TermKind::Pair { transposed: true, .. } => rows,
            TermKind::Pair { .. } | TermKind::PairBias { .. } => 1,
            _ => continue,
        };
        for (index, changed) in changed.chunks_mut(together.max(1)).enumerate() {
            let first = index * together;
            if (first..first + changed.len()).any(|row| placement.source_of(row).is_some()) {
                changed.fill(true);
            }
        }
    }
    changed
}

/// What is added to each matrix of the tensor.
pub(super) fn sums(change: &Change, adapters: &Adapters) -> Vec<Sum> {
    let (count, rows, columns) = matrices(&change.shape);
    let one = |matrix: usize| {
        let mut pairs = Vec::new();
        for Term { adapter, kind, rows: placement } in &change.terms {
            let (adapter, weight) = &adapters[*adapter];
            let (module, transposed) = match *kind {
                TermKind::Pair { module, transposed } => (&adapter.modules[module], transposed),
                TermKind::PairBias { module } => (&adapter.modules[module], false),
                _ => continue,
            };
            let is_bias = matches!(kind, TermKind::PairBias { .. });
            let first = matrix * rows;
            if let Some(pair) = Pair::new(module, transposed, is_bias, *placement, first..first + rows) {
                pairs.push((pair, f64::from(*weight)));
            }
        }
        let shape = (rows, columns);
        let is_dora = |pair: &Pair<'_>| pair.module.magnitude.is_some() && !pair.is_bias;
        let plain: Vec<_> = pairs.iter().filter(|(pair, _)| !is_dora(pair)).map(|(p, w)| (p, *w)).collect();
        let doras = pairs.iter().filter(|(pair, _)| is_dora(pair)).map(|(pair, weight)| pair.dora(shape, *weight));
        Sum { plain: side_by_side(&plain, shape), doras: doras.collect() }
    };
    (0..count).map(one).collect()
}

/// The factors of `pairs`, side by side: the product of the whole is the sum of the products.
fn side_by_side(pairs: &[(&Pair<'_>, f64)], (rows, columns): (usize, usize)) -> Delta {
    let rank: usize = pairs.iter().map(|(pair, _)| pair.rank()).sum();
    let (mut a, mut b) = (vec![0.0; rank * columns], vec![0.0; rows * rank]);
    let mut first = 0;
    for (pair, weight) in pairs {
        pair.write(&mut a, &mut b, rank, first, *weight);
        first += pair.rank();
    }
    Delta { rank, a: Panels::new(&a, rank, columns), b }
}

/// A low-rank pair, or the bias of one, on one matrix.
struct Pair<'a> {
    module: &'a LoraModule,
    /// The matrix holds (in, out).
    transposed: bool,
    is_bias: bool,
    rows: Placement,
    /// The matrix's first row in the tensor.
    first: usize,
    /// The expert that the matrix is.
    expert: usize,
}

impl<'a> Pair<'a> {
    /// `None` if the adapter has none of these rows.
    fn new(
        module: &'a LoraModule,
        transposed: bool,
        is_bias: bool,
        rows: Placement,
        matrix: std::ops::Range<usize>,
    ) -> Option<Self> {
        let first = matrix.start;
        let source = matrix.clone().find_map(|row| rows.source_of(row))?;
        let expert = if transposed { first / matrix.len() } else { source / module.out_features };
        Some(Self { module, transposed, is_bias, rows, first, expert })
    }

    fn rank(&self) -> usize {
        if self.is_bias { 1 } else { self.module.rank }
    }

    fn dora(&self, shape: (usize, usize), weight: f64) -> Dora {
        let magnitudes = self.module.magnitude.as_deref().unwrap_or_default();
        let magnitude = if self.transposed {
            magnitudes.iter().copied().map(Some).collect()
        } else {
            let of = |row| self.rows.source_of(self.first + row).map(|source| magnitudes[source]);
            (0..shape.0).map(of).collect()
        };
        let delta = side_by_side(&[(self, 1.0)], shape);
        Dora { delta, weight, magnitude, is_of_columns: self.transposed }
    }

    /// Writes its factors into those of the rank `total`, from the rank `first` on: its rows of A, its columns of B.
    fn write(&self, all_a: &mut [f32], all_b: &mut [f32], total: usize, first: usize, weight: f64) {
        let LoraModule { rank, in_features, out_features, a, b, .. } = self.module;
        let (rank, expert, scale) = (*rank, self.expert, self.module.scale * weight);
        let (end, columns) = (first + self.rank(), all_a.len() / total);
        let own_a = &mut all_a[first * columns..end * columns];
        let rows = all_b.chunks_exact_mut(total).enumerate();
        if self.is_bias {
            own_a.fill(1.0);
            let bias = self.module.bias.as_deref().unwrap_or_default();
            for (row, to) in rows {
                if let Some(source) = self.rows.source_of(self.first + row) {
                    to[first] = (f64::from(bias[source]) * scale) as f32;
                }
            }
        } else if self.transposed {
            // (B A)^T = A^T B^T.
            let mut own = vec![0.0; out_features * rank];
            floats::scale_into(b, expert * own.len(), 1.0, &mut own);
            for (k, to) in own_a.chunks_exact_mut(columns).enumerate() {
                to.iter_mut().zip(own.iter().skip(k).step_by(rank)).for_each(|(to, value)| *to = *value);
            }
            let mut own = vec![0.0; in_features * rank];
            floats::scale_into(a, expert * own.len(), scale, &mut own);
            for (row, to) in rows {
                to[first..end].iter_mut().zip(own.iter().skip(row).step_by(*in_features)).for_each(|(to, v)| *to = *v);
            }
        } else {
            floats::scale_into(a, expert * rank * columns, 1.0, own_a);
            for (row, to) in rows {
                if let Some(source) = self.rows.source_of(self.first + row) {
                    floats::scale_into(b, source * rank, scale, &mut to[first..end]);
                }
            }
        }
    }
}
