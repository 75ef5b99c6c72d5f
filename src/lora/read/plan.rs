//! What the header of a file of tensors holds, checked before a value is read: what outline and adapter are made of.

use std::collections::BTreeSet;

use llm_local_core::{
    Allowance, ArtifactRef, Encoding, FloatType, LoraAdapter, LoraModule, TensorEntry, TensorSource,
    lora::{AdapterFeature, BaseHint, DeclaredTargets, Floats, ReplacementTensor},
    model::Layout,
};

use crate::lora::{
    floats,
    message::{LET_PASS_NO_EFFECT, all_of, shape_text},
    outline::{AdapterOutline, ModuleOutline, ReplacementOutline},
};

/// What an adapter consists of, by the header of its tensors.
#[derive(Debug)]
pub(super) struct Plan<'e> {
    /// The pairs, sorted by module.
    pub(super) pairs: Vec<Pair<'e>>,
    /// Base tensors that are replaced, by their names, sorted.
    pub(super) replacements: Vec<(String, &'e TensorEntry)>,
    /// The layout in whose order the rows of queries and keys are.
    pub(super) row_order: Layout,
    pub(super) targets: Option<DeclaredTargets>,
    pub(super) notes: Vec<String>,
    /// As [`LoraAdapter::unknown_fields`].
    pub(super) unknown_fields: Vec<String>,
}

/// A pair, by its header.
#[derive(Debug)]
pub(super) struct Pair<'e> {
    /// The module's path in the Hugging Face layout.
    pub(super) module: String,
    /// Rank, input features, output features.
    pub(super) shape: (usize, usize, usize),
    pub(super) experts: Option<usize>,
    /// What A (r, in) is made of.
    pub(super) a: Factor<'e>,
    /// What B (out, r) is made of.
    pub(super) b: Factor<'e>,
    /// DoRA's magnitude, shape (out,).
    pub(super) magnitude: Option<&'e TensorEntry>,
    pub(super) scale: f64,
    pub(super) is_embedding: bool,
}

/// A tensor that a factor is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factor<'e> {
    pub(super) entry: &'e TensorEntry,
    /// Whether it is stored with its two dimensions exchanged.
    pub(super) transposed: bool,
}

impl Plan<'_> {
    fn features(&self) -> Vec<AdapterFeature> {
        let pairs = |uses: fn(&Pair<'_>) -> bool| self.pairs.iter().any(uses);
        let used = [
            (AdapterFeature::Dora, pairs(|pair| pair.magnitude.is_some())),
            (AdapterFeature::ModulesToSave, !self.replacements.is_empty()),
            (AdapterFeature::Embedding, pairs(|pair| pair.is_embedding)),
            (AdapterFeature::Experts, pairs(|pair| pair.experts.is_some())),
        ];
        let mut features: Vec<_> =
            used.into_iter().filter(|(_, is_used)| *is_used).map(|(feature, _)| feature).collect();
        features.sort();
        features
    }

    /// The adapter without its values.
    pub(super) fn outline(&self, reference: &ArtifactRef, format: &str, base: &BaseHint) -> AdapterOutline {
        let stored = |entry: &TensorEntry| entry.stored_bytes().unwrap_or(usize::MAX);
        // Magnitudes are widened to f32.
        let pair_bytes = |pair: &Pair<'_>| {
            let magnitude = pair.magnitude.map_or(0, |_| 4 * pair.shape.2);
            stored(pair.a.entry).saturating_add(stored(pair.b.entry)).saturating_add(magnitude)
        };
        let replaced = self.replacements.iter().map(|(_, entry)| stored(entry));
        let bytes = self.pairs.iter().map(pair_bytes).chain(replaced).fold(0usize, usize::saturating_add);
        let replacement = |(name, entry): &(String, &TensorEntry)| ReplacementOutline {
            name: name.clone(),
            shape: entry.shape.clone(),
        };
        AdapterOutline {
            reference: reference.to_string(),
            format: format.to_owned(),
            base: base.clone(),
            notes: self.notes.clone(),
            unknown_fields: self.unknown_fields.clone(),
            row_order: self.row_order,
            modules: self.pairs.iter().map(Pair::outline).collect(),
            replacements: self.replacements.iter().map(replacement).collect(),
            rows: Vec::new(),
            features: self.features(),
            targets: self.targets.clone(),
            bytes: bytes as u64,
        }
    }

    /// The adapter with the values of `source`, whose tensors it is a plan of, if what is wrong with them is in `allow`. The
    /// error names the tensor.
    pub(super) fn read(
        &self,
        source: &dyn TensorSource,
        reference: &ArtifactRef,
        allow: &BTreeSet<Allowance>,
        digest: impl FnOnce() -> Result<String, String>,
    ) -> Result<LoraAdapter, String> {
        let modules = self.pairs.iter().map(|pair| pair.read(source)).collect::<Result<Vec<_>, _>>()?;
        let replacements = self.replacements.iter().map(|(name, entry)| {
            values(source, entry).map(|values| ReplacementTensor::new(name, entry.shape.clone(), values))
        });
        let replacements = replacements.collect::<Result<Vec<_>, String>>()?;
        if replacements.is_empty() {
            check_effect(&modules, allow)?;
        }
        let adapter = LoraAdapter::new(reference.to_string(), digest()?, modules)
            .with_row_order(self.row_order)
            .with_replacements(replacements)
            .with_features(self.features())
            .with_notes(self.notes.clone())
            .with_unknown_fields(self.unknown_fields.clone());
        Ok(match &self.targets {
            Some(targets) => adapter.with_targets(targets.clone()),
            None => adapter,
        })
    }
}

/// Checks that an adapter of nothing but `modules` does something, unless `allow` has it do nothing.
pub(super) fn check_effect(modules: &[LoraModule], allow: &BTreeSet<Allowance>) -> Result<(), String> {
    if allow.contains(&Allowance::NoEffect) || !modules.iter().all(is_without_effect) {
        return Ok(());
    }
    Err(format!(
        "`B @ A` is zero in {}, so the adapter would do nothing: it was never trained, or saved wrongly{LET_PASS_NO_EFFECT}",
        all_of(modules.len(), "module")
    ))
}

/// Whether applying the module changes nothing. With a magnitude it does so even where its product is zero.
fn is_without_effect(module: &LoraModule) -> bool {
    let LoraModule { a, b, rank, experts, .. } = module;
    module.magnitude.is_none()
        && module.bias.as_ref().is_none_or(|bias| bias.iter().all(|v| *v == 0.0))
        && floats::stacked_product_is_zero(a, b, experts.unwrap_or(1), *rank)
}

impl Pair<'_> {
    fn outline(&self) -> ModuleOutline {
        let (rank, in_features, out_features) = self.shape;
        ModuleOutline {
            name: self.module.clone(),
            rank,
            in_features,
            out_features,
            experts: self.experts,
            transposed: false,
            is_parameter: false,
            has_magnitude: self.magnitude.is_some(),
            has_bias: false,
            scale: self.scale,
            defect: None,
        }
    }

    fn read(&self, source: &dyn TensorSource) -> Result<LoraModule, String> {
        let (a, b) = (self.a.read(source)?, self.b.read(source)?);
        let module = match self.experts {
            Some(experts) => LoraModule::of_experts(&self.module, experts, self.shape, a, b, self.scale),
            None => LoraModule::new(&self.module, self.shape, a, b, self.scale),
        };
        Ok(match self.magnitude {
            Some(entry) => module.with_magnitude(floats::widened(&values(source, entry)?)),
            None => module,
        })
    }
}

impl Factor<'_> {
    fn read(&self, source: &dyn TensorSource) -> Result<Floats, String> {
        let values = values(source, self.entry)?;
        Ok(if self.transposed { floats::transposed(&values, self.entry.shape[1]) } else { values })
    }
}

/// The values of a tensor that [`floats_of`] let pass.
pub(super) fn values(source: &dyn TensorSource, entry: &TensorEntry) -> Result<Floats, String> {
    let Encoding::Float(stored) = entry.encoding else { unreachable!("the header was checked: floats only") };
    let data = source.read(&entry.name, None).map_err(|e| e.to_string())?;
    let values = floats::own(data, stored).map_err(|reason| format!("`{}` {reason}", entry.name))?;
    match floats::first_non_finite(&values) {
        None => Ok(values),
        Some((index, found)) => Err(format!(
            "`{}` has {found} at {}; expected finite values only",
            entry.name,
            shape_text(&position(index, &entry.shape))
        )),
    }
}

/// Where the value at `index` is in a tensor of this shape.
fn position(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut position = vec![0; shape.len()];
    for (at, size) in position.iter_mut().zip(shape).rev() {
        (*at, index) = (index % size, index / size);
    }
    position
}

/// The float types that values are taken in.
const TYPES: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];

/// Whether a tensor holds floats that can be read, and has elements; the error names it.
pub(super) fn floats_of(entry: &TensorEntry) -> Result<(), String> {
    let TensorEntry { name, shape, encoding, .. } = entry;
    match encoding {
        Encoding::Float(t) if TYPES.contains(t) => {}
        Encoding::Ggml(t) => {
            return Err(format!(
                "`{name}` is quantized, as {t}; expected floats (f32, f16 or bf16): convert the adapter with --outtype \
                 f16"
            ));
        }
        other => return Err(format!("`{name}` is stored as {other}; expected floats (f32, f16 or bf16)")),
    }
    if shape.contains(&0) {
        return Err(format!("`{name}` has the shape {}, which is empty", shape_text(shape)));
    }
    Ok(())
}
