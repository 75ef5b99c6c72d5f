//! An adapter without its values: all that decides whether it fits a base, but for what only values tell.

use llm_local_core::{LoraAdapter, LoraModule, lora::DeclaredTargets};

/// An adapter by its config and the header of its weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AdapterOutline {
    /// Its ref.
    pub(super) reference: String,
    /// The low-rank pairs, sorted by module.
    pub(super) modules: Vec<ModuleOutline>,
    /// Names of tensors that replace one of the base.
    pub(super) replaced: Vec<String>,
    /// The modules it says it applies to.
    pub(super) targets: Option<DeclaredTargets>,
    /// Bytes of memory that its tensors take.
    pub(super) bytes: u64,
}

/// The low-rank pair of one module, of shapes (rank, in) and (out, rank).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModuleOutline {
    pub(super) name: String,
    pub(super) rank: usize,
    pub(super) in_features: usize,
    pub(super) out_features: usize,
    pub(super) scale: f64,
    /// What keeps it from being used on any base.
    pub(super) defect: Option<&'static str>,
}

impl From<&LoraAdapter> for AdapterOutline {
    fn from(adapter: &LoraAdapter) -> Self {
        Self {
            reference: adapter.reference.clone(),
            modules: adapter.modules.iter().map(ModuleOutline::from).collect(),
            replaced: adapter.replacements.iter().map(|r| r.name.clone()).collect(),
            targets: adapter.targets.clone(),
            bytes: adapter.byte_len() as u64,
        }
    }
}

impl From<&LoraModule> for ModuleOutline {
    fn from(module: &LoraModule) -> Self {
        let LoraModule { name, rank, in_features, out_features, scale, .. } = module;
        let (rank, in_features, out_features) = (*rank, *in_features, *out_features);
        let defect = if module.magnitude.is_some() || module.bias.is_some() {
            Some("has a magnitude (DoRA) or a bias of lora_B, which are not supported yet")
        } else if rank == 0 || module.a.len() != rank * in_features || module.b.len() != out_features * rank {
            Some("has factors whose lengths do not fit its rank and its shapes")
        } else {
            None
        };
        Self { name: name.clone(), rank, in_features, out_features, scale: *scale, defect }
    }
}
