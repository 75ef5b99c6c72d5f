//! The order of rows that GGUF files of some architectures have.

use super::{DecoderConfig, ModuleRole};

/// The order of rows of queries and keys in GGUF files: dimensions `i` and `i + head_dim / 2` of each head stand side by
/// side there (llama.cpp, `convert_hf_to_gguf.py`, `permute`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowOrder {
    head_dim: usize,
}

impl RowOrder {
    /// The order of heads of `head_dim` rows, an even number.
    pub fn new(head_dim: usize) -> Self {
        Self { head_dim }
    }

    /// The row of a GGUF file that is row `row` of the Hugging Face layout.
    pub fn stored(self, row: usize) -> usize {
        let (head, within) = (row / self.head_dim, row % self.head_dim);
        let (half, i) = (within / (self.head_dim / 2), within % (self.head_dim / 2));
        head * self.head_dim + 2 * i + half
    }

    /// The row of the Hugging Face layout that is row `row` of a GGUF file.
    pub fn original(self, row: usize) -> usize {
        let (head, within) = (row / self.head_dim, row % self.head_dim);
        let (i, half) = (within / 2, within % 2);
        head * self.head_dim + half * (self.head_dim / 2) + i
    }
}

impl DecoderConfig {
    /// The order in which GGUF files hold the rows of the module `role`, if it is another than that of the Hugging Face
    /// layout.
    pub fn gguf_row_order(&self, role: ModuleRole) -> Option<RowOrder> {
        let is_permuted = matches!(role, ModuleRole::Query | ModuleRole::Key)
            && self.architecture.permutes_query_key_in_gguf()
            && self.head_dim.is_multiple_of(2);
        is_permuted.then(|| RowOrder::new(self.head_dim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_where_llama_cpp_puts_them_and_come_back() {
        // permute: reshape(heads, 2, head_dim / 2).swapaxes(1, 2) of 0..8 with two heads.
        let order = RowOrder::new(4);
        let stored: Vec<_> = (0..8).map(|row| order.original(row)).collect();
        assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7]);
        let order = RowOrder::new(6);
        assert_eq!((0..6).map(|row| order.original(row)).collect::<Vec<_>>(), [0, 3, 1, 4, 2, 5]);
        assert!(
            (0..24).all(|row| order.original(order.stored(row)) == row && order.stored(order.original(row)) == row)
        );
    }
}
