//! Values of a PEFT file, turned to the one internal form.

use llm_local_core::{
    LoraModule, TensorEntry,
    lora::{Floats, ReplacedRows, ReplacementTensor},
};
use llm_local_weights::SafetensorsSource;

use super::{super::plan, pair::Pair, rows::Rows};
use crate::lora::floats;

/// Reads the values of tensors, all of which must be finite; errors name the tensor.
pub(super) struct Values<'a>(pub(super) &'a SafetensorsSource);

impl Values<'_> {
    pub(super) fn pair(&self, pair: &Pair<'_>) -> Result<LoraModule, String> {
        let (inputs, outputs) = pair.features();
        let shape = (pair.rank, inputs, outputs);
        let (a, b) = (self.floats(pair.a)?, self.floats(pair.b)?);
        let module = if pair.is_turned() {
            let (a, b) = (floats::transposed(&b, pair.rank), floats::transposed(&a, outputs));
            LoraModule::new(&pair.name, shape, a, b, pair.scale)
        } else if let Some(experts) = pair.experts {
            LoraModule::of_experts(&pair.name, experts, shape, a, by_expert(&b, experts, shape), pair.scale)
        } else {
            LoraModule::new(&pair.name, shape, a, b, pair.scale)
        };
        let mut module = module.with_transposed(pair.transposed);
        if let Some(entry) = pair.magnitude {
            module = module.with_magnitude(floats::widened(&self.floats(entry)?));
        }
        if let Some(entry) = pair.bias {
            module = module.with_bias(floats::widened(&self.floats(entry)?));
        }
        Ok(if pair.is_parameter { module.of_parameter() } else { module })
    }

    pub(super) fn replacement(&self, name: &str, entry: &TensorEntry) -> Result<ReplacementTensor, String> {
        Ok(ReplacementTensor::new(name, entry.shape.clone(), self.floats(entry)?))
    }

    pub(super) fn rows(&self, name: &str, rows: &Rows<'_>) -> Result<ReplacedRows, String> {
        let columns = rows.entry.shape[1];
        let stored = self.floats(rows.entry)?;
        let values =
            floats::gathered(&stored, stored.len(), |i| Some(rows.order[i / columns].1 * columns + i % columns));
        Ok(ReplacedRows::new(name, rows.order.iter().map(|(row, _)| *row).collect(), values))
    }

    fn floats(&self, entry: &TensorEntry) -> Result<Floats, String> {
        plan::values(self.0, entry)
    }
}

/// The B of experts, (out, rank * experts) with the experts innermost, as (experts, out, rank).
///
/// Source: PEFT `src/peft/tuners/lora/layer.py`, `ParamWrapper.get_delta_weight`.
fn by_expert(values: &Floats, experts: usize, (rank, _, outputs): (usize, usize, usize)) -> Floats {
    floats::gathered(values, values.len(), |i| {
        let (expert, output, k) = (i / (outputs * rank), i / rank % outputs, i % rank);
        Some((output * rank + k) * experts + expert)
    })
}
