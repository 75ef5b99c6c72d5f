//! The merge in f64, element by element, as its definition says: what the tests of all variants compare with.

use std::collections::BTreeMap;

use llm_local_core::{
    Encoding, Error, FloatType, LoraAdapter, LoraModule, Result, TensorData, TensorEntry, TensorSource, lora::Floats,
};

use super::{decode, encode};
use crate::lora::floats;

/// A base of any tensors, all of one type.
pub(super) struct Tensors {
    pub(super) stored: FloatType,
    entries: Vec<TensorEntry>,
    bytes: BTreeMap<String, Vec<u8>>,
}

impl Tensors {
    pub(super) fn new(stored: FloatType, tensors: impl IntoIterator<Item = (String, Vec<usize>, Vec<f64>)>) -> Self {
        let mut all = Self { stored, entries: Vec::new(), bytes: BTreeMap::new() };
        for (name, shape, values) in tensors {
            assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
            all.entries.push(TensorEntry::new(name.clone(), shape, Encoding::Float(stored)));
            all.bytes.insert(name, values.iter().flat_map(|v| encode(*v, stored)).collect());
        }
        all
    }

    /// Its values as stored.
    pub(super) fn values(&self, name: &str) -> Vec<f64> {
        decode(&self.bytes[name], self.stored).collect()
    }
}

impl TensorSource for Tensors {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        let missing = || Error::load(format!("tensor `{name}`"), "it is not there");
        let bytes = self.bytes.get(name).ok_or_else(missing)?;
        match want {
            Some(FloatType::F32) if self.stored != FloatType::F32 => {
                Ok(TensorData::F32(decode(bytes, self.stored).map(|v| v as f32).collect()))
            }
            Some(want) if self.stored != want => {
                Ok(TensorData::Bytes(decode(bytes, self.stored).flat_map(|v| encode(v, want)).collect()))
            }
            _ => Ok(TensorData::Borrowed(bytes)),
        }
    }
}

pub(super) fn wide(values: &Floats) -> Vec<f64> {
    let mut wide = vec![0.0; values.len()];
    floats::scale_into(values, 0, 1.0, &mut wide);
    wide.into_iter().map(f64::from).collect()
}

/// Values, and the sum of the absolute values of all terms that each is of: what f32's roundings are relative to.
#[derive(Debug, Clone)]
pub(super) struct Exact {
    pub(super) values: Vec<f64>,
    pub(super) terms: Vec<f64>,
}

impl Exact {
    pub(super) fn new(values: Vec<f64>) -> Self {
        Self { terms: values.iter().map(|v| v.abs()).collect(), values }
    }
}

/// The tensor `name` of `rows` rows (of all experts) with `adapters`, whose names are those of the Hugging Face layout.
/// `transposed` tells whether the tensor holds (in, out).
pub(super) fn merged(
    name: &str,
    base: &[f64],
    (rows, columns): (usize, usize),
    transposed: bool,
    adapters: &[(&LoraAdapter, f64)],
) -> Exact {
    let mut w = Exact::new(base.to_vec());
    let mut mix = |changed: &dyn Fn(&LoraAdapter) -> BTreeMap<usize, f64>| {
        let before = w.values.clone();
        for (adapter, weight) in adapters {
            for (index, value) in changed(adapter) {
                w.values[index] += weight * (value - before[index]);
                w.terms[index] += (weight * value).abs() + (weight * before[index]).abs();
            }
        }
    };
    mix(&|adapter| {
        let replaced = adapter.replacements.iter().filter(|r| r.name == name);
        replaced.flat_map(|r| wide(&r.values).into_iter().enumerate()).collect()
    });
    mix(&|adapter| {
        let replaced = adapter.rows.iter().filter(|r| r.name == name);
        let all = replaced.flat_map(|r| {
            let values = wide(&r.values).into_iter().enumerate();
            values.map(|(i, v)| (r.rows[i / columns] * columns + i % columns, v)).collect::<Vec<_>>()
        });
        all.collect()
    });
    let mut sum = w.clone();
    for (adapter, weight) in adapters {
        for module in adapter.modules.iter().filter(|m| m.weight_name() == name) {
            let delta = delta(module, rows, columns, transposed);
            match &module.magnitude {
                None => {
                    for (i, value) in delta.values.iter().enumerate() {
                        sum.values[i] += weight * value;
                        sum.terms[i] += (weight * delta.terms[i]).abs();
                    }
                }
                Some(magnitude) => dora(&mut sum, &w, &delta, magnitude, *weight, (rows, columns), transposed),
            }
        }
        for module in adapter.modules.iter().filter(|m| format!("{}.bias", m.name) == name) {
            for (i, bias) in module.bias.iter().flatten().enumerate() {
                sum.values[i] += weight * module.scale * f64::from(*bias);
                sum.terms[i] += (weight * module.scale * f64::from(*bias)).abs();
            }
        }
    }
    sum
}

/// `scale * (B @ A)`, of each expert.
fn delta(module: &LoraModule, rows: usize, columns: usize, transposed: bool) -> Exact {
    let LoraModule { rank, in_features, out_features, scale, .. } = module;
    let (a, b) = (wide(&module.a), wide(&module.b));
    let mut delta = Exact::new(vec![0.0; rows * columns]);
    let experts = module.experts.unwrap_or(1);
    let one = rows / experts;
    for expert in 0..experts {
        for row in 0..one {
            for column in 0..columns {
                let (out, input) = if transposed { (column, row) } else { (row, column) };
                let at = (expert * one + row) * columns + column;
                for k in 0..*rank {
                    let b = b[(expert * out_features + out) * rank + k];
                    let a = a[(expert * rank + k) * in_features + input];
                    delta.values[at] += scale * b * a;
                    delta.terms[at] += (scale * b * a).abs();
                }
            }
        }
    }
    delta
}

fn dora(
    sum: &mut Exact,
    w: &Exact,
    delta: &Exact,
    magnitude: &[f32],
    weight: f64,
    (rows, columns): (usize, usize),
    transposed: bool,
) {
    let line = |at: usize| if transposed { at % columns } else { at / columns };
    let mut squares = vec![0.0; if transposed { columns } else { rows }];
    let mut unsure = squares.clone();
    for at in 0..rows * columns {
        let value = w.values[at] + delta.values[at];
        squares[line(at)] += value.powi(2);
        unsure[line(at)] += value.abs() * (w.terms[at] + delta.terms[at]);
    }
    for at in 0..rows * columns {
        let factor = f64::from(magnitude[line(at)]) / squares[line(at)].sqrt();
        sum.values[at] += weight * (factor * (w.values[at] + delta.values[at]) - w.values[at]);
        let scaled = (weight * factor).abs() * (w.terms[at] + delta.terms[at]);
        // What the norm is off by moves the whole row.
        let norm = unsure[line(at)] / squares[line(at)] * (weight * factor * (w.values[at] + delta.values[at])).abs();
        sum.terms[at] += scaled + norm + (weight * w.values[at]).abs();
    }
}

/// The largest difference in units of f32's rounding (2^-24) of all terms, beyond what `want` rounds.
pub(super) fn worst(found: &[f64], expected: &Exact, want: FloatType) -> f64 {
    assert_eq!(found.len(), expected.values.len());
    let (relative, absolute) = super::rounding(want);
    let each = found.iter().zip(&expected.values).zip(&expected.terms);
    each.map(|((found, value), terms)| {
        let beyond = (found - value).abs() - relative * value.abs().max(found.abs()) - absolute;
        if beyond <= 0.0 { 0.0 } else { beyond / (terms * 2f64.powi(-24)) }
    })
    .fold(0.0, f64::max)
}
