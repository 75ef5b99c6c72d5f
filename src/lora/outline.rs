//! An adapter without its values, for those that are not on this machine yet.

use std::collections::BTreeSet;

use llm_local_core::{
    LoraAdapter, LoraModule,
    lora::{AdapterFeature, BaseHint, DeclaredTargets, ReplacedRows, ReplacementTensor},
    model::Layout,
};

use super::targets::BaseModules;

/// What [`LoraAdapter`] says without the values of its tensors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AdapterOutline {
    /// Its ref.
    pub(super) reference: String,
    /// As [`LoraAdapter::format`].
    pub(crate) format: String,
    /// As [`LoraAdapter::base`].
    pub(crate) base: BaseHint,
    /// As [`LoraAdapter::notes`].
    pub(crate) notes: Vec<String>,
    /// As [`LoraAdapter::unknown_fields`].
    pub(crate) unknown_fields: Vec<String>,
    /// The layout in whose order the rows of queries and keys are.
    pub(super) row_order: Layout,
    /// The low-rank pairs, sorted by module.
    pub(super) modules: Vec<ModuleOutline>,
    /// The tensors that replace one of the base.
    pub(super) replacements: Vec<ReplacementOutline>,
    /// The rows that replace some of a base tensor.
    pub(super) rows: Vec<RowsOutline>,
    /// What it uses beside plain pairs.
    pub(crate) features: Vec<AdapterFeature>,
    /// The modules it says it applies to.
    pub(super) targets: Option<DeclaredTargets>,
    /// Bytes of memory that its tensors take.
    pub(super) bytes: u64,
}

/// A [`LoraModule`] without its values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModuleOutline {
    pub(super) name: String,
    pub(super) rank: usize,
    pub(super) in_features: usize,
    pub(super) out_features: usize,
    pub(super) experts: Option<usize>,
    pub(super) transposed: bool,
    pub(super) is_parameter: bool,
    pub(super) has_magnitude: bool,
    pub(super) has_bias: bool,
    pub(super) scale: f64,
    /// Why its parts do not make a pair, where that is so: adapters are plain data, which anybody can put together.
    pub(super) defect: Option<&'static str>,
}

/// A [`ReplacementTensor`] without its values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ReplacementOutline {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
}

/// [`ReplacedRows`] without their values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RowsOutline {
    pub(super) name: String,
    pub(super) rows: Vec<usize>,
    pub(super) columns: usize,
}

impl From<&LoraAdapter> for AdapterOutline {
    fn from(adapter: &LoraAdapter) -> Self {
        Self {
            reference: adapter.reference.clone(),
            format: adapter.format.clone(),
            base: adapter.base.clone(),
            notes: adapter.notes.clone(),
            unknown_fields: adapter.unknown_fields.clone(),
            row_order: adapter.row_order,
            modules: adapter.modules.iter().map(ModuleOutline::from).collect(),
            replacements: adapter.replacements.iter().map(ReplacementOutline::from).collect(),
            rows: adapter.rows.iter().map(RowsOutline::from).collect(),
            features: adapter.features.clone(),
            targets: adapter.targets.clone(),
            bytes: adapter.byte_len() as u64,
        }
    }
}

impl AdapterOutline {
    /// Its ref.
    pub(crate) fn reference(&self) -> &str {
        &self.reference
    }

    /// Bytes of memory that its tensors take.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The ranks of its pairs, smallest first, each once.
    pub(crate) fn ranks(&self) -> Vec<usize> {
        let ranks: BTreeSet<_> = self.modules.iter().map(|module| module.rank).collect();
        ranks.into_iter().collect()
    }

    /// What `B @ A` of its pairs is multiplied by, smallest first, each once.
    pub(crate) fn scales(&self) -> Vec<f64> {
        let mut scales: Vec<_> = self.modules.iter().map(|module| module.scale).collect();
        scales.sort_by(f64::total_cmp);
        scales.dedup();
        scales
    }

    /// Whether it has something for the embedding or the head, which may fit only with what another adapter has for these.
    pub(crate) fn touches_vocabulary(&self) -> bool {
        let of = |name: &str| {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            BaseModules::is_embedding(module) || BaseModules::is_head(module)
        };
        self.modules.iter().any(|module| of(&module.name))
            || self.replacements.iter().any(|replacement| of(&replacement.name))
            || self.rows.iter().any(|rows| of(&rows.name))
    }

    /// It without what it has for the tensors `unused`.
    pub(crate) fn without(mut self, unused: &[String]) -> Self {
        self.modules.retain(|module| !unused.contains(&module.weight_name()));
        self.replacements.retain(|replacement| !unused.contains(&replacement.name));
        self.rows.retain(|rows| !unused.contains(&rows.name));
        self
    }

    /// How many modules it has pairs for.
    pub(crate) fn modules(&self) -> usize {
        self.modules.len()
    }

    /// How many tensors it has, if each pair, magnitude and bias is one of its own.
    pub(crate) fn tensors(&self) -> usize {
        let of = |module: &ModuleOutline| 2 + usize::from(module.has_magnitude) + usize::from(module.has_bias);
        self.modules.iter().map(of).sum::<usize>() + self.replacements.len() + self.rows.len()
    }
}

impl ModuleOutline {
    /// As [`LoraModule::weight_name`].
    pub(super) fn weight_name(&self) -> String {
        if self.is_parameter { self.name.clone() } else { format!("{}.weight", self.name) }
    }
}

impl From<&LoraModule> for ModuleOutline {
    fn from(module: &LoraModule) -> Self {
        let LoraModule { name, rank, in_features, out_features, experts, scale, .. } = module;
        let (rank, in_features, out_features) = (*rank, *in_features, *out_features);
        let count = experts.unwrap_or(1);
        let fits = |values: &Option<Vec<f32>>| values.as_ref().is_none_or(|values| values.len() == out_features);
        let elements = |features: usize| count.checked_mul(rank)?.checked_mul(features);
        let whole = rank > 0
            && Some(module.a.len()) == elements(in_features)
            && Some(module.b.len()) == elements(out_features)
            && fits(&module.magnitude)
            && fits(&module.bias);
        Self {
            name: name.clone(),
            rank,
            in_features,
            out_features,
            experts: *experts,
            transposed: module.transposed,
            is_parameter: module.is_parameter,
            has_magnitude: module.magnitude.is_some(),
            has_bias: module.bias.is_some(),
            scale: *scale,
            defect: (!whole).then_some("has factors whose lengths do not fit its rank and its shapes"),
        }
    }
}

impl From<&ReplacementTensor> for ReplacementOutline {
    fn from(tensor: &ReplacementTensor) -> Self {
        Self { name: tensor.name.clone(), shape: tensor.shape.clone() }
    }
}

impl From<&ReplacedRows> for RowsOutline {
    fn from(replaced: &ReplacedRows) -> Self {
        let columns = replaced.values.len().checked_div(replaced.rows.len()).unwrap_or(0);
        Self { name: replaced.name.clone(), rows: replaced.rows.clone(), columns }
    }
}
