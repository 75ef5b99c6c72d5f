//! One model per spec: the same spec loaded twice is one model, two loads of one spec at once are one load.

use std::{
    collections::HashMap,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};
use llm_local_core::{ArtifactRef, Error, KeepAlive, ModelSpec, Result};

use super::{Model, versions::is_of_one};
use crate::plan::PlannedArtifact;

/// What makes two specs the same model: everything that decides what is loaded, and nothing that is for people or
/// says how long it stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    base: ArtifactRef,
    adapters: Vec<ArtifactRef>,
    is_locked: bool,
    /// The whole spec, without these.
    spec: String,
}

impl Key {
    pub(super) fn new(spec: &ModelSpec) -> Self {
        let mut spec = spec.clone();
        (spec.id, spec.display_name, spec.description, spec.estimated_memory) = (None, None, None, None);
        spec.keep_alive = KeepAlive::Auto;
        Self {
            base: spec.base.clone(),
            adapters: spec.adapters.iter().map(|adapter| adapter.reference.clone()).collect(),
            is_locked: spec.lock.is_some(),
            spec: format!("{spec:?}"),
        }
    }
}

type Load = BoxFuture<'static, Result<Model>>;
type Unload = Shared<BoxFuture<'static, Result<()>>>;

enum Slot {
    /// Weak, so that the load is dropped, and thereby cancelled, with its last waiter.
    Loading(WeakShared<Load>, Run),
    Loaded(Model),
    /// A load that comes now waits until the memory is back.
    Unloading(Unload),
}

/// Tells one load from others of the same key.
type Run = Arc<()>;

/// What there is to do for an unload.
pub(super) enum Unloading {
    /// It is not loaded.
    Done,
    /// It is being loaded.
    Loading,
    /// It is being unloaded; to be awaited.
    Running(Unload),
}

#[derive(Clone, Default)]
pub(super) struct Slots {
    map: Arc<Map>,
}

type Map = Mutex<HashMap<Key, Slot>>;

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
        while let Some(unload) = self.unload_leftover(&key) {
            // Whoever asked for the unload hears of its error.
            drop(unload.await);
        }
        let shared = {
            let mut map = self.lock();
            let running = match map.get(&key) {
                Some(Slot::Loaded(model)) if model.is_loaded() => return Ok(model.clone()),
                Some(Slot::Loading(weak, _)) => weak.upgrade().filter(|shared| shared.peek().is_none()),
                _ => None,
            };
            match running {
                Some(shared) => shared,
                None => {
                    let run = Run::default();
                    let shared = self.clone().run(key.clone(), run.clone(), load).boxed().shared();
                    if let Some(weak) = Shared::downgrade(&shared) {
                        map.insert(key, Slot::Loading(weak, run));
                    }
                    shared
                }
            }
        };
        shared.await
    }

    /// Runs `load` and keeps what it gives, unless it was [detached](Slots::detach) meanwhile. A panic in it, of a progress
    /// handler for example, is its error.
    async fn run(
        self,
        key: Key,
        run: Run,
        load: impl Future<Output = Result<Model>> + Send + 'static,
    ) -> Result<Model> {
        let result = AssertUnwindSafe(load).catch_unwind().await.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
            Err(Error::load(&key.base, format!("it panicked: {text}")))
        });
        let mut map = self.lock();
        if matches!(map.get(&key), Some(Slot::Loading(_, of)) if Arc::ptr_eq(of, &run)) {
            match &result {
                Ok(model) => drop(map.insert(key, Slot::Loaded(model.clone()))),
                Err(_) => drop(map.remove(&key)),
            }
        }
        result
    }

    /// Forgets the models with an adapter of which `means_another` says that its ref means another version now, and the
    /// loads that may become such: the next load of their specs is a new one. Whoever holds such a model keeps it, and
    /// its memory is back when the last of them drops it.
    pub(super) fn detach(&self, reference: &ArtifactRef, means_another: impl Fn(&PlannedArtifact) -> bool) {
        let mut detached = Vec::new();
        self.lock().retain(|key, slot| match slot {
            Slot::Unloading(_) => true,
            Slot::Loading(..) => key.is_locked || !key.adapters.iter().any(|adapter| is_of_one(adapter, reference)),
            Slot::Loaded(model) => {
                let mut adapters = model.plan().adapters.iter().map(|(adapter, _)| adapter);
                let stays = !adapters.any(|a| is_of_one(&a.reference, reference) && means_another(a));
                if !stays {
                    detached.push(model.clone());
                }
                stays
            }
        });
        // Not under the lock: the last handle of a model gives its memory back.
        drop(detached);
    }

    /// Empties the place of a model whose memory is back; what does so keeps no model in memory.
    pub(super) fn forgetting(&self) -> impl Fn(&Model) + Send + Sync + 'static {
        let map = Arc::downgrade(&self.map);
        move |model| {
            let Some(map) = map.upgrade() else { return };
            let is_it = |slot: &mut Slot| matches!(slot, Slot::Loaded(loaded) if loaded.is_same(model));
            let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
            let forgotten: Vec<_> = map.extract_if(|_, slot| is_it(slot)).collect();
            // Not under the lock: a handle may be the last one.
            drop(map);
            drop(forgotten);
        }
    }

    /// Begins to unload the model of `key`, or joins an unload that runs.
    pub(super) fn unload(&self, key: &Key) -> Unloading {
        let mut map = self.lock();
        match map.get(key) {
            Some(Slot::Loading(weak, _)) if weak.upgrade().is_some() => Unloading::Loading,
            Some(Slot::Unloading(unload)) => Unloading::Running(unload.clone()),
            Some(Slot::Loaded(model)) => {
                let unload = give_back(Arc::downgrade(&self.map), key.clone(), model.clone()).boxed().shared();
                map.insert(key.clone(), Slot::Unloading(unload.clone()));
                Unloading::Running(unload)
            }
            Some(Slot::Loading(..)) | None => Unloading::Done,
        }
    }

    /// The unload that a load of `key` has to wait for: one that runs, or that of a model unloaded by its handle, whose
    /// memory may not be back yet.
    fn unload_leftover(&self, key: &Key) -> Option<Unload> {
        let by_handle = match self.lock().get(key)? {
            Slot::Unloading(unload) => return Some(unload.clone()),
            Slot::Loaded(model) => !model.is_loaded(),
            Slot::Loading(..) => false,
        };
        match by_handle.then(|| self.unload(key))? {
            Unloading::Running(unload) => Some(unload),
            _ => None,
        }
    }

    /// The map holds no state that a panic could leave half-changed.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Slot>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Unloads `model` and empties its slot. The map is held weakly, because this future lies in it.
async fn give_back(map: Weak<Map>, key: Key, model: Model) -> Result<()> {
    let result = model.unload().await;
    if let Some(map) = map.upgrade() {
        map.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
    result
}
