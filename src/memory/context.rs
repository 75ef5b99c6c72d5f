//! How long a context is: the least of what the spec asks for, what the model was made for, what the device's memory is
//! good for by a table, what the backend can hold, and what fits.

use llm_local_core::{ContextLength, DecimalBytes, Error, Result};
use serde::{Deserialize, Serialize};

/// Bytes of the unit that memory is sold in.
const GB: u64 = 1_000_000_000;

/// The context where no row bounds it, and neither do the spec, the model nor the backend.
const UNBOUNDED: usize = 4096;

/// The fewest tokens that an automatic context is shortened to.
pub(crate) const FEWEST: usize = 256;

/// What a context that is shortened to what fits is a multiple of, if it is as long.
const STEP: usize = 64;

/// Which context memory is good for, if nobody asks for less: rows of a table, by the physical memory of the device that
/// holds the KV cache.
///
/// By default 2048 tokens, and 4096 from 12 GB on. It is a bound among others: of the spec, of the model, and of what fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<ContextTier>", into = "Vec<ContextTier>")]
pub struct ContextTiers(Vec<ContextTier>);

/// A row of [`ContextTiers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ContextTier {
    /// The memory from which on it holds, in bytes.
    pub from_bytes: u64,
    /// The longest context, in tokens; `u32::MAX` bounds nothing.
    pub tokens: u32,
}

impl ContextTier {
    /// At most `tokens` tokens from `from_bytes` bytes of memory on.
    pub fn new(from_bytes: u64, tokens: u32) -> Self {
        Self { from_bytes, tokens }
    }
}

impl ContextTiers {
    /// A table of `rows`, in any order.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a table without a row from 0 bytes on, with two rows of the same memory, with a row of no
    /// tokens, or in which more memory gives fewer tokens.
    pub fn new(rows: impl IntoIterator<Item = ContextTier>) -> Result<Self> {
        let invalid = |reason: String| Err(Error::invalid_spec("context_tiers", reason));
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_by_key(|row| row.from_bytes);
        match rows.first() {
            None => return invalid("it has no rows; expected one with `from_bytes` 0 at least".into()),
            Some(ContextTier { from_bytes: 0, .. }) => {}
            Some(ContextTier { from_bytes, .. }) => {
                return invalid(format!(
                    "its first row is from {from_bytes} bytes on; expected one with `from_bytes` 0"
                ));
            }
        }
        if let Some(ContextTier { from_bytes, .. }) = rows.iter().find(|row| row.tokens == 0) {
            return invalid(format!("its row from {from_bytes} bytes on has 0 tokens; expected at least 1"));
        }
        for pair in rows.windows(2) {
            let [ContextTier { from_bytes, tokens }, next] = *pair else { continue };
            if from_bytes == next.from_bytes {
                return invalid(format!("it has two rows from {from_bytes} bytes on; expected one"));
            }
            if tokens > next.tokens {
                return invalid(format!(
                    "its row from {from_bytes} bytes on has {tokens} tokens, and the next, from {} bytes on, {}; expected \
                     no fewer for more memory",
                    next.from_bytes, next.tokens
                ));
            }
        }
        Ok(Self(rows))
    }

    /// A table that bounds nothing: the context is then as long as the spec, the model, the backend and memory allow.
    pub fn unlimited() -> Self {
        Self(vec![ContextTier::new(0, u32::MAX)])
    }

    /// The rows, by memory.
    pub fn rows(&self) -> &[ContextTier] {
        &self.0
    }

    /// The row for `usable` bytes, rounded up to whole GB of 10^9 bytes, as systems report less than is fitted. The first
    /// one where that is unknown.
    pub fn row(&self, usable: Option<u64>) -> ContextTier {
        let fitted = usable.map_or(0, |bytes| bytes.div_ceil(GB).saturating_mul(GB));
        let after = self.0.partition_point(|row| row.from_bytes <= fitted);
        // There is a row from 0 on.
        self.0[after.max(1) - 1]
    }
}

impl Default for ContextTiers {
    fn default() -> Self {
        Self(vec![ContextTier::new(0, 2048), ContextTier::new(12 * GB, 4096)])
    }
}

impl TryFrom<Vec<ContextTier>> for ContextTiers {
    type Error = Error;

    fn try_from(rows: Vec<ContextTier>) -> Result<Self> {
        Self::new(rows)
    }
}

impl From<ContextTiers> for Vec<ContextTier> {
    fn from(tiers: ContextTiers) -> Self {
        tiers.0
    }
}

/// A context, and why it is as long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DecidedContext {
    pub(crate) tokens: usize,
    /// For people.
    pub(crate) reason: String,
}

/// What bounds a context, whatever memory is left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ContextBounds<'a> {
    asked: ContextLength,
    model: Option<usize>,
    tier: ContextTier,
    /// Of the device that holds the KV cache.
    memory: Option<u64>,
    backend: Option<(&'a str, usize)>,
}

impl<'a> ContextBounds<'a> {
    /// What the spec asked for; the tokens that the model was made for, if it says; and the row of `tiers` for a device of
    /// `usable` bytes of physical memory, or of what a control group leaves of them.
    pub(crate) fn new(
        asked: ContextLength,
        model: Option<usize>,
        tiers: &ContextTiers,
        usable: Option<u64>,
    ) -> ContextBounds<'static> {
        ContextBounds { asked, model, tier: tiers.row(usable), memory: usable, backend: None }
    }

    /// With the tokens that the backend `name` can hold of this model, if it has a limit.
    pub(crate) fn with_backend(self, name: &str, most: Option<usize>) -> ContextBounds<'_> {
        ContextBounds { backend: most.map(|most| (name, most)), ..self }
    }

    /// The context if it fits: the least of the bounds, of which the first that is as low is told.
    pub(crate) fn context(&self) -> DecidedContext {
        let asked = match self.asked {
            ContextLength::Tokens(n) => Some(n as usize),
            _ => None,
        };
        let tier = (self.tier.tokens < u32::MAX).then_some(self.tier.tokens as usize);
        let backend = self.backend.map(|(_, most)| most);
        let Some(tokens) = [asked, self.model, tier, backend].into_iter().flatten().min() else {
            let reason =
                format!("{UNBOUNDED}, as neither the spec, the model, the table of contexts nor the backend says");
            return DecidedContext { tokens: UNBOUNDED, reason };
        };
        let but = asked.map(|n| format!("the spec asks for {n}, but ")).unwrap_or_default();
        let reason = if asked == Some(tokens) {
            format!("the spec asks for {tokens}")
        } else if self.model == Some(tokens) {
            format!("{but}the model was made for {tokens}")
        } else if tier == Some(tokens) {
            let replace = match asked {
                Some(_) => "; `EngineBuilder::memory` takes another table (`MemoryPolicy::context_tiers`)",
                None => "",
            };
            format!("{but}{tokens} is the most for {}{replace}", self.memory_text())
        } else {
            let name = self.backend.map_or("", |(name, _)| name);
            format!("{but}backend `{name}` can hold {tokens} tokens of this model at most")
        };
        DecidedContext { tokens, reason }
    }

    fn memory_text(&self) -> String {
        match self.memory {
            Some(bytes) => format!("a device with {} GB of memory", bytes.div_ceil(GB)),
            None => "a device whose memory is not known".into(),
        }
    }

    /// The context, where `estimate` gives the bytes that a context of so many tokens takes, with all that the model takes
    /// beside it, and `room` is how many there are; unknown room is not checked. `estimate` must not fall with the tokens. It
    /// is asked a logarithmic number of times, and for no more tokens than [`ContextBounds::context`] has.
    ///
    /// One that the spec asks for is never shortened to what fits; an automatic one is, to [`FEWEST`] tokens at least.
    ///
    /// # Errors
    /// [`Error::InsufficientMemory`] with the longest context that would fit, if there is one; those of `estimate`.
    pub(crate) fn fitting(
        &self,
        room: Option<u64>,
        mut estimate: impl FnMut(usize) -> Result<u64>,
    ) -> Result<DecidedContext> {
        let bound = self.context();
        let Some(room) = room else { return Ok(bound) };
        let required = estimate(bound.tokens)?;
        if required <= room {
            return Ok(bound);
        }
        let fewest = FEWEST.min(bound.tokens);
        let largest = largest(bound.tokens, |tokens| Ok(estimate(tokens)? <= room))?;
        let error = |required: u64, hint: String| {
            Err(Error::insufficient_memory(required, room).with_largest_context(largest).with_memory_hint(hint))
        };
        let DecidedContext { tokens, reason } = bound;
        match (largest, matches!(self.asked, ContextLength::Tokens(_))) {
            (Some(largest), false) if largest >= fewest => {
                let (room, required) = (DecimalBytes(room), DecimalBytes(required));
                let reason = format!("what fits into {room}; {tokens} tokens would take {required} ({reason})");
                Ok(DecidedContext { tokens: largest, reason })
            }
            (Some(largest), false) => error(
                estimate(fewest)?,
                format!(
                    "that is with a context of {fewest} tokens, the shortest that is chosen by itself; {largest} would fit: \
                     ask for them in the spec (`context_length`), or unload other models"
                ),
            ),
            (Some(largest), true) => error(
                required,
                format!(
                    "that is with a context of {tokens} tokens ({reason}); {largest} would fit: ask for them in the spec \
                     (`context_length`), or unload other models"
                ),
            ),
            (None, _) => {
                let required = estimate(fewest)?;
                error(
                    required,
                    format!(
                        "that is with a context of {fewest} tokens, and not even one of 1 fits beside the weights; unload other \
                         models, or use a smaller or a quantized one"
                    ),
                )
            }
        }
    }
}

/// The largest number below `end`, which does not fit, that does, by halving; a multiple of [`STEP`] if it is as large.
/// `None` if not even 1 does.
fn largest(end: usize, mut fits: impl FnMut(usize) -> Result<bool>) -> Result<Option<usize>> {
    let (mut fitting, mut too_large) = (0, end);
    while too_large - fitting > 1 {
        let middle = fitting + (too_large - fitting) / 2;
        if fits(middle)? {
            fitting = middle;
        } else {
            too_large = middle;
        }
    }
    let rounded = if fitting >= STEP { fitting / STEP * STEP } else { fitting };
    Ok(Some(rounded).filter(|tokens| *tokens > 0))
}

#[cfg(test)]
mod tests;
