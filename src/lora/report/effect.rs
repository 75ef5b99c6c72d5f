//! How much an adapter changes, from its values and the weights of the base.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use llm_local_core::{Allowance, LoraAdapter, LoraModule, ModelInfo, Result, TensorSource, lora::Floats};
use serde::Serialize;

use crate::lora::{
    fit::{Change, Term, TermKind, fit_changes},
    floats,
    merge::{MergedSource, difference, squares},
};

/// How much an adapter changes a module.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModuleEffect {
    /// The module of a pair, in the names of the Hugging Face layout. Where more than one pair changes a tensor: that
    /// tensor's name, in the base's names.
    pub name: String,
    /// The Frobenius norm of what is added.
    pub delta_norm: f64,
    /// The Frobenius norm of the weight.
    pub weight_norm: f64,
    /// The first over the second; `None` where the weight is zero.
    pub ratio: Option<f64>,
}

impl ModuleEffect {
    fn new(name: impl Into<String>, delta: f64, weight: f64) -> Self {
        let (delta_norm, weight_norm) = (delta.max(0.0).sqrt(), weight.sqrt());
        let ratio = (weight_norm > 0.0).then(|| delta_norm / weight_norm);
        Self { name: name.into(), delta_norm, weight_norm, ratio }
    }
}

/// How much `adapter` changes each module, sorted by name. Reads each tensor that it changes once, and a second time in f32
/// where it is not changed by plain pairs alone.
pub(super) fn measure(
    adapter: &Arc<LoraAdapter>,
    weight: f32,
    allowed: &BTreeSet<Allowance>,
    base: &Arc<dyn TensorSource>,
    info: &ModelInfo,
) -> Result<Vec<ModuleEffect>> {
    let (adapters, allow) = (vec![(adapter.clone(), weight)], [allowed.clone()]);
    let (_, changes) = fit_changes(&adapters, &allow, info)?;
    let mut merged = None;
    let (mut plain, mut effects) = (BTreeMap::new(), Vec::new());
    for (index, change) in changes.iter().enumerate() {
        let is_copy = changes[..index].iter().any(|other| other.from == change.from && other.terms == change.terms);
        if change.terms.is_empty() || is_copy {
            continue;
        }
        if let Some(pairs) = plain_pairs(change, adapter) {
            let ranges: Vec<_> = pairs.iter().map(|(_, range)| *range).collect();
            for ((module, _), sum) in pairs.iter().zip(squares(&**base, &change.from, &ranges)?) {
                *plain.entry(*module).or_insert(0.0) += sum;
            }
            continue;
        }
        if merged.is_none() {
            merged = Some(MergedSource::allowing(base.clone(), adapters.clone(), &allow, info)?);
        }
        if let Some(merged) = &merged {
            let (delta, own) = difference(&**base, merged, change)?;
            effects.push(ModuleEffect::new(name(change, adapter), delta, own));
        }
    }
    effects.extend(plain.into_iter().map(|(index, sum)| {
        let module = &adapter.modules[index];
        let scale = module.scale * f64::from(weight);
        ModuleEffect::new(&module.name, scale * scale * product_squares(module), sum)
    }));
    effects.sort_by(|x, y| x.name.cmp(&y.name));
    Ok(effects)
}

/// The modules of plain pairs, each on rows of its own, that all of `change` comes from: index, and first row and count.
fn plain_pairs(change: &Change, adapter: &LoraAdapter) -> Option<Vec<(usize, (usize, usize))>> {
    let plain = |term: &Term| match term.kind {
        TermKind::Pair { module, .. } if adapter.modules[module].magnitude.is_none() => {
            Some((module, (term.rows.first, term.rows.rows)))
        }
        _ => None,
    };
    let mut pairs = change.terms.iter().map(plain).collect::<Option<Vec<_>>>()?;
    pairs.sort_by_key(|(_, range)| *range);
    let is_apart = pairs.windows(2).all(|two| two[0].1.0 + two[0].1.1 <= two[1].1.0);
    is_apart.then_some(pairs)
}

/// The name of what changes: of the one pair, or of the tensor.
fn name<'a>(change: &'a Change, adapter: &'a LoraAdapter) -> &'a str {
    match change.terms[..] {
        [Term { kind: TermKind::Pair { module, .. }, .. }] => &adapter.modules[module].name,
        _ => &change.name,
    }
}

/// The square of the Frobenius norm of `B @ A`, of all experts together, in f64. No more is held beside one expert's factors
/// than a row of the product.
fn product_squares(module: &LoraModule) -> f64 {
    let LoraModule { rank, in_features, out_features, .. } = *module;
    let count = module.experts.unwrap_or(1);
    (0..count)
        .map(|expert| {
            let a = part(&module.a, expert, rank * in_features);
            let b = part(&module.b, expert, out_features * rank);
            if rank <= in_features.min(out_features) { by_pairs(&a, &b, rank) } else { by_rows(&a, &b, rank) }
        })
        .sum()
}

/// As the trace of `(B^T B) (A A^T)`, whose products are of few elements where the rank is low.
fn by_pairs(a: &[f32], b: &[f32], rank: usize) -> f64 {
    let (columns, rows) = (a.len() / rank, b.len() / rank);
    let mut turned = vec![0.0; b.len()];
    for (i, value) in b.iter().enumerate() {
        turned[i % rank * rows + i / rank] = *value;
    }
    let product = |values: &[f32], length: usize, i: usize, j: usize| -> f64 {
        let (x, y) = (&values[i * length..][..length], &values[j * length..][..length]);
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let both = |i, j| product(a, columns, i, j) * product(&turned, rows, i, j);
    (0..rank).map(|i| both(i, i) + 2.0 * (0..i).map(|j| both(i, j)).sum::<f64>()).sum()
}

/// Row by row of the product.
fn by_rows(a: &[f32], b: &[f32], rank: usize) -> f64 {
    let mut row = vec![0.0; a.len() / rank];
    let squares = |factors: &[f32]| -> f64 {
        row.fill(0.0);
        for (factor, values) in factors.iter().zip(a.chunks(a.len() / rank)) {
            row.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(*factor) * f64::from(*value));
        }
        row.iter().map(|sum| sum * sum).sum()
    };
    b.chunks(rank).map(squares).sum()
}

fn part(values: &Floats, index: usize, count: usize) -> Vec<f32> {
    let mut own = vec![0.0; count];
    floats::scale_into(values, index * count, 1.0, &mut own);
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_of_a_product_is_that_of_its_elements_whether_its_rank_is_low_or_high() {
        for (rank, inputs, outputs, experts) in [(1, 5, 3, 1), (3, 4, 3, 2), (4, 3, 5, 1), (9, 2, 3, 3), (2, 1, 1, 1)] {
            let value = |i: usize| (i * 7919 % 23) as f32 / 4.0 - 2.5;
            let a: Vec<_> = (0..experts * rank * inputs).map(value).collect();
            let b: Vec<_> = (0..experts * outputs * rank).map(|i| value(i + 5)).collect();
            let mut expected = 0.0;
            for expert in 0..experts {
                for (o, i) in (0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))) {
                    let b = |k: usize| f64::from(b[(expert * outputs + o) * rank + k]);
                    let a = |k: usize| f64::from(a[(expert * rank + k) * inputs + i]);
                    expected += (0..rank).map(|k| b(k) * a(k)).sum::<f64>().powi(2);
                }
            }
            let module = LoraModule::of_experts("m", experts, (rank, inputs, outputs), a.clone(), b.clone(), 1.0);
            let found = product_squares(&module);
            // Its terms are of quarters and exact in f64.
            assert_eq!(found, expected, "rank {rank}");
            if experts == 1 {
                assert_eq!(by_rows(&a, &b, rank), by_pairs(&a, &b, rank));
            }
        }
    }
}
