//! What adapters change of one module.

use llm_local_core::{
    Error, LoraAdapter, LoraModule, Result,
    lora::{AdapterFeature, Floats, ReplacedRows, ReplacementTensor},
};

use super::Values;

/// One change by one adapter.
#[derive(Debug)]
pub struct By<'a, T> {
    /// Whose change it is.
    pub adapter: &'a LoraAdapter,
    /// The backend that runs it, for messages.
    pub backend: &'a str,
    /// Which adapter of the set it is.
    pub place: usize,
    /// The adapter's weight in the set.
    pub weight: f32,
    /// What changes.
    pub what: &'a T,
    /// The row of it that is the module's first: not 0 where the adapter has in one what are several modules here.
    pub first: usize,
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

    /// `values`, which the adapter has as `name`, in the type they are stored in.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] for a type that is not known.
    pub fn floats(&self, name: &str, values: &Floats) -> Result<Values> {
        Values::new(values).ok_or_else(|| {
            Error::adapter(
                &self.adapter.reference,
                format!("`{name}` is stored as {}, which {} does not run", values.float_type(), self.backend),
            )
        })
    }

    /// Checks that all of `values`, which the adapter has as `name`, are finite.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] with the first that is not.
    pub fn check_finite(&self, name: &str, values: &[f32]) -> Result<()> {
        match values.iter().find(|v| !v.is_finite()) {
            Some(value) => Err(Error::adapter(
                &self.adapter.reference,
                format!("`{name}` has the value {value}; expected finite numbers"),
            )),
            None => Ok(()),
        }
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
pub struct Changes<'a> {
    /// The shape of its weight.
    pub shape: Vec<usize>,
    /// Tensors that replace it.
    pub replaced: Vec<By<'a, ReplacementTensor>>,
    /// Rows that replace some of its.
    pub replaced_rows: Vec<By<'a, ReplacedRows>>,
    /// Low-rank pairs beside it.
    pub pairs: Vec<By<'a, LoraModule>>,
    /// Tensors that replace its bias.
    pub replaced_bias: Vec<By<'a, ReplacementTensor>>,
}

impl<'a> Changes<'a> {
    pub(super) fn new(shape: Vec<usize>) -> Self {
        let (replaced, replaced_rows, pairs, replaced_bias) = Default::default();
        Self { shape, replaced, replaced_rows, pairs, replaced_bias }
    }

    /// Rows of its weight.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Whether the weight becomes another, apart from what runs beside it.
    pub fn replaces(&self) -> bool {
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

    /// Whether the bias becomes another, or the module gets one.
    pub fn has_bias(&self) -> bool {
        !self.replaced_bias.is_empty() || self.pairs.iter().any(|pair| pair.what.bias.is_some())
    }

    /// Replaces all or some rows of `weight`, row-major.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] for numbers that are not finite, or in a type that is not known.
    pub fn replace(&self, weight: &mut [f32]) -> Result<()> {
        let width = weight.len() / self.rows();
        replace_all(weight, width, &self.replaced)?;
        if self.replaced_rows.is_empty() {
            return Ok(());
        }
        let whole = weight.to_vec();
        for by in &self.replaced_rows {
            let name = &by.what.name;
            let values = by.floats(name, &by.what.values)?.all().into_owned();
            let own = by.first..by.first + self.rows();
            for (row, new) in by.what.rows.iter().zip(values.chunks_exact(width)).filter(|(row, _)| own.contains(row)) {
                let row = row - by.first;
                let range = row * width..(row + 1) * width;
                blend(&mut weight[range.clone()], &whole[range], new, by.weight);
            }
            by.check_finite(name, &values)?;
        }
        Ok(())
    }

    /// Replaces and adds to `bias`, one number for each row.
    ///
    /// # Errors
    /// As [`Changes::replace`].
    pub fn change_bias(&self, bias: &mut [f32]) -> Result<()> {
        replace_all(bias, 1, &self.replaced_bias)?;
        for by in &self.pairs {
            let Some(added) = &by.what.bias else { continue };
            by.check_finite(&format!("{}.lora_B.bias", by.what.name), added)?;
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
        let values = by.floats(&by.what.name, &by.what.values)?;
        let values = values.all();
        by.check_finite(&by.what.name, &values)?;
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

/// The bits of the rows of one bf16 tensor that are all of a matrix of `out` rows from now on, if there is one, of `parts`:
/// modules of the matrix with the row that each begins at.
pub fn whole_bf16<'f>(parts: &[(usize, &Changes<'f>)], out: usize) -> Option<&'f [u16]> {
    let by = parts.first()?.1.replaced.first()?;
    let (new, first) = (by.what, by.first);
    let mut rows = 0;
    for (start, changes) in parts {
        match (&changes.replaced[..], &changes.replaced_rows[..]) {
            ([by], [])
                if by.weight == 1.0 && std::ptr::eq(by.what, new) && (by.first, *start) == (first + rows, rows) =>
            {
                rows += changes.rows();
            }
            _ => return None,
        }
    }
    match &new.values {
        // Where queries, keys and values are held apart, one that is fused has the rows of others too.
        Floats::Bf16(bits) if rows == out => {
            let width = bits.len() / new.shape[0];
            Some(&bits[first * width..(first + rows) * width])
        }
        _ => None,
    }
}
