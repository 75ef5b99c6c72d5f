//! How much adapters may take.

use llm_local_core::{Error, LoraAdapter, Result};

use crate::lora::{AdapterOutline, FittedAdapter};

/// The most that the adapters of one model may be: those of a spec, and those of each set that a loaded model is given or
/// a request names. What several sets of one model share counts in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdapterLimits {
    /// How many apply together.
    pub count: usize,
    /// The rank of a pair of factors.
    pub rank: usize,
    /// Bytes of memory that the tensors of all that apply together take, as they are read.
    pub bytes: u64,
}

impl Default for AdapterLimits {
    /// 16 adapters, of rank 1024 at most, of 4 GiB together: more than adapters have in use, of which rank 256 and 2 GB are
    /// large ones, and little enough that a file by mistake does not take the machine.
    fn default() -> Self {
        Self { count: 16, rank: 1024, bytes: 4 << 30 }
    }
}

impl AdapterLimits {
    /// No limits.
    pub fn none() -> Self {
        Self { count: usize::MAX, rank: usize::MAX, bytes: u64::MAX }
    }

    /// Sets how many apply together.
    pub fn with_count(mut self, count: usize) -> Self {
        self.count = count;
        self
    }

    /// Sets the largest rank of a pair.
    pub fn with_rank(mut self, rank: usize) -> Self {
        self.rank = rank;
        self
    }

    /// Sets how many bytes all that apply together take at most.
    pub fn with_bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// Checks that `found` adapters, called `names`, may apply together.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] that names the limit.
    pub(in crate::engine) fn check_count(&self, found: usize, names: impl FnOnce() -> String) -> Result<()> {
        if found <= self.count {
            return Ok(());
        }
        Err(exceeded(names(), format!("{found} adapters are to apply together"), "count", self.count))
    }

    /// Checks all that can be said of adapters that are to apply together.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] that names the adapter and the limit.
    pub(in crate::engine) fn check<'a, T: Into<Size<'a>>>(&self, adapters: impl IntoIterator<Item = T>) -> Result<()> {
        let (mut bytes, mut all) = (0, Vec::new());
        for Size { reference, rank, bytes: own } in adapters.into_iter().map(Into::into) {
            all.push(reference);
            if rank > self.rank {
                return Err(exceeded(reference, format!("its largest rank is {rank}"), "rank", self.rank));
            }
            bytes += own;
            if bytes > self.bytes {
                let so_far = if all.len() == 1 { "" } else { " with those before it" };
                return Err(exceeded(reference, format!("it takes {bytes} bytes{so_far}"), "bytes", self.bytes));
            }
        }
        self.check_count(all.len(), || super::names(&all))
    }
}

/// How large an adapter is.
pub(in crate::engine) struct Size<'a> {
    reference: &'a str,
    rank: usize,
    bytes: u64,
}

impl<'a> From<&'a LoraAdapter> for Size<'a> {
    fn from(adapter: &'a LoraAdapter) -> Self {
        let rank = adapter.modules.iter().map(|module| module.rank).max().unwrap_or(0);
        Self { reference: &adapter.reference, rank, bytes: adapter.byte_len() as u64 }
    }
}

impl<'a> From<(&'a str, &'a AdapterOutline)> for Size<'a> {
    fn from((reference, outline): (&'a str, &'a AdapterOutline)) -> Self {
        Self { reference, rank: outline.ranks().last().copied().unwrap_or(0), bytes: outline.bytes() }
    }
}

impl<'a> From<&'a FittedAdapter> for Size<'a> {
    fn from(adapter: &'a FittedAdapter) -> Self {
        Self { reference: &adapter.reference, rank: adapter.ranks.1, bytes: adapter.bytes }
    }
}

fn exceeded(adapter: impl std::fmt::Display, found: String, limit: &str, most: impl std::fmt::Display) -> Error {
    let reason =
        format!("{found}, above the limit `{limit}` of {most}; set another by `EngineBuilder::adapter_limits`");
    Error::adapter(adapter, reason)
}
