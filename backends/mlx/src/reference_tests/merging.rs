//! What the rules of adapters make of a tensor, in f64.

use std::sync::Arc;

use llm_local_core::{AdapterSet, Encoding, FloatType, Result, TensorData, TensorEntry, TensorSource};

use super::{lora::f32s, *};

/// A checkpoint's tensors with adapters merged into them.
pub(super) struct Merged {
    inner: Arc<dyn TensorSource>,
    entries: Vec<TensorEntry>,
    set: AdapterSet,
    /// A head of its own, of a model that ties it to the embedding.
    head: Option<Vec<f32>>,
}

impl Merged {
    pub(super) fn new(of: &Checkpoint, set: &AdapterSet) -> Self {
        let floats = |t: &TensorEntry| TensorEntry::new(&t.name, t.shape.clone(), Encoding::Float(FloatType::F32));
        let entries = of.tensors.entries().iter().map(floats).collect();
        Self { inner: of.tensors.clone(), entries, set: set.clone(), head: None }
    }

    pub(super) fn with_head(mut self, shape: [usize; 2], head: Vec<f32>) -> Self {
        self.entries.push(TensorEntry::new("lm_head.weight", shape.to_vec(), Encoding::Float(FloatType::F32)));
        self.head = Some(head);
        self
    }
}

impl TensorSource for Merged {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, _: Option<FloatType>) -> Result<TensorData<'_>> {
        if let (Some(head), "lm_head.weight") = (&self.head, name) {
            return Ok(TensorData::F32(head.clone()));
        }
        Ok(TensorData::F32(merged(name, &widened(&*self.inner, name), &self.set)))
    }
}

/// `checkpoint` with `set` merged into it, in f32.
pub(super) fn load_merged(checkpoint: &Checkpoint, set: &AdapterSet) -> Decoder {
    let merged = Merged::new(checkpoint, set);
    let mut info = (*checkpoint.info).clone();
    info.tensors = merged.entries.clone().into();
    let context = checkpoint.info.decoder.as_ref().unwrap().max_positions.min(512);
    load_with(&info, &merged, &options(context, ComputeDtype::F32))
}

/// A tensor in f32.
pub(super) fn widened(source: &dyn TensorSource, name: &str) -> Vec<f32> {
    let elements = source.entry(name).and_then(TensorEntry::elements).unwrap();
    let mut bytes = vec![0; elements * size_of::<f32>()];
    source.read_into(name, Some(FloatType::F32), &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// What the rules of adapters make of one tensor: replaced first, then rows, then the sum of what each adapter adds.
pub(super) fn merged(name: &str, base: &[f32], set: &AdapterSet) -> Vec<f32> {
    let f64s = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let mut w = f64s(base);
    for (adapter, weight) in &set.adapters {
        for new in adapter.replacements.iter().filter(|new| new.name == name) {
            let new = f64s(&f32s(&new.values));
            (0..w.len()).for_each(|i| w[i] += f64::from(*weight) * (new[i] - f64::from(base[i])));
        }
    }
    let replaced = w.clone();
    for (adapter, weight) in &set.adapters {
        for rows in adapter.rows.iter().filter(|rows| rows.name == name) {
            let new = f64s(&f32s(&rows.values));
            let width = new.len() / rows.rows.len();
            for (i, row) in rows.rows.iter().enumerate() {
                for j in 0..width {
                    let at = row * width + j;
                    w[at] += f64::from(*weight) * (new[i * width + j] - replaced[at]);
                }
            }
        }
    }
    let start = w.clone();
    for (adapter, weight) in &set.adapters {
        for module in adapter.modules.iter().filter(|module| module.weight_name() == name) {
            let (a, b) = (f64s(&f32s(&module.a)), f64s(&f32s(&module.b)));
            let width = module.in_features;
            for row in 0..module.out_features {
                let sum = |j: usize| (0..module.rank).map(|k| b[row * module.rank + k] * a[k * width + j]).sum::<f64>();
                let new: Vec<f64> = (0..width).map(|j| start[row * width + j] + module.scale * sum(j)).collect();
                let norm = new.iter().map(|x| x * x).sum::<f64>().sqrt();
                let gain = module.magnitude.as_ref().map_or(1.0, |m| f64::from(m[row]) / norm);
                for j in 0..width {
                    w[row * width + j] += f64::from(*weight) * (gain * new[j] - start[row * width + j]);
                }
            }
        }
        for module in adapter.modules.iter().filter(|module| format!("{}.bias", module.name) == name) {
            let added = module.bias.iter().flatten().enumerate();
            added.for_each(|(i, b)| w[i] += f64::from(*weight) * module.scale * f64::from(*b));
        }
    }
    w.into_iter().map(|x| x as f32).collect()
}
