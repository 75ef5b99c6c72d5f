//! What replaces values of a base.

use llm_local_core::lora::Floats;

use crate::lora::{fit::Placement, floats};

/// Rows of an adapter that replace some of a tensor: with the weight w, `W` becomes `W + w * (R - W)`.
pub(super) struct Overlay<'a> {
    pub(super) values: &'a Floats,
    pub(super) weight: f64,
    /// What is added to each value.
    pub(super) offset: f32,
    pub(super) rows: Placement,
    /// The adapter's rows that `values` holds, ascending; `None` for all of them.
    pub(super) listed: Option<&'a [usize]>,
}

impl Overlay<'_> {
    /// The row of its values for the row `row` of the tensor.
    pub(super) fn source_of(&self, row: usize) -> Option<usize> {
        let source = self.rows.source_of(row)?;
        match self.listed {
            Some(listed) => listed.binary_search(&source).ok(),
            None => Some(source),
        }
    }

    /// Whether each row of a tensor of `rows` rows is replaced.
    pub(super) fn is_of_all(&self, rows: usize) -> bool {
        self.rows.first == 0 && self.rows.rows == rows && self.listed.is_none()
    }

    /// Writes the columns from `left` on of its row `source`, each times its weight.
    fn write(&self, source: usize, columns: usize, left: usize, out: &mut [f32]) {
        floats::scale_into(self.values, source * columns + left, self.weight, out);
        if self.offset != 0.0 {
            out.iter_mut().for_each(|value| *value += (f64::from(self.offset) * self.weight) as f32);
        }
    }
}

/// Part of a row of a tensor: its number, how many columns the tensor has, and the first one.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    pub(super) row: usize,
    pub(super) columns: usize,
    pub(super) left: usize,
}

/// Writes a strip with all of `overlays` applied to what `prior` writes: the sum of what each changes alone. A weight of 1
/// is exact.
pub(super) fn apply(
    overlays: &[Overlay<'_>],
    strip: Strip,
    out: &mut [f32],
    spare: &mut Vec<f32>,
    prior: impl FnOnce(&mut [f32], &mut Vec<f32>),
) {
    let hits = || overlays.iter().filter_map(|overlay| overlay.source_of(strip.row).map(|source| (overlay, source)));
    let rest = 1.0 - hits().map(|(overlay, _)| overlay.weight).sum::<f64>();
    if hits().next().is_none() {
        return prior(out, spare);
    }
    if rest == 0.0 {
        out.fill(0.0);
    } else {
        prior(out, spare);
        out.iter_mut().for_each(|value| *value = (f64::from(*value) * rest) as f32);
    }
    spare.resize(spare.len().max(out.len()), 0.0);
    for (overlay, source) in hits() {
        let values = &mut spare[..out.len()];
        overlay.write(source, strip.columns, strip.left, values);
        out.iter_mut().zip(&*values).for_each(|(out, value)| *out += value);
    }
}
