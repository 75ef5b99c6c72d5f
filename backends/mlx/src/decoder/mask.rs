//! Which keys a chunk of queries sees.

use llm_local_backend_common::decoder::window::first_visible;
use mlx_rs::{Array, Dtype, error::Result};

use super::numbers::int;

/// What a chunk of several queries does not see.
#[derive(Debug, Clone)]
pub(crate) enum Mask {
    /// Each query sees the keys up to itself. MLX's own attention skips what it need not compute then.
    Causal,
    /// What is added to the scores, shape (queries, keys): 0 for a key that is seen, and else -inf.
    Added(Array),
}

/// The mask of `queries` queries from `position` on, for keys from [`first_visible`] to the last query: query `i` sees key
/// `j` where `j <= i` and `i - j < window`. A single query sees them all, and needs none. `named` says that attention
/// knows [`Mask::Causal`].
pub(crate) fn mask(
    position: usize,
    queries: usize,
    window: Option<usize>,
    named: bool,
    dtype: Dtype,
) -> Result<Option<Mask>> {
    if queries == 1 {
        return Ok(None);
    }
    let all_in_window = window.is_none_or(|window| position + queries <= window);
    if named && all_in_window {
        return Ok(Some(Mask::Causal));
    }
    let first = first_visible(position, window);
    let keys = position + queries - first;
    let mut values = vec![f32::NEG_INFINITY; queries * keys];
    for (i, row) in values.chunks_exact_mut(keys).enumerate() {
        let query = position + i;
        row[first_visible(query, window) - first..=query - first].fill(0.0);
    }
    let values = Array::from_slice(&values, &[int(queries), int(keys)]);
    values.as_dtype(dtype).map(|values| Some(Mask::Added(values)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visible(position: usize, queries: usize, window: Option<usize>) -> Vec<Vec<bool>> {
        let Some(Mask::Added(mask)) = mask(position, queries, window, false, Dtype::Float32).unwrap() else {
            panic!("no mask that is added");
        };
        let keys = mask.dim(1) as usize;
        mask.as_slice::<f32>().chunks(keys).map(|row| row.iter().map(|x| *x == 0.0).collect()).collect()
    }

    #[test]
    fn a_query_sees_itself_and_what_is_before_it_as_far_as_the_window_goes() {
        let (x, o) = (true, false);
        assert_eq!(visible(0, 3, None), [[x, o, o], [x, x, o], [x, x, x]]);
        assert_eq!(visible(2, 2, None), [[x, x, x, o], [x, x, x, x]]);
        // The window of 2 leaves out keys 0 to 3 of the first query at 5, and 4 of the second.
        assert_eq!(visible(5, 2, Some(2)), [[x, x, o], [o, x, x]]);
        assert_eq!(visible(0, 3, Some(2)), [[x, o, o], [x, x, o], [o, x, x]]);
        assert!(mask(7, 1, Some(2), false, Dtype::Float32).unwrap().is_none());
    }

    #[test]
    fn a_mask_is_named_where_no_window_hides_a_key() {
        let is_named = |position, queries, window| {
            matches!(mask(position, queries, window, true, Dtype::Float32).unwrap(), Some(Mask::Causal))
        };
        assert!(is_named(0, 3, None) && is_named(7, 2, None) && is_named(2, 2, Some(4)));
        assert!(!is_named(2, 3, Some(4)));
    }
}
