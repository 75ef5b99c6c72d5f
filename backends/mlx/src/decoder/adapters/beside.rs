//! Low-rank pairs beside a matrix, and DoRA's norms.

use llm_local_backend_common::decoder::adapters::{Changes, Dora, Pieces};
use llm_local_core::Result;

use super::{Making, Matrix, to_f32};
use crate::decoder::side::SidePath;

/// f32 elements of a matrix that are widened at one time for its norms.
const TILE: usize = 1024 * 1024;

impl<'a> Making<'a> {
    /// The pairs of `parts` beside `weight`, which has been replaced already where it is.
    pub(super) fn beside(&self, weight: &Matrix, parts: &[(usize, &Changes<'a>)]) -> Result<Option<SidePath>> {
        let dims = weight.dims();
        let Some(pieces) = Pieces::new(parts, dims.0, |dora| self.norms(weight, dora))? else { return Ok(None) };
        let side = SidePath::new(&pieces, dims, self.decoder.dimensions.activations);
        self.ok("adapters could not be put on the device", side).map(Some)
    }

    /// The norms of a matrix's rows with a pair of DoRA, in tiles: a large matrix is never whole in f32.
    fn norms(&self, weight: &Matrix, dora: &Dora<'_>) -> Result<Vec<f64>> {
        let rows = dora.rows();
        let mut norms = Vec::with_capacity(rows.len());
        for first in (0..rows.len()).step_by((TILE / dora.width()).max(1)) {
            let tile = rows.start + first..rows.end.min(rows.start + first + (TILE / dora.width()).max(1));
            let wide = weight.widened(tile).and_then(|wide| to_f32(&wide));
            norms.extend(dora.norms(first, &self.ok("a matrix could not be widened", wide)?));
        }
        Ok(norms)
    }
}
