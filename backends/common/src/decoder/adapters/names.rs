//! The names that adapters may call a model's tensors, and the modules that these are.
//!
//! A model has queries, keys and values apart or in one module, and so has what an adapter was trained on; likewise gate and
//! up. Here all are apart: a fused one has the rows of several.

use std::collections::HashMap;

use llm_local_core::model::{BaseTensor, DecoderConfig, Layout, ModuleRole as R};

use crate::decoder::TIED_HEAD;

/// The modules whose rows a fused one has, in this order; only itself for any other.
pub fn apart(role: &[R]) -> &[R] {
    match role {
        [R::QueryKeyValue] => &[R::Query, R::Key, R::Value],
        [R::GateUp] => &[R::Gate, R::Up],
        other => other,
    }
}

/// A tensor, as adapters know it.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) bias: bool,
    /// The modules whose rows it has, in this order.
    pub(super) parts: Vec<Part>,
}

/// A module that a tensor has rows of.
#[derive(Debug)]
pub(super) struct Part {
    /// Role and layer.
    pub(super) module: (R, usize),
    /// The shape of these rows; of a bias, as of the other tensors of a module, the number of rows.
    pub(super) shape: Vec<usize>,
    /// The tensor's row that is the first of these.
    pub(super) first: usize,
}

impl Named {
    /// Whether its rows are looked up.
    pub(super) fn is_embedding(&self, c: &DecoderConfig) -> bool {
        let is = |part: &Part| part.module.0 == R::Embedding || part.module.0 == R::Head && c.tied_embeddings;
        self.parts.iter().any(is)
    }
}

/// All tensors of a model by name: whether it has projections fused or not, both are there.
pub(super) struct Names(HashMap<String, Named>);

impl Names {
    pub(super) fn new(c: &DecoderConfig) -> Self {
        let as_if = |fused: bool| {
            let mut c = c.clone();
            c.fused_projections = fused;
            c.base_tensors(Layout::HuggingFace)
        };
        let (split, fused) = (as_if(false), as_if(true));
        let apart_of: HashMap<_, _> = split.iter().map(|t| ((t.role, t.layer, t.bias), t)).collect();
        let one = |t: &BaseTensor| {
            let (mut first, role) = (0, [t.role]);
            let parts = apart(&role).iter().filter_map(|role| {
                let own = apart_of.get(&(*role, t.layer, t.bias))?;
                let part = Part { module: (*role, t.layer), shape: own.shape.clone(), first };
                first += own.shape[0];
                Some(part)
            });
            let parts = parts.collect();
            (t.name.clone(), Named { name: t.name.clone(), shape: t.shape.clone(), bias: t.bias, parts })
        };
        let mut names: HashMap<_, _> = split.iter().chain(&fused).map(one).collect();
        // A tied head has a name too, and the embedding's shape.
        if let (true, Some(embedding)) = (c.tied_embeddings, apart_of.get(&(R::Embedding, 0, false))) {
            let shape = embedding.shape.clone();
            let parts = vec![Part { module: (R::Head, 0), shape: shape.clone(), first: 0 }];
            names.insert(TIED_HEAD.to_owned(), Named { name: TIED_HEAD.to_owned(), shape, bias: false, parts });
        }
        Self(names)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Named> {
        self.0.get(name)
    }

    /// Rows of each module's weight.
    pub(super) fn rows(&self) -> HashMap<(R, usize), usize> {
        let parts = self.0.values().filter(|tensor| !tensor.bias).flat_map(|tensor| &tensor.parts);
        parts.map(|part| (part.module, part.shape[0])).collect()
    }
}
