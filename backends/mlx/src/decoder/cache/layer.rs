//! Keys and values of one layer.

use llm_local_backend_common::decoder::window::{first_visible, most_rows, saved_from};
use mlx_rs::{
    Array,
    error::Result,
    ops::{
        concatenate,
        indexing::{TryIndexMutOp, TryIndexOp},
        zeros_dtype,
    },
};

use super::Dimensions;
use crate::decoder::numbers::{int, length};

/// Rows that a cache grows by, at least. A step copies what there is, and a longer one leaves more of it unused.
pub(super) const STEP: usize = 256;

/// Keys or values as they are kept: one array of floats, or integers, scales and biases; each of shape
/// (1, kv_heads, rows, _).
pub(crate) type Kept = Vec<Array>;

/// The keys and values of one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerCache {
    /// Keys and values, by head, so that any run of positions is an operand of a product as it lies. Nothing else holds
    /// these arrays between steps: MLX then writes new rows to their place, and copies nothing.
    buffers: Option<[Kept; 2]>,
    /// Keys that a query sees, itself included; all without one.
    window: Option<usize>,
    /// The position of row 0.
    first: usize,
    /// Rows in use.
    rows: usize,
}

impl LayerCache {
    pub(crate) fn new(window: Option<usize>) -> Self {
        Self { buffers: None, window, first: 0, rows: 0 }
    }

    /// A cache of `rows`, keys and values of shape (kv_heads, rows, head_dim), from position `first` on, in the float type
    /// that they are kept in.
    pub(crate) fn from_rows(window: Option<usize>, first: usize, rows: Option<(Array, Array)>) -> Result<Self> {
        let Some((keys, values)) = rows else { return Ok(Self { first, ..Self::new(window) }) };
        let buffers = Some([vec![keys.expand_dims(0)?], vec![values.expand_dims(0)?]]);
        Ok(Self { buffers, window, first, rows: length(&keys, 1) })
    }

    /// The keys and values that are worth saving, of a cache of floats: shape (kv_heads, rows, head_dim) if there are any,
    /// and the position of the first.
    pub(crate) fn saved(&self) -> Result<(usize, Option<(Array, Array)>)> {
        let from = self.first.max(saved_from(self.window, self.first + self.rows));
        match &self.buffers {
            Some(buffers) if self.first + self.rows > from => {
                let [keys, values] = self.slices(buffers, from - self.first)?;
                Ok((from, Some((keys[0].squeeze_axes(&[0])?, values[0].squeeze_axes(&[0])?))))
            }
            _ => Ok((from, None)),
        }
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> u64 {
        self.arrays().map(|part| part.nbytes() as u64).sum()
    }

    /// All that it holds.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.buffers.iter().flatten().flatten()
    }

    /// Puts `keys` and `values`, shape (1, kv_heads, n, head_dim), behind the rows there are. `expected` is the length that
    /// the sequence is expected to have.
    pub(crate) fn append(&mut self, keys: &Array, values: &Array, expected: usize, of: &Dimensions) -> Result<()> {
        let count = length(keys, 2);
        let new = [of.kv.encoded(keys)?, of.kv.encoded(values)?];
        let mut buffers = self.with_room(&new, count, expected, of.context_length)?;
        let place = int(self.rows)..int(self.rows + count);
        for (part, new) in buffers.iter_mut().flatten().zip(new.iter().flatten()) {
            part.try_index_mut((.., .., place.clone()), new)?;
        }
        self.buffers = Some(buffers);
        self.rows += count;
        Ok(())
    }

    /// Keys and values of what queries from `position` on see, up to the last row.
    pub(crate) fn seen(&self, position: usize) -> Result<[Kept; 2]> {
        let start = first_visible(position, self.window).saturating_sub(self.first);
        self.buffers.as_ref().map_or_else(|| Ok([vec![], vec![]]), |buffers| self.slices(buffers, start))
    }

    /// The rows from row `start` on.
    fn slices(&self, buffers: &[Kept; 2], start: usize) -> Result<[Kept; 2]> {
        let part = |part: &Array| part.try_index((.., .., int(start)..int(self.rows)));
        let slices = |kept: &Kept| kept.iter().map(part).collect::<Result<Kept>>();
        let [keys, values] = buffers;
        Ok([slices(keys)?, slices(values)?])
    }

    /// Its buffers with room for `count` rows more such as `new`: as they are, or larger, without the rows that a window has
    /// left behind.
    fn with_room(
        &mut self,
        new: &[Kept; 2],
        count: usize,
        expected: usize,
        context_length: usize,
    ) -> Result<[Kept; 2]> {
        let old = self.buffers.take();
        let capacity = old.as_ref().map_or(0, |[keys, _]| length(&keys[0], 2));
        let old = match old {
            Some(old) if self.rows + count <= capacity => return Ok(old),
            old => old,
        };
        let next = self.first + self.rows;
        // Rows that the next query sees, which is all of them without a window.
        let kept = next - first_visible(next, self.window).max(self.first);
        let most = most_rows(self.window, count, context_length);
        let wanted = expected.max(capacity).max(kept + count).next_multiple_of(STEP).min(most).max(kept + count);
        let kept_rows = int(self.rows - kept)..int(self.rows);
        let larger = |old: Option<&Array>, new: &Array| {
            let room = |rows| zeros_dtype(&[1, new.dim(1), int(rows), new.dim(3)], new.dtype());
            match old {
                Some(old) if kept > 0 => {
                    concatenate(&[old.try_index((.., .., kept_rows.clone()))?, room(wanted - kept)?], 2)
                }
                _ => room(wanted),
            }
        };
        let both = |which: usize| -> Result<Kept> {
            let old = |part: usize| old.as_ref().map(|old| &old[which][part]);
            new[which].iter().enumerate().map(|(part, new)| larger(old(part), new)).collect()
        };
        let buffers = [both(0)?, both(1)?];
        (self.first, self.rows) = (next - kept, kept);
        Ok(buffers)
    }

    /// Whether the rows that a query at position `tokens` sees are still there.
    pub(crate) fn reaches(&self, tokens: usize) -> bool {
        first_visible(tokens, self.window) >= self.first || tokens == 0
    }

    /// Forgets the rows from position `tokens` on; [`LayerCache::reaches`] has said that it can.
    pub(crate) fn truncate(&mut self, tokens: usize) {
        if tokens <= self.first {
            (self.first, self.rows) = (tokens, 0);
        } else {
            self.rows = self.rows.min(tokens - self.first);
        }
    }
}
