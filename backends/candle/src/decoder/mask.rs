//! Which keys a chunk of queries sees.

use candle_core::{DType, Device, Result, Tensor};
use llm_local_backend_common::decoder::window::first_visible;

/// What is added to the scores of `queries` queries from `position` on, shape (queries, keys), for keys from
/// [`first_visible`] to the last query: 0 where query `i` sees key `j`, which is `j <= i` and `i - j < window`, and
/// else -inf. A single query sees them all, and needs none.
pub(crate) fn mask(
    position: usize,
    queries: usize,
    window: Option<usize>,
    dtype: DType,
    device: &Device,
) -> Result<Option<Tensor>> {
    if queries == 1 {
        return Ok(None);
    }
    let first = first_visible(position, window);
    let keys = position + queries - first;
    let mut values = vec![f32::NEG_INFINITY; queries * keys];
    for (i, row) in values.chunks_exact_mut(keys).enumerate() {
        let query = position + i;
        row[first_visible(query, window) - first..=query - first].fill(0.0);
    }
    Tensor::from_vec(values, (queries, keys), device)?.to_dtype(dtype).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visible(position: usize, queries: usize, window: Option<usize>) -> Vec<Vec<bool>> {
        let mask = mask(position, queries, window, DType::F32, &Device::Cpu).unwrap().unwrap();
        mask.to_vec2::<f32>().unwrap().iter().map(|row| row.iter().map(|x| *x == 0.0).collect()).collect()
    }

    #[test]
    fn a_query_sees_itself_and_what_is_before_it_as_far_as_the_window_goes() {
        let (x, o) = (true, false);
        assert_eq!(visible(0, 3, None), [[x, o, o], [x, x, o], [x, x, x]]);
        assert_eq!(visible(2, 2, None), [[x, x, x, o], [x, x, x, x]]);
        // The window of 2 leaves out keys 0 to 3 of the first query at 5, and 4 of the second.
        assert_eq!(visible(5, 2, Some(2)), [[x, x, o], [o, x, x]]);
        assert_eq!(visible(0, 3, Some(2)), [[x, o, o], [x, x, o], [o, x, x]]);
        assert!(mask(7, 1, Some(2), DType::F32, &Device::Cpu).unwrap().is_none());
    }
}
