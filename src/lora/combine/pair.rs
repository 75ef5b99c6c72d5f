//! The factors of a module as PEFT has them.

use llm_local_core::lora::{Floats, LoraModule};

use super::super::{
    floats::{transposed, widened},
    targets::BaseModules,
};

/// The pair of a module as PEFT has it: an embedding's A is (r, vocab) there and its B is (dim, r), and the delta is the
/// transposed product.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) rank: usize,
    /// Columns of A.
    pub(super) inputs: usize,
    /// Rows of B.
    pub(super) outputs: usize,
    /// A, shape (rank, inputs).
    pub(super) a: Vec<f32>,
    /// B, shape (outputs, rank).
    pub(super) b: Vec<f32>,
}

/// Whether PEFT would have the module's pair as that of an embedding.
pub(super) fn is_embedding(module: &str) -> bool {
    BaseModules::is_embedding(module)
}

/// Whether the delta is the product of the pair transposed: that is the order in which PEFT takes its values.
pub(super) fn is_transposed(module: &LoraModule) -> bool {
    module.transposed || is_embedding(&module.name)
}

impl Pair {
    pub(super) fn of(module: &LoraModule) -> Self {
        let LoraModule { name, rank, in_features, out_features, a, b, .. } = module;
        if is_embedding(name) {
            let (a, b) = (widened(&transposed(b, *rank)), widened(&transposed(a, *in_features)));
            Self { rank: *rank, inputs: *out_features, outputs: *in_features, a, b }
        } else {
            Self { rank: *rank, inputs: *in_features, outputs: *out_features, a: widened(a), b: widened(b) }
        }
    }

    /// The module of this pair, of the name and kind of `like`, with a scale of 1.
    pub(super) fn into_module(self, like: &LoraModule) -> LoraModule {
        let Self { rank, inputs, outputs, a, b } = self;
        let (a, b) = (Floats::F32(a), Floats::F32(b));
        let module = if is_embedding(&like.name) {
            LoraModule::new(&like.name, (rank, outputs, inputs), transposed(&b, rank), transposed(&a, inputs), 1.0)
        } else {
            LoraModule::new(&like.name, (rank, inputs, outputs), a, b, 1.0)
        };
        module.with_transposed(like.transposed)
    }
}
