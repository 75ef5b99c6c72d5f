//! What a set changes, module by module, checked against the model.

use std::collections::HashMap;

use llm_local_core::{
    AdapterSet, Error, LoraAdapter, LoraModule, Result,
    lora::{ReplacedRows, ReplacementTensor},
    model::{DecoderConfig, Layout, ModuleRole as R},
};

use super::{
    changes::{By, Changes},
    names::{Named, Names, apart},
};

/// What a set changes, module by module.
#[derive(Debug)]
pub struct Plan<'a> {
    modules: HashMap<(R, usize), Changes<'a>>,
    rows: HashMap<(R, usize), usize>,
}

impl<'a> Plan<'a> {
    /// What `set` changes of a model that `c` describes, and that `backend` runs.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] that names the adapter and what of it this model does not have, has in another shape, or
    /// cannot run beside its weights.
    pub fn new(set: &'a AdapterSet, c: &DecoderConfig, backend: &'a str) -> Result<Self> {
        let names = Names::new(c);
        let mut plan = Self { modules: HashMap::new(), rows: names.rows() };
        for (place, (adapter, weight)) in set.adapters.iter().enumerate() {
            Reading { adapter, backend, place, weight: *weight, names: &names, c, plan: &mut plan }.read()?;
        }
        if c.tied_embeddings {
            plan.resolve_tied();
        }
        Ok(plan)
    }

    /// Gives the embedding and the head that is tied to it the changes of both, as they are where they are merged into the
    /// one tensor; unless an adapter unties them by a replacement. Then each has its own, and the head goes out from what
    /// the base has for both.
    fn resolve_tied(&mut self) {
        let (embedding, head) = (self.modules.remove(&(R::Embedding, 0)), self.modules.remove(&(R::Head, 0)));
        if [&embedding, &head].into_iter().flatten().any(Changes::unties) {
            self.modules.extend(embedding.map(|changes| ((R::Embedding, 0), changes)));
            self.modules.extend(head.map(|changes| ((R::Head, 0), changes)));
            return;
        }
        let both = match (embedding, head) {
            (Some(mut embedding), Some(head)) => {
                embedding.join(head);
                embedding
            }
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return,
        };
        self.modules.insert((R::Head, 0), both.clone());
        self.modules.insert((R::Embedding, 0), both);
    }

    /// What changes of a module; each is taken once.
    pub fn take(&mut self, role: R, layer: usize) -> Option<Changes<'a>> {
        self.modules.remove(&(role, layer))
    }

    /// What changes of a linear layer that has the rows of the modules `roles`, fused ones or several: each with the row that
    /// it begins at.
    ///
    /// # Errors
    /// As [`Plan::rows_of`].
    pub fn take_all(&mut self, roles: &[R], layer: usize) -> Result<Vec<(usize, Changes<'a>)>> {
        let mut start = 0;
        let mut parts = Vec::new();
        for role in apart(roles) {
            let changes = self.take(*role, layer);
            let rows = self.rows_of(*role, layer)?;
            parts.extend(changes.map(|changes| (start, changes)));
            start += rows;
        }
        Ok(parts)
    }

    /// Rows of a module's weight.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] for a module that the description does not have: what stands behind it in a matrix has no
    /// known place then.
    pub fn rows_of(&self, role: R, layer: usize) -> Result<usize> {
        let unknown =
            || Error::load(format!("{role:?} of layer {layer}"), "its description does not say how many rows it has");
        self.rows.get(&(role, layer)).copied().ok_or_else(unknown)
    }

    /// Checks that nothing is left that nobody took.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] that names the module.
    pub fn finish(&self, c: &DecoderConfig) -> Result<()> {
        let Some(((role, layer), changes)) = self.modules.iter().next() else { return Ok(()) };
        let pairs = changes.pairs.iter().map(|by| by.adapter);
        let rows = changes.replaced_rows.iter().map(|by| by.adapter);
        let whole = changes.replaced.iter().chain(&changes.replaced_bias).map(|by| by.adapter);
        let name = pairs.chain(rows).chain(whole).next().map_or("", |adapter| adapter.reference.as_str());
        let model = c.architecture.name();
        Err(Error::adapter(name, format!("it changes {role:?} of layer {layer}, where this {model} runs no adapter")))
    }
}

/// The refs of a set, for messages.
pub fn references(set: &AdapterSet) -> String {
    set.adapters.iter().map(|(adapter, _)| adapter.reference.as_str()).collect::<Vec<_>>().join(", ")
}

/// One adapter, as it is read into a plan.
struct Reading<'r, 'a> {
    adapter: &'a LoraAdapter,
    backend: &'a str,
    place: usize,
    weight: f32,
    names: &'r Names,
    c: &'r DecoderConfig,
    plan: &'r mut Plan<'a>,
}

impl<'r, 'a> Reading<'r, 'a> {
    fn read(mut self) -> Result<()> {
        let adapter = self.adapter;
        if adapter.row_order != Layout::HuggingFace {
            return self.refuse(format!(
                "its rows of queries and keys are in the order of {:?}; expected that of the Hugging Face layout",
                adapter.row_order
            ));
        }
        if !self.weight.is_finite() {
            return self.refuse(format!("its weight is {}; expected a finite number", self.weight));
        }
        for module in &adapter.modules {
            self.pair(module)?;
        }
        for tensor in &adapter.replacements {
            self.replacement(tensor)?;
        }
        for rows in &adapter.rows {
            self.rows(rows)?;
        }
        Ok(())
    }

    fn pair(&mut self, module: &'a LoraModule) -> Result<()> {
        let name = &module.name;
        if module.experts.is_some() {
            return self.refuse(format!(
                "`{name}` has pairs of experts, which no model here has; let a backend merge it that runs them"
            ));
        }
        let tensor = self.base(&module.weight_name())?;
        let (out, width) = self.matrix(tensor)?;
        let (found, expected) = ((module.out_features, module.in_features), (out, width));
        if found != expected {
            if module.transposed && found == (width, out) {
                return self.refuse(format!(
                    "the pair of `{name}` is of a transposed weight, which {} does not run beside the weights; \
                     merge it (`adapter_policy` `auto`)",
                    self.backend
                ));
            }
            return self
                .refuse(format!("the pair of `{name}` is for a weight of {found:?}; the model's is {expected:?}"));
        }
        for (what, values) in [("magnitude", &module.magnitude), ("bias", &module.bias)] {
            if let Some(found) = values.as_ref().map(Vec::len).filter(|len| *len != out) {
                return self.refuse(format!("the {what} of `{name}` has {found} numbers; expected {out}"));
            }
        }
        if module.bias.is_some() && tensor.is_embedding(self.c) {
            return self.refuse(format!("`{name}` is an embedding, which has no bias that one could be added to"));
        }
        self.each_part(tensor, module, |changes, by| changes.pairs.push(by));
        Ok(())
    }

    fn replacement(&mut self, new: &'a ReplacementTensor) -> Result<()> {
        let tensor = self.base(&new.name)?;
        if new.shape != tensor.shape || new.values.len() != tensor.shape.iter().product::<usize>() {
            return self.refuse(format!(
                "its `{}` has the shape {:?} and {} numbers; the model's is {:?}{}",
                new.name,
                new.shape,
                new.values.len(),
                tensor.shape,
                if tensor.is_embedding(self.c) && new.shape.first() > tensor.shape.first() {
                    ", and the vocabulary of a loaded model does not grow; merge it (`adapter_policy` `auto`)"
                } else {
                    ""
                }
            ));
        }
        let replaced = |changes: &mut Changes<'a>, by| {
            if tensor.bias { changes.replaced_bias.push(by) } else { changes.replaced.push(by) }
        };
        self.each_part(tensor, new, replaced);
        Ok(())
    }

    fn rows(&mut self, new: &'a ReplacedRows) -> Result<()> {
        let tensor = self.base(&new.name)?;
        let (out, width) = self.matrix(tensor)?;
        if let Some(row) = new.rows.iter().find(|row| **row >= out) {
            return self.refuse(format!("it replaces row {row} of `{}`, which has {out} rows", new.name));
        }
        if new.values.len() != new.rows.len() * width {
            let (found, rows) = (new.values.len(), new.rows.len());
            return self
                .refuse(format!("its {rows} rows of `{}` have {found} numbers; expected {width} for each", new.name));
        }
        self.each_part(tensor, new, |changes, by| changes.replaced_rows.push(by));
        Ok(())
    }

    /// Gives `add` the changes of each module that `tensor` has rows of, and what `what` is to it.
    fn each_part<T>(&mut self, tensor: &Named, what: &'a T, add: impl Fn(&mut Changes<'a>, By<'a, T>)) {
        for part in &tensor.parts {
            let (adapter, backend, place, weight) = (self.adapter, self.backend, self.place, self.weight);
            let by = By { adapter, backend, place, weight, what, first: part.first };
            add(self.plan.modules.entry(part.module).or_insert_with(|| Changes::new(part.shape.clone())), by);
        }
    }

    /// The tensor `name`.
    fn base(&self, name: &str) -> Result<&'r Named> {
        self.names.get(name).ok_or_else(|| self.unknown(name))
    }

    fn matrix(&self, tensor: &Named) -> Result<(usize, usize)> {
        match tensor.shape[..] {
            [out, width] => Ok((out, width)),
            _ => Err(self.error(format!("`{}` is no matrix, but has the shape {:?}", tensor.name, tensor.shape))),
        }
    }

    fn unknown(&self, name: &str) -> Error {
        let (model, layers) = (self.c.architecture.name(), self.c.layers);
        self.error(format!(
            "it changes `{name}`, which a {model} with {layers} layers does not have; it is for another base"
        ))
    }

    fn refuse<T>(&self, reason: String) -> Result<T> {
        Err(self.error(reason))
    }

    fn error(&self, reason: String) -> Error {
        Error::adapter(&self.adapter.reference, reason)
    }
}
