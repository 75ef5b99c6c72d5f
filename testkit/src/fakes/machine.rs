//! What the models of a fake backend hold of a machine that is not there.

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use llm_local_core::CancellationToken;
use tokio::sync::watch;

use super::{backend::Calls, gate::Gate, sessions::Sessions};

/// Something that happens to a model of a [`FakeBackend`](super::FakeBackend), by the model's id.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Happening {
    /// A load of it began.
    LoadBegan(String),
    /// That load gave a model.
    Loaded(String),
    /// That load failed, was cancelled, or its future was dropped.
    LoadFailed(String),
    /// It is being unloaded, or was dropped. From now on it answers nothing.
    UnloadBegan(String),
    /// Its memory is back, and its reservation dropped.
    Unloaded(String),
}

type Listener = Arc<dyn Fn(&Happening) + Send + Sync>;

/// The models of a fake backend, and who hears of them.
#[derive(Default)]
pub(super) struct Machine {
    tenants: Mutex<Vec<Weak<Tenancy>>>,
    pub(super) calls: watch::Sender<Calls>,
    pub(super) listener: Option<Listener>,
    pub(super) unload_gate: Option<Arc<Gate>>,
}

impl Machine {
    /// Bytes that models hold now, on the device `id` or on all.
    pub(super) fn held(&self, id: Option<&str>) -> u64 {
        // Upgraded first, and dropped behind the lock: the last one may be held here.
        let tenants: Vec<_> = self.tenants().iter().filter_map(Weak::upgrade).collect();
        tenants.iter().filter(|tenant| id.is_none_or(|id| tenant.device == id)).map(|tenant| tenant.held()).sum()
    }

    pub(super) fn move_in(&self, tenant: &Arc<Tenancy>) {
        let mut tenants = self.tenants();
        tenants.retain(|tenant| tenant.strong_count() > 0);
        tenants.push(Arc::downgrade(tenant));
    }

    pub(super) fn tell(&self, happening: &Happening) {
        if let Some(listener) = &self.listener {
            listener(happening);
        }
    }

    fn tenants(&self) -> MutexGuard<'_, Vec<Weak<Tenancy>>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("calls", &*self.calls.borrow()).finish_non_exhaustive()
    }
}

/// The memory of one model.
pub(super) struct Tenancy {
    pub(super) model: String,
    pub(super) device: String,
    /// Bytes from the load on.
    pub(super) weights: u64,
    /// Bytes while anything is generated.
    pub(super) kv_cache: u64,
    pub(super) sessions: Sessions,
    pub(super) reservation: Mutex<Option<Box<dyn Any + Send + Sync>>>,
    pub(super) machine: Arc<Machine>,
    running: AtomicUsize,
    left: AtomicBool,
    /// When the memory is back.
    gone: CancellationToken,
}

impl Tenancy {
    pub(super) fn new(
        (model, device): (String, String),
        (weights, kv_cache): (u64, u64),
        reservation: Option<Box<dyn Any + Send + Sync>>,
        machine: Arc<Machine>,
    ) -> Arc<Self> {
        let tenancy = Arc::new(Self {
            model,
            device,
            weights,
            kv_cache,
            sessions: Sessions::default(),
            reservation: Mutex::new(reservation),
            machine,
            running: AtomicUsize::new(0),
            left: AtomicBool::new(false),
            gone: CancellationToken::new(),
        });
        tenancy.machine.move_in(&tenancy);
        tenancy
    }

    /// Bytes of KV caches, of what is generated and of sessions.
    pub(super) fn kv_bytes(&self) -> u64 {
        let own = if self.running.load(SeqCst) > 0 { self.kv_cache } else { 0 };
        own + self.sessions.bytes()
    }

    fn held(&self) -> u64 {
        if self.gone.is_cancelled() { 0 } else { self.weights + self.kv_bytes() }
    }

    /// Lets the memory go, once the gate lets it through. Does so once.
    pub(super) fn leave(self: &Arc<Self>) {
        if self.left.swap(true, SeqCst) {
            return;
        }
        self.machine.tell(&Happening::UnloadBegan(self.model.clone()));
        let tenancy = self.clone();
        let end = move || {
            tenancy.sessions.forget_idle();
            tenancy.machine.calls.send_modify(|calls| calls.unloads += 1);
            // Behind the memory, before anybody who waits hears of it.
            tenancy.gone.cancel();
            drop(tenancy.reservation.lock().unwrap_or_else(PoisonError::into_inner).take());
            tenancy.machine.tell(&Happening::Unloaded(tenancy.model.clone()));
        };
        match &self.machine.unload_gate {
            Some(gate) => gate.park(end),
            None => end(),
        }
    }

    /// Waits until the memory is back.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

/// Something that is generated.
pub(super) struct Running(Arc<Tenancy>);

impl Running {
    pub(super) fn new(tenancy: &Arc<Tenancy>) -> Self {
        tenancy.running.fetch_add(1, SeqCst);
        Self(tenancy.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}
