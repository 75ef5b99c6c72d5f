//! Low-rank pairs beside a matrix, and DoRA's norms.

use llm_local_core::{Error, Result};
use rayon::prelude::*;

use super::{
    Making, Matrix, SidePath,
    changes::{Changes, Stretch, check_finite, floats},
    replaced::on_cpu,
};
use crate::decoder::{
    linear::tile_rows,
    product::threads,
    side::{OnDevice, Piece, Values},
};

impl<'a> Making<'a> {
    /// The pairs of `parts` beside `weight`, which has been replaced already where it is.
    pub(super) fn beside(&self, weight: &Matrix, parts: &[(usize, &Changes<'a>)]) -> Result<Option<SidePath>> {
        let (out, width) = self.ok("a matrix has no shape", weight.dims())?;
        let mut pieces = Vec::new();
        let mut factors: Option<Vec<f32>> = None;
        for stretch in Stretch::all(parts) {
            let (by, rows, of_module) = (stretch.by, stretch.rows.clone(), stretch.of_module());
            let module = by.what;
            let tensor = |which: &str| format!("{}.lora_{which}", module.name);
            let (a, b) = (floats(by.adapter, &tensor("A"), &module.a)?, floats(by.adapter, &tensor("B"), &module.b)?);
            check_finite(by.adapter, &tensor("A"), &a.all())?;
            check_finite(by.adapter, &tensor("B"), &b.all())?;
            let b = b.range(of_module.start * module.rank..of_module.end * module.rank);
            let mut transposed = b.transposed(module.rank);
            if let Some(gains) = self.gains(weight, &stretch, (&a, &b))? {
                transposed = multiplied(&transposed, &gains);
                let factors = factors.get_or_insert_with(|| vec![1.0; out]);
                for (factor, gain) in factors[rows.clone()].iter_mut().zip(&gains) {
                    *factor += (f64::from(by.weight) * (gain - 1.0)) as f32;
                }
            }
            let scale = (f64::from(by.weight) * module.scale) as f32;
            pieces.push(Piece { rank: module.rank, rows, a, b: transposed, scale });
        }
        if pieces.is_empty() {
            return Ok(None);
        }
        let mut side = SidePath { width, out, pieces, factors, on_device: None };
        let (dtype, device) = (self.decoder.dtype(), self.decoder.device());
        if !device.is_cpu() {
            let made = OnDevice::new((out, width), &side.pieces, side.factors.as_deref(), dtype, device);
            side.on_device = Some(self.ok("adapters could not be put on the device", made)?);
            (side.pieces, side.factors) = (Vec::new(), None);
        }
        Ok(Some(side))
    }

    /// DoRA's `m / n` for each row of a stretch (arXiv:2402.09353), where n are the norms of the rows of `W + s B A`; of B,
    /// the rows are given that are the stretch's. The adapter's own weight is no part of it.
    fn gains(
        &self,
        weight: &Matrix,
        stretch: &Stretch<'_, '_>,
        (a, b): (&Values, &Values),
    ) -> Result<Option<Vec<f64>>> {
        let (by, of_module, start) = (stretch.by, stretch.of_module(), stretch.rows.start);
        let module = by.what;
        let Some(magnitude) = module.magnitude.as_ref().map(|all| &all[of_module.clone()]) else { return Ok(None) };
        let (a, b, scale) = (a.all(), b.all(), module.scale as f32);
        let weight = self.ok("a matrix could not be read", on_cpu(weight))?;
        let rows = stretch.rows.len();
        let at_once = tile_rows(module.in_features, rows.div_ceil(threads()));
        let tiles = (0..rows.div_ceil(at_once)).into_par_iter().map(|tile| {
            let (first, last) = (tile * at_once, rows.min((tile + 1) * at_once));
            let mut norms = Vec::with_capacity(last - first);
            weight.widened(start + first, start + last, &mut |wide| {
                let mut sum = vec![0f32; module.in_features];
                for (w, b) in
                    wide.chunks_exact(module.in_features).zip(b[first * module.rank..].chunks_exact(module.rank))
                {
                    sum.copy_from_slice(w);
                    for (a, b) in a.chunks_exact(module.in_features).zip(b) {
                        let by = scale * b;
                        sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += by * a);
                    }
                    norms.push(sum.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt());
                }
            })?;
            Ok(norms)
        });
        let norms: candle_core::Result<Vec<Vec<f64>>> = tiles.collect();
        let norms = self.ok("a matrix could not be widened", norms)?.into_iter().flatten();
        let gains: Vec<f64> = magnitude.iter().zip(norms).map(|(m, n)| f64::from(*m) / n).collect();
        match gains.iter().position(|gain| !gain.is_finite()) {
            Some(row) => Err(Error::adapter(
                &by.adapter.reference,
                format!(
                    "row {} of `{}` has the magnitude {}, and a norm that it cannot be divided by; expected finite numbers",
                    of_module.start + row,
                    module.name,
                    magnitude[row]
                ),
            )),
            None => Ok(Some(gains)),
        }
    }
}

/// B transposed, shape (rank, rows), with each row of B multiplied by its gain.
fn multiplied(b: &Values, gains: &[f64]) -> Values {
    let all = b.all();
    let rows = all.chunks_exact(gains.len());
    Values::F32(rows.flat_map(|row| row.iter().zip(gains).map(|(b, gain)| (f64::from(*b) * gain) as f32)).collect())
}
