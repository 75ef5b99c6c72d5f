//! Sets of adapters, made ready once for all that use them.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
    sync::Arc,
};

use llm_local_core::{AdapterSet, Error, Result};

use super::{
    NewTensors, StepModel,
    caught::{caught, discard},
    shared::{AdapterBytes, Shared},
};

/// A set of adapters in use. It stays as it is for as long as anybody holds it.
pub(super) type Lease<A> = Rc<Prepared<A>>;

/// A set of adapters that the model can compute with.
pub(super) struct Prepared<A> {
    /// [`AdapterSet::digest`]; empty for the base alone.
    digest: String,
    /// Nothing for the base alone; the base as it was, once tensors of it were replaced.
    adapters: OnceCell<A>,
    /// Behind `adapters`: bytes count until they are dropped.
    bytes: RefCell<AdapterBytes>,
}

impl<A> Prepared<A> {
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    pub(super) fn adapters(&self) -> Option<&A> {
        self.adapters.get()
    }

    /// Goes on with `before`, which takes so many bytes, in place of the base alone.
    fn keep(&self, before: A, bytes: u64) -> Result<(), A> {
        self.adapters.set(before)?;
        self.bytes.borrow_mut().set(bytes);
        Ok(())
    }
}

/// The sets that a model computes with: its own, which requests get that name none, and those that requests named.
pub(super) struct Sets<A> {
    own: Lease<A>,
    /// By digest, as long as they are in use. What is in use is not made a second time.
    known: HashMap<String, Weak<Prepared<A>>>,
    shared: Arc<Shared>,
}

impl<A> Sets<A> {
    /// The sets of a model whose own is `set`.
    pub(super) fn new<M: StepModel<Adapters = A>>(
        set: &AdapterSet,
        model: &mut M,
        shared: &Arc<Shared>,
    ) -> Result<Self> {
        let base = prepare(&AdapterSet::new(), model, shared)?;
        let mut sets = Self { own: base, known: HashMap::new(), shared: shared.clone() };
        sets.replace_own(set, model)?;
        Ok(sets)
    }

    /// The model's own set.
    pub(super) fn own(&self) -> &Lease<A> {
        &self.own
    }

    /// `set`, made ready unless it is in use.
    pub(super) fn lease<M: StepModel<Adapters = A>>(&mut self, set: &AdapterSet, model: &mut M) -> Result<Lease<A>> {
        let digest = set.digest();
        if let Some(known) = self.known.get(&digest).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let made = prepare(set, model, &self.shared)?;
        self.known.retain(|_, known| known.strong_count() > 0);
        self.known.insert(digest, Rc::downgrade(&made));
        Ok(made)
    }

    /// Makes `set` the model's own. Returns what was; if `set` cannot be made ready, that stays.
    pub(super) fn replace_own<M: StepModel<Adapters = A>>(
        &mut self,
        set: &AdapterSet,
        model: &mut M,
    ) -> Result<Lease<A>> {
        let new = self.lease(set, model)?;
        Ok(std::mem::replace(&mut self.own, new))
    }

    /// Replaces tensors of the base, which is the model's own set. Whoever has it goes on with the base as it was. If the new
    /// tensors cannot be had, nothing is changed.
    pub(super) fn replace_tensors<M: StepModel<Adapters = A>>(
        &mut self,
        new: &NewTensors,
        model: &mut M,
    ) -> Result<()> {
        if !self.own.digest.is_empty() {
            let reason = "adapters of the model's own run beside its weights; set none (`set_adapters`) first";
            return Err(Error::unsupported("replace_tensors", reason));
        }
        let made = caught(|| model.replace_tensors(new))
            .unwrap_or_else(|panic| Err(Error::load(&new.info.id, format!("the backend panicked: {panic}"))))?;
        let base = Rc::new(Prepared::base(&self.shared));
        let before = std::mem::replace(&mut self.own, base);
        // A set that is named from now on is of the new base.
        self.known.clear();
        self.known.insert(String::new(), Rc::downgrade(&self.own));
        let left = if Rc::strong_count(&before) > 1 {
            let bytes = model.adapter_bytes(&made);
            before.keep(made, bytes).err()
        } else {
            Some(made)
        };
        discard("tensors that were replaced", left);
        Ok(())
    }
}

impl<A> Prepared<A> {
    /// The base alone.
    fn base(shared: &Arc<Shared>) -> Self {
        let bytes = RefCell::new(AdapterBytes::new(shared.clone()));
        Self { digest: String::new(), adapters: OnceCell::new(), bytes }
    }
}

/// Makes `set` ready. Whatever goes wrong is the adapters' trouble, and so is a panic.
fn prepare<M: StepModel>(set: &AdapterSet, model: &mut M, shared: &Arc<Shared>) -> Result<Lease<M::Adapters>> {
    if set.is_empty() {
        return Ok(Rc::new(Prepared::base(shared)));
    }
    let names = || set.adapters.iter().map(|(a, _)| a.reference.as_str()).collect::<Vec<_>>().join(", ");
    let made = caught(|| model.prepare_adapters(set))
        .unwrap_or_else(|panic| Err(Error::adapter(names(), format!("the backend panicked: {panic}"))));
    let made = made.map_err(|error| match error {
        error @ Error::Unsupported { .. } => error,
        error => error.into_adapter(names()),
    })?;
    let mut bytes = AdapterBytes::new(shared.clone());
    bytes.set(model.adapter_bytes(&made));
    Ok(Rc::new(Prepared { digest: set.digest(), adapters: made.into(), bytes: RefCell::new(bytes) }))
}
