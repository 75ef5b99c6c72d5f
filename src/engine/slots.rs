//! One model per spec: the same spec loaded twice is one model, two loads of one spec at once are one load.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};
use llm_local_core::{ArtifactRef, BackendPreference, ComputeDtype, ContextLength, ModelSpec, Result};

use super::Model;

/// What makes two specs the same model: everything that decides what is loaded, and nothing that is for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    base: ArtifactRef,
    /// Ref, and the weight's bits.
    adapters: Vec<(ArtifactRef, u32)>,
    backend: BackendPreference,
    device: Option<String>,
    context_length: ContextLength,
    dtype: ComputeDtype,
}

impl Key {
    pub(super) fn new(spec: &ModelSpec) -> Self {
        Self {
            base: spec.base.clone(),
            adapters: spec.adapters.iter().map(|a| (a.reference.clone(), a.weight.to_bits())).collect(),
            backend: spec.backend.clone(),
            device: spec.device.clone(),
            context_length: spec.context_length,
            dtype: spec.dtype,
        }
    }
}

type Load = BoxFuture<'static, Result<Model>>;

enum Slot {
    /// Weak, so that the load is dropped, and thereby cancelled, with its last waiter.
    Loading(WeakShared<Load>),
    Loaded(Model),
}

#[derive(Clone, Default)]
pub(super) struct Slots {
    map: Arc<Mutex<HashMap<Key, Slot>>>,
}

impl Slots {
    /// The model of `key`, if it is loaded.
    pub(super) fn loaded(&self, key: &Key) -> Option<Model> {
        match self.lock().get(key) {
            Some(Slot::Loaded(model)) if model.is_loaded() => Some(model.clone()),
            _ => None,
        }
    }

    /// The model of `key`: the loaded one, or that of the running load, or that of `load`.
    pub(super) async fn get_or_load(
        &self,
        key: Key,
        load: impl Future<Output = Result<Model>> + Send + 'static,
    ) -> Result<Model> {
        let shared = {
            let mut map = self.lock();
            let running = match map.get(&key) {
                Some(Slot::Loaded(model)) if model.is_loaded() => return Ok(model.clone()),
                Some(Slot::Loading(weak)) => weak.upgrade().filter(|shared| shared.peek().is_none()),
                _ => None,
            };
            match running {
                Some(shared) => shared,
                None => {
                    let (slots, done) = (self.clone(), key.clone());
                    let shared = async move {
                        let result = load.await;
                        let mut map = slots.lock();
                        match &result {
                            Ok(model) => drop(map.insert(done, Slot::Loaded(model.clone()))),
                            Err(_) => drop(map.remove(&done)),
                        }
                        result
                    }
                    .boxed()
                    .shared();
                    if let Some(weak) = Shared::downgrade(&shared) {
                        map.insert(key, Slot::Loading(weak));
                    }
                    shared
                }
            }
        };
        shared.await
    }

    /// Takes the model of `key` out, if there is one. `Err` while it loads.
    pub(super) fn take(&self, key: &Key) -> Result<Option<Model>, ()> {
        let mut map = self.lock();
        if let Some(Slot::Loading(weak)) = map.get(key)
            && weak.upgrade().is_some()
        {
            return Err(());
        }
        Ok(match map.remove(key) {
            Some(Slot::Loaded(model)) => Some(model),
            _ => None,
        })
    }

    /// The map holds no state that a panic could leave half-changed.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Slot>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
