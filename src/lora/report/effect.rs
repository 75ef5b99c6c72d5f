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

/// The square of the Frobenius norm of `B @ A`, of all experts together, in f64. It is the trace of `(B^T B) (A A^T)`, so
/// that no more than (r, r) values are held.
fn product_squares(module: &LoraModule) -> f64 {
    let LoraModule { rank, in_features, out_features, .. } = *module;
    let count = module.experts.unwrap_or(1);
    (0..count)
        .map(|expert| {
            let a = part(&module.a, expert, rank * in_features);
            let b = part(&module.b, expert, out_features * rank);
            let of_a = gram(rank, |i, j| {
                let (x, y) = (&a[i * in_features..][..in_features], &a[j * in_features..][..in_features]);
                x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
            });
            let of_b = gram(rank, |i, j| b.chunks(rank).map(|row| f64::from(row[i]) * f64::from(row[j])).sum());
            of_a.iter().zip(&of_b).map(|(x, y)| x * y).sum::<f64>()
        })
        .sum()
}

fn part(values: &Floats, index: usize, count: usize) -> Vec<f32> {
    let mut own = vec![0.0; count];
    floats::scale_into(values, index * count, 1.0, &mut own);
    own
}

/// A symmetric (r, r) matrix.
fn gram(rank: usize, of: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let mut all = vec![0.0; rank * rank];
    for i in 0..rank {
        for j in 0..=i {
            let value = of(i, j);
            (all[i * rank + j], all[j * rank + i]) = (value, value);
        }
    }
    all
}
