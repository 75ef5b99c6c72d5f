//! What adapters change of one module.

use std::ops::Range;

use llm_local_core::{
    Error, LoraAdapter, LoraModule, Result,
    lora::{AdapterFeature, Floats, ReplacedRows, ReplacementTensor},
};

use super::super::side::Values;

/// One change by one adapter.
#[derive(Debug)]
pub(super) struct By<'a, T> {
    pub(super) adapter: &'a LoraAdapter,
    /// Which adapter of the set it is.
    pub(super) place: usize,
    /// The adapter's weight in the set.
    pub(super) weight: f32,
    pub(super) what: &'a T,
    /// The row of it that is the module's first: not 0 where the adapter has in one what are several modules here.
    pub(super) first: usize,
}

impl<T> Clone for By<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for By<'_, T> {}

impl<T> By<'_, T> {
    /// Whether the adapter keeps tied what is tied.
    fn keeps_tied(&self) -> bool {
        self.adapter.features.contains(&AdapterFeature::WeightTying)
    }
}

/// The same change, not an equal one.
impl<T> PartialEq for By<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.what, other.what)
            && self.weight.to_bits() == other.weight.to_bits()
            && self.first == other.first
    }
}

/// What adapters change of one module.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Changes<'a> {
    /// The shape of its weight.
    pub(super) shape: Vec<usize>,
    pub(super) replaced: Vec<By<'a, ReplacementTensor>>,
    pub(super) replaced_rows: Vec<By<'a, ReplacedRows>>,
    pub(super) pairs: Vec<By<'a, LoraModule>>,
    pub(super) replaced_bias: Vec<By<'a, ReplacementTensor>>,
}

impl<'a> Changes<'a> {
    pub(super) fn new(shape: Vec<usize>) -> Self {
        let (replaced, replaced_rows, pairs, replaced_bias) = Default::default();
        Self { shape, replaced, replaced_rows, pairs, replaced_bias }
    }

    /// Rows of its weight.
    pub(super) fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Whether the weight becomes another, apart from what runs beside it.
    pub(super) fn replaces(&self) -> bool {
        !self.replaced.is_empty() || !self.replaced_rows.is_empty()
    }

    /// Whether one of the adapters makes a tied tensor one of its own: by a replacement, unless it says that it has kept
    /// both tied, or has a pair beside the replacement, which is how PEFT saves a base below a pair.
    pub(super) fn unties(&self) -> bool {
        self.replaced.iter().any(|by| !by.keeps_tied() && !self.pairs.iter().any(|pair| pair.place == by.place))
    }

    /// Takes the changes of what is tied to this. What an adapter that keeps both tied has for the two is saved twice, and
    /// counts once.
    pub(super) fn join(&mut self, other: Self) {
        fn add<'a, T>(all: &mut Vec<By<'a, T>>, more: Vec<By<'a, T>>) {
            let own: Vec<usize> = all.iter().map(|by| by.place).collect();
            all.extend(more.into_iter().filter(|by| !(by.keeps_tied() && own.contains(&by.place))));
        }
        add(&mut self.replaced, other.replaced);
        add(&mut self.replaced_rows, other.replaced_rows);
        add(&mut self.pairs, other.pairs);
    }

    pub(super) fn has_bias(&self) -> bool {
        !self.replaced_bias.is_empty() || self.pairs.iter().any(|pair| pair.what.bias.is_some())
    }

    /// Replaces all or some rows of `weight`, row-major.
    pub(super) fn replace(&self, weight: &mut [f32]) -> Result<()> {
        let width = weight.len() / self.rows();
        replace_all(weight, width, &self.replaced)?;
        if self.replaced_rows.is_empty() {
            return Ok(());
        }
        let whole = weight.to_vec();
        for by in &self.replaced_rows {
            let name = &by.what.name;
            let values = floats(by.adapter, name, &by.what.values)?.all().into_owned();
            let own = by.first..by.first + self.rows();
            for (row, new) in by.what.rows.iter().zip(values.chunks_exact(width)).filter(|(row, _)| own.contains(row)) {
                let row = row - by.first;
                let range = row * width..(row + 1) * width;
                blend(&mut weight[range.clone()], &whole[range], new, by.weight);
            }
            check_finite(by.adapter, name, &values)?;
        }
        Ok(())
    }

    /// Replaces and adds to the bias.
    pub(super) fn change_bias(&self, bias: &mut [f32]) -> Result<()> {
        replace_all(bias, 1, &self.replaced_bias)?;
        for by in &self.pairs {
            let Some(added) = &by.what.bias else { continue };
            check_finite(by.adapter, &format!("{}.lora_B.bias", by.what.name), added)?;
            let scale = (f64::from(by.weight) * by.what.scale) as f32;
            bias.iter_mut().zip(&added[by.first..]).for_each(|(bias, b)| *bias += scale * b);
        }
        Ok(())
    }
}

/// `W + Σ weight · (R - W)`; exactly R for one of weight 1. Rows of `weight` are `width` wide.
fn replace_all(weight: &mut [f32], width: usize, by: &[By<'_, ReplacementTensor>]) -> Result<()> {
    if by.is_empty() {
        return Ok(());
    }
    let whole = weight.to_vec();
    for by in by {
        let values = floats(by.adapter, &by.what.name, &by.what.values)?;
        let values = values.all();
        check_finite(by.adapter, &by.what.name, &values)?;
        blend(weight, &whole, &values[by.first * width..], by.weight);
    }
    Ok(())
}

/// `to += weight · (new - from)`; exactly `new` where that is all there is.
fn blend(to: &mut [f32], from: &[f32], new: &[f32], weight: f32) {
    for ((to, from), new) in to.iter_mut().zip(from).zip(new) {
        if weight == 1.0 && to == from {
            *to = *new;
        } else {
            *to = (f64::from(*to) + f64::from(weight) * (f64::from(*new) - f64::from(*from))) as f32;
        }
    }
}

/// Low-rank pairs of one adapter beside rows of a matrix that follow one another.
pub(super) struct Stretch<'c, 'a> {
    pub(super) by: &'c By<'a, LoraModule>,
    /// The rows of the matrix.
    pub(super) rows: Range<usize>,
}

impl<'c, 'a> Stretch<'c, 'a> {
    /// The pairs of `parts`, modules of a matrix with the row that each begins at; what an adapter has as one module is one
    /// again.
    pub(super) fn all(parts: &[(usize, &'c Changes<'a>)]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for (start, changes) in parts {
            for by in &changes.pairs {
                let goes_on = |s: &&mut Self| {
                    let same = std::ptr::eq(s.by.what, by.what) && s.by.place == by.place;
                    same && s.rows.end == *start && s.by.first + s.rows.len() == by.first
                };
                let end = start + changes.rows();
                match all.iter_mut().find(goes_on) {
                    Some(before) => before.rows.end = end,
                    None => all.push(Self { by, rows: *start..end }),
                }
            }
        }
        all
    }

    /// The rows of the module that these are.
    pub(super) fn of_module(&self) -> Range<usize> {
        self.by.first..self.by.first + self.rows.len()
    }
}

/// `values` in the type they are stored in.
pub(super) fn floats(adapter: &LoraAdapter, name: &str, values: &Floats) -> Result<Values> {
    Values::new(values).ok_or_else(|| {
        Error::adapter(
            &adapter.reference,
            format!("`{name}` is stored as {}, which candle does not run", values.float_type()),
        )
    })
}

pub(super) fn check_finite(adapter: &LoraAdapter, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|v| !v.is_finite()) {
        Some(value) => {
            Err(Error::adapter(&adapter.reference, format!("`{name}` has the value {value}; expected finite numbers")))
        }
        None => Ok(()),
    }
}
