//! Sums over tensors as they are stored, some rows at a time.

use llm_local_core::{Encoding, Error, FloatType, Result, TensorSource};

use super::{
    MergedSource,
    stored::{ReadTensor, Stored},
};
use crate::lora::fit::Change;

/// Values that are widened at a time, unless a row has more.
const AT_A_TIME: usize = 1 << 16;

/// The sums of squares of the rows `ranges` of the base tensor `name`, in f64: first row and count of each. Rows of tensors
/// with more than two dimensions are counted through all but the last; those of a vector are its elements.
///
/// # Errors
/// Those of reading it.
pub(in crate::lora) fn squares(base: &dyn TensorSource, name: &str, ranges: &[(usize, usize)]) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; ranges.len()];
    let read = ReadTensor::new(base, name)?;
    let columns = columns(&read.entry.shape);
    scan(read.stored()?, read.elements, columns, |first, values| {
        for (sum, (start, count)) in sums.iter_mut().zip(ranges) {
            let from = (start * columns).max(first);
            let to = ((start + count) * columns).min(first + values.len());
            if from < to {
                *sum += squared(&values[from - first..to - first]);
            }
        }
    });
    Ok(sums)
}

/// The sums of squares of `merged - base`, and of the base, of the tensor that `change` is of; rows that the base does not
/// have are 0 in it.
///
/// # Errors
/// Those of reading the tensor, and of merging it.
pub(in crate::lora) fn difference(
    base: &dyn TensorSource,
    merged: &MergedSource,
    change: &Change,
) -> Result<(f64, f64)> {
    let read = ReadTensor::new(base, &change.from)?;
    let (own, columns) = (read.stored()?, columns(&read.entry.shape));
    let changed = merged.read(&change.name, Some(FloatType::F32))?;
    let count = change.shape.iter().product::<usize>();
    let changed = Stored::new(&changed, Encoding::Float(FloatType::F32), 4 * count);
    let changed = changed.map_err(|reason| Error::load(format!("tensor `{}`", change.name), reason))?;
    let (mut delta, mut weight) = (0.0, 0.0);
    let mut before = Vec::new();
    scan(changed, count, columns, |first, values| {
        before.clear();
        before.resize(values.len(), 0.0);
        let known = read.elements.saturating_sub(first).min(values.len());
        own.widen(first, &mut before[..known]);
        weight += squared(&before);
        delta += values.iter().zip(&before).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>();
    });
    Ok((delta, weight))
}

fn squared(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum()
}

/// Elements of a row; a vector's rows are its elements.
fn columns(shape: &[usize]) -> usize {
    if let [_, .., columns] = *shape { columns } else { 1 }
}

/// Gives `each` the index of the first of some values and these values, in f32, whole rows at a time.
fn scan(stored: Stored<'_>, elements: usize, columns: usize, mut each: impl FnMut(usize, &[f32])) {
    let step = (AT_A_TIME / columns.max(1)).max(1) * columns.max(1);
    let mut values = vec![0.0; step.min(elements)];
    for first in (0..elements).step_by(step) {
        let values = &mut values[..step.min(elements - first)];
        stored.widen(first, values);
        each(first, values);
    }
}
