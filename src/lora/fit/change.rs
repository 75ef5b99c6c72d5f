//! What adapters do to the tensors of a base, as data: the check makes it, the merge carries it out.

use llm_local_core::{Encoding, model::RowOrder};

/// A tensor of the merged base that is another than the base's own.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::lora) struct Change {
    /// Its name in the merged base.
    pub(in crate::lora) name: String,
    /// The tensor of the base that it starts from: another one for a head that was tied.
    pub(in crate::lora) from: String,
    /// The shape of that tensor.
    pub(in crate::lora) base_shape: Vec<usize>,
    /// Its own shape: more rows than the base's where a vocabulary grows.
    pub(in crate::lora) shape: Vec<usize>,
    /// How the base stores it.
    pub(in crate::lora) stored: Encoding,
    /// What is done to it.
    pub(in crate::lora) terms: Vec<Term>,
}

/// What one adapter does to a tensor.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::lora) struct Term {
    /// The adapter's index.
    pub(in crate::lora) adapter: usize,
    pub(in crate::lora) kind: TermKind,
    /// Which of the tensor's rows come from which of the adapter's.
    pub(in crate::lora) rows: Placement,
}

/// Where a term comes from; the number is the index in the adapter's list of such.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::lora) enum TermKind {
    /// A low-rank pair, or one for each expert.
    Pair {
        module: usize,
        /// Whether the tensor holds (in, out).
        transposed: bool,
    },
    /// The bias of a pair's B.
    PairBias { module: usize },
    /// A whole tensor, to each value of which `offset` is added.
    Replacement { index: usize, offset: f32 },
    /// Some rows.
    Rows { index: usize },
}

/// Which rows of a tensor come from which rows of an adapter's part. Rows of tensors with more than two dimensions are
/// counted through all but the last; those of a vector are its elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::lora) struct Placement {
    /// The first row of the tensor.
    pub(in crate::lora) first: usize,
    /// How many rows.
    pub(in crate::lora) rows: usize,
    /// The adapter's row that is the first of these.
    pub(in crate::lora) source: usize,
    /// Where their order differs: the order, and whether it is the tensor that has it instead of the adapter.
    pub(in crate::lora) order: Option<(RowOrder, bool)>,
}

impl Placement {
    /// Rows as they are.
    pub(in crate::lora) fn whole(rows: usize) -> Self {
        Self { first: 0, rows, source: 0, order: None }
    }

    /// The adapter's row for the row `row` of the tensor, if it has one.
    pub(in crate::lora) fn source_of(&self, row: usize) -> Option<usize> {
        let within = row.checked_sub(self.first).filter(|within| *within < self.rows)?;
        let within = match self.order {
            None => within,
            Some((order, true)) => order.original(within),
            Some((order, false)) => order.stored(within),
        };
        Some(self.source + within)
    }
}
