//! What a set changes of each tensor, checked against the model.

use std::collections::HashMap;

use llm_local_core::{
    AdapterSet, Error, LoraAdapter, LoraModule, Result,
    lora::{AdapterFeature, Floats, ReplacedRows, ReplacementTensor},
    model::{BaseTensor, DecoderConfig, Layout, ModuleRole as R},
};

use super::super::side::Values;
use crate::tied::TIED_HEAD;

/// What a set changes, module by module.
pub(super) struct Plan<'a> {
    modules: HashMap<(R, usize), Changes<'a>>,
    rows: HashMap<(R, usize), usize>,
}

/// One change by one adapter.
#[derive(Debug)]
pub(super) struct By<'a, T> {
    pub(super) adapter: &'a LoraAdapter,
    /// Which adapter of the set it is.
    pub(super) place: usize,
    /// The adapter's weight in the set.
    pub(super) weight: f32,
    pub(super) what: &'a T,
}

impl<T> Clone for By<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for By<'_, T> {}

impl<T> By<'_, T> {
    /// Whether the adapter keeps tied what is tied.
    fn keeps_tied(&self) -> bool {
        self.adapter.features.contains(&AdapterFeature::WeightTying)
    }
}

/// The same change, not an equal one.
impl<T> PartialEq for By<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.what, other.what) && self.weight.to_bits() == other.weight.to_bits()
    }
}

/// What adapters change of one module.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Changes<'a> {
    /// The shape of its weight.
    pub(super) shape: Vec<usize>,
    pub(super) replaced: Vec<By<'a, ReplacementTensor>>,
    pub(super) replaced_rows: Vec<By<'a, ReplacedRows>>,
    pub(super) pairs: Vec<By<'a, LoraModule>>,
    pub(super) replaced_bias: Vec<By<'a, ReplacementTensor>>,
}

impl<'a> Changes<'a> {
    fn new(shape: Vec<usize>) -> Self {
        let (replaced, replaced_rows, pairs, replaced_bias) = Default::default();
        Self { shape, replaced, replaced_rows, pairs, replaced_bias }
    }

    /// Rows of its weight.
    pub(super) fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Whether the weight becomes another, apart from what runs beside it.
    pub(super) fn replaces(&self) -> bool {
        !self.replaced.is_empty() || !self.replaced_rows.is_empty()
    }

    /// Whether one of the adapters makes a tied tensor one of its own: by a replacement, unless it says that it has kept
    /// both tied, or has a pair beside the replacement, which is how PEFT saves a base below a pair.
    fn unties(&self) -> bool {
        self.replaced.iter().any(|by| !by.keeps_tied() && !self.pairs.iter().any(|pair| pair.place == by.place))
    }

    /// Takes the changes of what is tied to this. What an adapter that keeps both tied has for the two is saved twice, and
    /// counts once.
    fn join(&mut self, other: Self) {
        fn add<'a, T>(all: &mut Vec<By<'a, T>>, more: Vec<By<'a, T>>) {
            let own: Vec<usize> = all.iter().map(|by| by.place).collect();
            all.extend(more.into_iter().filter(|by| !(by.keeps_tied() && own.contains(&by.place))));
        }
        add(&mut self.replaced, other.replaced);
        add(&mut self.replaced_rows, other.replaced_rows);
        add(&mut self.pairs, other.pairs);
    }

    pub(super) fn has_bias(&self) -> bool {
        !self.replaced_bias.is_empty() || self.pairs.iter().any(|pair| pair.what.bias.is_some())
    }

    /// Replaces all or some rows of `weight`, row-major.
    pub(super) fn replace(&self, weight: &mut [f32]) -> Result<()> {
        replace_all(weight, &self.replaced)?;
        if self.replaced_rows.is_empty() {
            return Ok(());
        }
        let width = weight.len() / self.rows();
        let whole = weight.to_vec();
        for by in &self.replaced_rows {
            let name = &by.what.name;
            let values = floats(by.adapter, name, &by.what.values)?.all().into_owned();
            for (row, new) in by.what.rows.iter().zip(values.chunks_exact(width)) {
                let range = row * width..(row + 1) * width;
                blend(&mut weight[range.clone()], &whole[range], new, by.weight);
            }
            check_finite(by.adapter, name, &values)?;
        }
        Ok(())
    }

    /// Replaces and adds to the bias.
    pub(super) fn change_bias(&self, bias: &mut [f32]) -> Result<()> {
        replace_all(bias, &self.replaced_bias)?;
        for by in &self.pairs {
            let Some(added) = &by.what.bias else { continue };
            check_finite(by.adapter, &format!("{}.lora_B.bias", by.what.name), added)?;
            let scale = (f64::from(by.weight) * by.what.scale) as f32;
            bias.iter_mut().zip(added).for_each(|(bias, b)| *bias += scale * b);
        }
        Ok(())
    }
}

/// `W + Σ weight · (R - W)`; exactly R for one of weight 1.
fn replace_all(weight: &mut [f32], by: &[By<'_, ReplacementTensor>]) -> Result<()> {
    if by.is_empty() {
        return Ok(());
    }
    let whole = weight.to_vec();
    for by in by {
        let values = floats(by.adapter, &by.what.name, &by.what.values)?;
        let values = values.all();
        check_finite(by.adapter, &by.what.name, &values)?;
        blend(weight, &whole, &values, by.weight);
    }
    Ok(())
}

/// `to += weight · (new - from)`; exactly `new` where that is all there is.
fn blend(to: &mut [f32], from: &[f32], new: &[f32], weight: f32) {
    for ((to, from), new) in to.iter_mut().zip(from).zip(new) {
        if weight == 1.0 && to == from {
            *to = *new;
        } else {
            *to = (f64::from(*to) + f64::from(weight) * (f64::from(*new) - f64::from(*from))) as f32;
        }
    }
}

/// `values` in the type they are stored in.
pub(super) fn floats(adapter: &LoraAdapter, name: &str, values: &Floats) -> Result<Values> {
    Values::new(values).ok_or_else(|| {
        Error::adapter(
            &adapter.reference,
            format!("`{name}` is stored as {}, which candle does not run", values.float_type()),
        )
    })
}

pub(super) fn check_finite(adapter: &LoraAdapter, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|v| !v.is_finite()) {
        Some(value) => {
            Err(Error::adapter(&adapter.reference, format!("`{name}` has the value {value}; expected finite numbers")))
        }
        None => Ok(()),
    }
}

impl<'a> Plan<'a> {
    /// What `set` changes of a model that `c` describes.
    pub(super) fn new(set: &'a AdapterSet, c: &DecoderConfig) -> Result<Self> {
        let base = c.base_tensors(Layout::HuggingFace);
        let names: HashMap<&str, &BaseTensor> = base.iter().map(|t| (t.name.as_str(), t)).collect();
        let rows = base.iter().filter(|t| !t.bias).map(|t| ((t.role, t.layer), t.shape[0])).collect();
        let mut plan = Self { modules: HashMap::new(), rows };
        for (place, (adapter, weight)) in set.adapters.iter().enumerate() {
            Reading { adapter, place, weight: *weight, names: &names, c, plan: &mut plan }.read()?;
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
    pub(super) fn take(&mut self, role: R, layer: usize) -> Option<Changes<'a>> {
        self.modules.remove(&(role, layer))
    }

    /// Rows of a module's weight.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] for a module that the description does not have: what stands behind it in a matrix has no
    /// known place then.
    pub(super) fn rows_of(&self, role: R, layer: usize) -> Result<usize> {
        let unknown =
            || Error::load(format!("{role:?} of layer {layer}"), "its description does not say how many rows it has");
        self.rows.get(&(role, layer)).copied().ok_or_else(unknown)
    }

    /// Checks that nothing is left that nobody took.
    pub(super) fn finish(&self, c: &DecoderConfig) -> Result<()> {
        let Some(((role, layer), changes)) = self.modules.iter().next() else { return Ok(()) };
        let pairs = changes.pairs.iter().map(|by| by.adapter);
        let rows = changes.replaced_rows.iter().map(|by| by.adapter);
        let whole = changes.replaced.iter().chain(&changes.replaced_bias).map(|by| by.adapter);
        let name = pairs.chain(rows).chain(whole).next().map_or("", |adapter| adapter.reference.as_str());
        let model = c.architecture.name();
        Err(Error::adapter(name, format!("it changes {role:?} of layer {layer}, where this {model} runs no adapter")))
    }
}

/// One adapter, as it is read into a plan.
struct Reading<'r, 'a> {
    adapter: &'a LoraAdapter,
    place: usize,
    weight: f32,
    names: &'r HashMap<&'r str, &'r BaseTensor>,
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
        let unusual = [
            (module.experts.is_some(), "pairs of experts"),
            (module.is_parameter, "a pair of a bare parameter"),
            (module.transposed, "a pair of a transposed weight"),
        ];
        if let Some((_, what)) = unusual.iter().find(|(is, _)| *is) {
            return self.refuse(format!("`{name}` has {what}, which candle does not run beside the weights; merge it"));
        }
        let (tensor, key) = self.base(&module.weight_name())?;
        let (out, width) = self.matrix(tensor)?;
        let (found, expected) = ((module.out_features, module.in_features), (out, width));
        if found != expected {
            return self
                .refuse(format!("the pair of `{name}` is for a weight of {found:?}; the model's is {expected:?}"));
        }
        for (what, values) in [("magnitude", &module.magnitude), ("bias", &module.bias)] {
            if let Some(found) = values.as_ref().map(Vec::len).filter(|len| *len != out) {
                return self.refuse(format!("the {what} of `{name}` has {found} numbers; expected {out}"));
            }
        }
        let (adapter, place, weight) = (self.adapter, self.place, self.weight);
        let is_embedding = key.0 == R::Embedding || key.0 == R::Head && self.c.tied_embeddings;
        if module.bias.is_some() && is_embedding {
            return self.refuse(format!("`{name}` is an embedding, which has no bias that one could be added to"));
        }
        self.changes(key, &tensor.shape).pairs.push(By { adapter, place, weight, what: module });
        Ok(())
    }

    fn replacement(&mut self, new: &'a ReplacementTensor) -> Result<()> {
        let by = By { adapter: self.adapter, place: self.place, weight: self.weight, what: new };
        let (tensor, key) = self.base(&new.name)?;
        if new.shape != tensor.shape || new.values.len() != tensor.shape.iter().product::<usize>() {
            return self.refuse(format!(
                "its `{}` has the shape {:?} and {} numbers; the model's is {:?}",
                new.name,
                new.shape,
                new.values.len(),
                tensor.shape
            ));
        }
        if tensor.bias {
            let rows = tensor.shape[0];
            self.changes(key, &[rows]).replaced_bias.push(by);
        } else {
            self.changes(key, &tensor.shape).replaced.push(by);
        }
        Ok(())
    }

    fn rows(&mut self, new: &'a ReplacedRows) -> Result<()> {
        let (tensor, key) = self.base(&new.name)?;
        let (out, width) = self.matrix(tensor)?;
        if let Some(row) = new.rows.iter().find(|row| **row >= out) {
            return self.refuse(format!("it replaces row {row} of `{}`, which has {out} rows", new.name));
        }
        if new.values.len() != new.rows.len() * width {
            let (found, rows) = (new.values.len(), new.rows.len());
            return self
                .refuse(format!("its {rows} rows of `{}` have {found} numbers; expected {width} for each", new.name));
        }
        let by = By { adapter: self.adapter, place: self.place, weight: self.weight, what: new };
        self.changes(key, &tensor.shape).replaced_rows.push(by);
        Ok(())
    }

    fn changes(&mut self, key: (R, usize), shape: &[usize]) -> &mut Changes<'a> {
        self.plan.modules.entry(key).or_insert_with(|| Changes::new(shape.to_vec()))
    }

    /// The tensor `name`, and the module that it is of. A tied head has one too, of the embedding's shape.
    fn base(&self, name: &str) -> Result<(&'r BaseTensor, (R, usize))> {
        if self.c.tied_embeddings && name == TIED_HEAD {
            let embedding = self.names.values().find(|t| t.role == R::Embedding);
            return embedding.map(|t| (*t, (R::Head, 0))).ok_or_else(|| self.unknown(name));
        }
        let tensor = self.names.get(name).copied().ok_or_else(|| self.unknown(name))?;
        Ok((tensor, (tensor.role, tensor.layer)))
    }

    fn matrix(&self, tensor: &BaseTensor) -> Result<(usize, usize)> {
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
