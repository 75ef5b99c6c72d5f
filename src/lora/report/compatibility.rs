//! The report as data.

use std::collections::BTreeSet;

use llm_local_core::{Allowance, LoraAdapter, LoraModule, ModelInfo, Result, TensorSource, lora::AdapterFeature};
use serde::{Serialize, Serializer};

use super::{
    effect::{self, ModuleEffect},
    identity::{BaseFacts, BaseIdentity},
};
use crate::lora::fit::{CheckedPart, Defect, MisfitKind, diagnose};

/// Whether an adapter fits a base, and all that keeps it from that.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CompatibilityReport {
    /// The adapter's ref.
    pub adapter: String,
    /// The base's id.
    pub base: String,
    /// Whether the adapter can be used: every defect is let pass.
    pub fits: bool,
    /// Everything that is wrong, also what is let pass.
    pub defects: Vec<Defect>,
    /// What is let pass.
    pub allowed: BTreeSet<Allowance>,
    /// The format it was stored in.
    pub format: String,
    /// What it uses beside plain pairs.
    #[serde(serialize_with = "by_name")]
    pub features: Vec<AdapterFeature>,
    /// The ranks of its pairs, smallest first, each once.
    pub ranks: Vec<usize>,
    /// Alpha, where it is known.
    pub alpha: Option<f64>,
    /// What its products `B @ A` are multiplied by, its weight included: smallest first, each once.
    pub scales: Vec<f64>,
    /// Its tensors, in the names of the Hugging Face layout, and what becomes of each.
    pub tensors: Vec<TensorReport>,
    /// The modules of the base that it says it applies to; empty in a format that does not say.
    pub targets: Vec<TargetReport>,
    /// The names in its `target_modules` that no module of the base matches.
    pub unmatched_targets: Vec<String>,
    /// Whether the base is the one it was trained on.
    pub identity: BaseIdentity,
    /// What its reader has to say.
    pub notes: Vec<String>,
    /// How much it changes, of each module: only where that was asked for, since it reads weights.
    pub effects: Option<Vec<ModuleEffect>>,
}

/// A tensor of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TensorReport {
    /// Its name: the module's or tensor's in the Hugging Face layout, and `lora_A`, `lora_B`, `lora_B.bias` or
    /// `lora_magnitude`. The rows of an embedding have the embedding's name and `rows`.
    pub name: String,
    /// Its shape. Of an embedding's pair: lora_A is (r, dim), lora_B is (vocab, r).
    pub shape: Vec<usize>,
    /// The tensors of the base that it changes, in the base's names.
    pub changes: Vec<String>,
    /// What becomes of it.
    pub state: TensorState,
}

/// What becomes of a tensor of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TensorState {
    /// It is applied.
    Applied,
    /// The base has nothing for it.
    Unused,
    /// The base would need it in another shape.
    Misshaped {
        /// That shape.
        expected: Vec<usize>,
    },
    /// It has the right shape, and something else keeps it from being applied: the other tensor of its pair, or one of the
    /// [defects](CompatibilityReport::defects).
    Refused,
}

/// A module of the base that an adapter says it applies to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TargetReport {
    /// Its name in the Hugging Face layout.
    pub module: String,
    /// Whether the adapter has tensors for it.
    pub is_covered: bool,
}

impl CompatibilityReport {
    /// Whether `adapter`, whose delta is multiplied by `weight`, fits the base that `info` describes, if what is `allowed` is
    /// let pass. Reads no weight of the base.
    pub fn new(adapter: &LoraAdapter, weight: f32, allowed: &BTreeSet<Allowance>, info: &ModelInfo) -> Self {
        let checked = diagnose(adapter, weight, allowed, info);
        let ranks: BTreeSet<_> = adapter.modules.iter().map(|module| module.rank).collect();
        let mut scales: Vec<_> = adapter.modules.iter().map(|module| module.scale * f64::from(weight)).collect();
        scales.sort_by(f64::total_cmp);
        scales.dedup();
        let target =
            |(module, is_covered): (&String, &bool)| TargetReport { module: module.clone(), is_covered: *is_covered };
        Self {
            adapter: adapter.reference.clone(),
            base: info.id.clone(),
            fits: checked.defects.iter().all(|defect| defect.is_allowed(allowed)),
            allowed: allowed.clone(),
            format: adapter.format.clone(),
            features: adapter.features.clone(),
            ranks: ranks.into_iter().collect(),
            alpha: None,
            scales,
            tensors: tensors(adapter, &checked.parts),
            targets: checked.targets.iter().map(target).collect(),
            unmatched_targets: checked.unmatched,
            identity: BaseIdentity::new(adapter, info, &BaseFacts::default()),
            notes: adapter.notes.clone(),
            defects: checked.defects,
            effects: None,
        }
    }

    /// Adds what is known of the base and the adapter beside their tensors.
    pub fn with_facts(mut self, adapter: &LoraAdapter, info: &ModelInfo, facts: &BaseFacts) -> Self {
        self.identity = BaseIdentity::new(adapter, info, facts);
        self
    }

    /// Adds the adapter's alpha.
    pub fn with_alpha(mut self, alpha: Option<f64>) -> Self {
        self.alpha = alpha;
        self
    }

    /// Adds how much `adapter`, which fits, changes in `base`: reads the tensors that it changes, one after the other.
    /// Memory holds one of them in f32 at a time, two where the adapter is not of plain pairs.
    ///
    /// # Errors
    /// Those of reading the base, and [`llm_local_core::Error::AdapterMergeFailed`] for an adapter that does not fit.
    pub fn with_effects(
        mut self,
        adapter: &std::sync::Arc<LoraAdapter>,
        weight: f32,
        base: &std::sync::Arc<dyn TensorSource>,
        info: &ModelInfo,
    ) -> Result<Self> {
        self.effects = Some(effect::measure(adapter, weight, &self.allowed, base, info)?);
        Ok(self)
    }

    /// The tensors that are not applied.
    pub fn not_applied(&self) -> impl Iterator<Item = &TensorReport> {
        self.tensors.iter().filter(|tensor| tensor.state != TensorState::Applied)
    }
}

/// What becomes of each tensor of `adapter`. There are no `parts` where the base as a whole is refused.
fn tensors(adapter: &LoraAdapter, parts: &[CheckedPart]) -> Vec<TensorReport> {
    let mut all = Vec::new();
    let mut push = |index: usize, name: &str, suffix: &str, shape: Vec<usize>| {
        let part = parts.get(index);
        let state = match part.map(|part| &part.misfit) {
            Some(None) => TensorState::Applied,
            Some(Some(MisfitKind::Unused)) => TensorState::Unused,
            Some(Some(MisfitKind::Misshaped(expected))) => {
                let expected = expected.iter().find(|(of, shape_of)| *of == suffix && *shape_of != shape);
                expected
                    .map_or(TensorState::Refused, |(_, expected)| TensorState::Misshaped { expected: expected.clone() })
            }
            Some(Some(MisfitKind::Other)) | None => TensorState::Refused,
        };
        let changes = part.map(|part| part.tensors.clone()).unwrap_or_default();
        let name = if suffix.is_empty() { name.to_owned() } else { format!("{name}.{suffix}") };
        all.push(TensorReport { name, shape, changes, state });
    };
    for (index, module) in adapter.modules.iter().enumerate() {
        for (suffix, shape) in pair_shapes(module) {
            push(index, &module.name, suffix, shape);
        }
    }
    let first = adapter.modules.len();
    for (index, replacement) in adapter.replacements.iter().enumerate() {
        push(first + index, &replacement.name, "", replacement.shape.clone());
    }
    let first = first + adapter.replacements.len();
    for (index, replaced) in adapter.rows.iter().enumerate() {
        let shape = vec![replaced.rows.len(), replaced.values.len() / replaced.rows.len().max(1)];
        push(first + index, &replaced.name, "rows", shape);
    }
    all
}

/// The tensors of a pair, with their shapes.
fn pair_shapes(module: &LoraModule) -> Vec<(&'static str, Vec<usize>)> {
    let stacked = |shape: [usize; 2]| module.experts.into_iter().chain(shape).collect::<Vec<_>>();
    let vector = |values: &Vec<f32>| vec![values.len()];
    let mut all = vec![
        ("lora_A", stacked([module.rank, module.in_features])),
        ("lora_B", stacked([module.out_features, module.rank])),
    ];
    all.extend(module.bias.as_ref().map(|bias| ("lora_B.bias", vector(bias))));
    all.extend(module.magnitude.as_ref().map(|magnitude| ("lora_magnitude", vector(magnitude))));
    all
}

fn by_name<S: Serializer>(features: &[AdapterFeature], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(features.iter().map(|feature| feature.as_str()))
}
