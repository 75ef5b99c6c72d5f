//! Keys and values of one sequence.

use candle_core::{DType, Device, Result, Tensor};
use llm_local_backend_common::decoder::window::{first_visible, most_rows, saved_from};

/// Rows that a cache begins with, at least.
const FEWEST_ROWS: usize = 64;

/// The keys and values of one sequence, layer by layer.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) layers: Vec<LayerCache>,
    /// Tokens computed.
    pub(crate) tokens: usize,
    /// Tokens that the sequence is expected to have, so that room for them is made at once.
    pub(crate) expected: usize,
    /// Whether it is computed with the rotary frequencies of long sequences.
    pub(crate) long: bool,
}

/// What all layers' caches have in common.
#[derive(Debug, Clone)]
pub(crate) struct Dimensions {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) context_length: usize,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
}

/// The keys and values of one layer.
#[derive(Debug)]
pub(crate) struct LayerCache {
    /// Keys and values, each of shape (kv_heads, capacity, head_dim): by head, so that any run of positions is an
    /// operand of a matrix product as it lies.
    buffers: Option<[Tensor; 2]>,
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

    /// A cache with copies of `rows`, keys and values of shape (kv_heads, rows, head_dim), from position `first` on.
    pub(crate) fn from_rows(window: Option<usize>, first: usize, rows: Option<&(Tensor, Tensor)>) -> Result<Self> {
        let Some((keys, values)) = rows else { return Ok(Self { first, ..Self::new(window) }) };
        let buffers = Some([keys.force_contiguous()?, values.force_contiguous()?]);
        Ok(Self { buffers, window, first, rows: keys.dim(1)? })
    }

    /// Keys and values, if there are any: shape (kv_heads, rows, head_dim).
    pub(crate) fn rows(&self) -> Result<Option<(Tensor, Tensor)>> {
        self.rows_behind(0)
    }

    /// The rows that are worth saving, and the position of the first.
    pub(crate) fn saved(&self) -> Result<(usize, Option<(Tensor, Tensor)>)> {
        let from = self.first.max(saved_from(self.window, self.first + self.rows));
        Ok((from, self.rows_behind(from - self.first)?))
    }

    /// All but the first `skipped` rows.
    fn rows_behind(&self, skipped: usize) -> Result<Option<(Tensor, Tensor)>> {
        let count = self.rows - skipped;
        match &self.buffers {
            Some([keys, values]) if count > 0 => {
                Ok(Some((keys.narrow(1, skipped, count)?, values.narrow(1, skipped, count)?)))
            }
            _ => Ok(None),
        }
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
        self.buffers.iter().flatten().map(bytes).sum()
    }

    /// Puts `keys` and `values`, shape (kv_heads, n, head_dim), behind the rows there are. Returns those that queries
    /// at these positions may see, from [`first_visible`] on. `expected` is the length that the sequence is expected
    /// to have.
    pub(crate) fn append(
        &mut self,
        keys: &Tensor,
        values: &Tensor,
        expected: usize,
        of: &Dimensions,
    ) -> Result<(Tensor, Tensor)> {
        let count = keys.dim(1)?;
        self.make_room(count, expected, of)?;
        let Some([all_keys, all_values]) = &self.buffers else {
            candle_core::bail!("the KV cache has no room for {count} positions");
        };
        all_keys.slice_set(&keys.contiguous()?, 1, self.rows)?;
        all_values.slice_set(&values.contiguous()?, 1, self.rows)?;
        let start = first_visible(self.first + self.rows, self.window) - self.first;
        self.rows += count;
        let visible = |t: &Tensor| t.narrow(1, start, self.rows - start);
        Ok((visible(all_keys)?, visible(all_values)?))
    }

    /// Drops rows that a window has left behind, or grows.
    fn make_room(&mut self, count: usize, expected: usize, of: &Dimensions) -> Result<()> {
        let capacity = self.capacity()?;
        if self.rows + count <= capacity {
            return Ok(());
        }
        let next = self.first + self.rows;
        // Rows that the next query sees, which is all of them without a window.
        let kept = next - first_visible(next, self.window).max(self.first);
        let most = most_rows(self.window, count, of.context_length);
        let wanted = expected.max(2 * capacity).max(FEWEST_ROWS).min(most).max(kept + count);
        let old = std::mem::take(&mut self.buffers);
        let moved = |t: Tensor| -> Result<Tensor> {
            let rows = t.narrow(1, self.rows - kept, kept)?.force_contiguous()?;
            let target = if wanted > capacity {
                Tensor::zeros((of.kv_heads, wanted, of.head_dim), of.dtype, &of.device)?
            } else {
                t
            };
            target.slice_set(&rows, 1, 0)?;
            Ok(target)
        };
        self.buffers = Some(match old {
            Some([keys, values]) if kept > 0 => [moved(keys)?, moved(values)?],
            _ => {
                let empty = || Tensor::zeros((of.kv_heads, wanted, of.head_dim), of.dtype, &of.device);
                [empty()?, empty()?]
            }
        });
        self.first = next - kept;
        self.rows = kept;
        Ok(())
    }

    fn capacity(&self) -> Result<usize> {
        self.buffers.as_ref().map_or(Ok(0), |[keys, _]| keys.dim(1))
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

    /// One of its own with the same rows.
    pub(crate) fn copied(&self) -> Result<Self> {
        Self::from_rows(self.window, self.first, self.rows()?.as_ref())
    }
}
