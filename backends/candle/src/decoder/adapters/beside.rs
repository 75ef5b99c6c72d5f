//! Low-rank pairs beside a matrix, and DoRA's norms.

use llm_local_backend_common::decoder::adapters::{Changes, Dora, Pieces};
use llm_local_core::Result;
use rayon::prelude::*;

use super::{Making, Matrix, SidePath, replaced::on_cpu};
use crate::decoder::{linear::tile_rows, product::threads, side::OnDevice};

impl<'a> Making<'a> {
    /// The pairs of `parts` beside `weight`, which has been replaced already where it is.
    pub(super) fn beside(&self, weight: &Matrix, parts: &[(usize, &Changes<'a>)]) -> Result<Option<SidePath>> {
        let (out, width) = self.ok("a matrix has no shape", weight.dims())?;
        let Some(Pieces { pieces, factors }) = Pieces::new(parts, out, |dora| self.norms(weight, dora))? else {
            return Ok(None);
        };
        let mut side = SidePath { width, out, pieces, factors, on_device: None };
        let (dtype, device) = (self.decoder.dtype(), self.decoder.device());
        if !device.is_cpu() {
            let made = OnDevice::new((out, width), &side.pieces, side.factors.as_deref(), dtype, device);
            side.on_device = Some(self.ok("adapters could not be put on the device", made)?);
            (side.pieces, side.factors) = (Vec::new(), None);
        }
        Ok(Some(side))
    }

    /// The norms that `dora` divides by, from tiles of rows that are widened to f32.
    fn norms(&self, weight: &Matrix, dora: &Dora<'_>) -> Result<Vec<f64>> {
        let weight = self.ok("a matrix could not be read", on_cpu(weight))?;
        let (start, rows) = (dora.rows().start, dora.rows().len());
        let at_once = tile_rows(dora.width(), rows.div_ceil(threads()));
        let tiles = (0..rows.div_ceil(at_once)).into_par_iter().map(|tile| {
            let (first, last) = (tile * at_once, rows.min((tile + 1) * at_once));
            let mut norms = Vec::with_capacity(last - first);
            weight.widened(start + first, start + last, &mut |wide| norms.extend(dora.norms(first, wide)))?;
            Ok(norms)
        });
        let norms: candle_core::Result<Vec<Vec<f64>>> = tiles.collect();
        Ok(self.ok("a matrix could not be widened", norms)?.into_iter().flatten().collect())
    }
}
