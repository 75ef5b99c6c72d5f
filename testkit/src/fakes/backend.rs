//! A backend that loads fake models.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Instant};

use super::{
    FakeModel, Gate, Happening,
    machine::{Machine, Tenancy},
};
use llm_local_core::{
    Capabilities, ComputeDtype, DeviceInfo, DeviceKind, DeviceMemory, Error, FloatType, InferenceBackend, LoadOptions,
    LoadedInfo, LoadedModel, MemoryEstimate, ModelInfo, ModelWeights, ProgressEvent, Result, Support, async_trait,
};

/// What was asked of a [`FakeBackend`] and its models, as counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Calls {
    /// Loads that began.
    pub loads: usize,
    /// Loads that gave a model.
    pub loaded: usize,
    /// Loads that failed, were cancelled, or whose future was dropped.
    pub failed: usize,
    /// Models that were unloaded, or dropped while loaded.
    pub unloads: usize,
    /// Generations that were asked for.
    pub generations: usize,
}

impl Calls {
    /// Models in memory now.
    pub fn live(&self) -> usize {
        self.loaded - self.unloads
    }
}

/// What a [`FakeBackend`] says that a model takes.
#[derive(Clone)]
enum Estimating {
    Always(MemoryEstimate),
    By(Arc<EstimateFn>),
}

type EstimateFn = dyn Fn(&ModelInfo, &LoadOptions) -> MemoryEstimate + Send + Sync;
type DeviceMemoryFn = dyn Fn(u64) -> DeviceMemory + Send + Sync;
type FailureFn = dyn Fn(&str, &LoadOptions, MemoryEstimate) -> Option<Error> + Send + Sync;

/// A backend that loads [`FakeModel`]s. It reads every tensor it is given once, as stored; so what is wrong with a
/// tensor source shows as it would with a real one.
///
/// Its models hold memory of a machine that is not there ([`FakeBackend::held`]): by default as many bytes as their tensors
/// have, with [`FakeBackend::with_estimate_fn`] what that says. It comes back when a model was unloaded or dropped, or, with
/// [`FakeBackend::with_unload_gate`], when that lets it through.
pub struct FakeBackend {
    name: String,
    devices: Result<Vec<DeviceInfo>>,
    support: Support,
    estimate: Estimating,
    device_memory: BTreeMap<String, Box<DeviceMemoryFn>>,
    failure: Option<Box<FailureFn>>,
    gate: Option<Arc<Gate>>,
    machine: Arc<Machine>,
}

impl FakeBackend {
    /// A backend with the device `cpu` that runs every model.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            devices: Ok(vec![DeviceInfo::new("cpu", DeviceKind::Cpu, "a processor that is not there")]),
            support: Support::Yes(Capabilities::new()),
            estimate: Estimating::Always(MemoryEstimate::new(1 << 20, 1 << 10)),
            device_memory: BTreeMap::new(),
            failure: None,
            gate: None,
            machine: Arc::default(),
        }
    }

    /// Sets its devices, best first.
    pub fn with_devices(mut self, devices: Vec<DeviceInfo>) -> Self {
        self.devices = Ok(devices);
        self
    }

    /// Makes it say that it cannot run on this machine, and why.
    pub fn with_unavailable(mut self, reason: &str) -> Self {
        self.devices = Err(Error::backend_unavailable(&self.name, reason));
        self
    }

    /// Sets what it says of every model. Of that, whether weights are needed changes what
    /// `load` does, and whether sessions are kept what its models do.
    pub fn with_support(mut self, support: Support) -> Self {
        self.support = support;
        self
    }

    /// Sets what it says that every model takes.
    pub fn with_estimate(mut self, estimate: MemoryEstimate) -> Self {
        self.estimate = Estimating::Always(estimate);
        self
    }

    /// Sets what a model takes, by its id, its tensors, and the options. Its models then hold what that says: what
    /// [`MemoryEstimate::held`] has from the load on, and the KV cache while anything is generated.
    pub fn with_estimate_fn(
        mut self,
        estimate: impl Fn(&ModelInfo, &LoadOptions) -> MemoryEstimate + Send + Sync + 'static,
    ) -> Self {
        self.estimate = Estimating::By(Arc::new(estimate));
        self
    }

    /// Gives the device `id` memory of its own, of which `memory` says how much there is, by the bytes that its models hold
    /// there.
    pub fn with_device_memory(
        mut self,
        id: impl Into<String>,
        memory: impl Fn(u64) -> DeviceMemory + Send + Sync + 'static,
    ) -> Self {
        self.device_memory.insert(id.into(), Box::new(memory));
        self
    }

    /// Makes every load fail with `error`, after the gate.
    pub fn with_failure(self, error: Error) -> Self {
        self.with_failure_fn(move |_, _, _| Some(error.clone()))
    }

    /// Makes those loads fail, after the gate, for which `failure` gives an error: by the model's id, the options and what the
    /// model would take. It is asked once for each load.
    pub fn with_failure_fn(
        mut self,
        failure: impl Fn(&str, &LoadOptions, MemoryEstimate) -> Option<Error> + Send + Sync + 'static,
    ) -> Self {
        self.failure = Some(Box::new(failure));
        self
    }

    /// Makes loads fail with [`Error::OutOfMemory`], after the gate, with which all models would hold more than `bytes`.
    pub fn with_out_of_memory_above(self, bytes: u64) -> Self {
        let machine = Arc::downgrade(&self.machine);
        self.with_failure_fn(move |model, options, estimate| {
            let held = machine.upgrade().map_or(0, |machine| machine.held(options.device.as_deref()));
            let needed = held.saturating_add(estimate.total());
            let device = options.device.as_deref().unwrap_or("cpu");
            let reason = || format!("`{model}` would make it {needed} bytes, and there are {bytes}");
            (needed > bytes).then(|| Error::out_of_memory(device, reason()))
        })
    }

    /// Makes every load wait at `gate`.
    pub fn with_gate(mut self, gate: Arc<Gate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Makes the memory of every model that is unloaded or dropped come back only when `gate` lets it through, whether
    /// anybody waits for it or not. Until then it is held, its reservation too.
    ///
    /// # Panics
    /// If it has loaded a model already, or is asked to load one.
    pub fn with_unload_gate(mut self, gate: Arc<Gate>) -> Self {
        self.settings().unload_gate = Some(gate);
        self
    }

    /// Tells `listener` what happens to its models, as it happens.
    ///
    /// # Panics
    /// As [`FakeBackend::with_unload_gate`].
    pub fn with_listener(mut self, listener: impl Fn(&Happening) + Send + Sync + 'static) -> Self {
        self.settings().listener = Some(Arc::new(listener));
        self
    }

    fn settings(&mut self) -> &mut Machine {
        Arc::get_mut(&mut self.machine).expect("nothing was asked of this backend yet")
    }

    /// What was asked of it and its models.
    pub fn calls(&self) -> Calls {
        *self.machine.calls.borrow()
    }

    /// Bytes that its models hold now, those included that are unloaded and whose memory is not back yet. A probe that says
    /// so much less than there is makes a machine of it.
    pub fn held(&self) -> u64 {
        self.machine.held(None)
    }

    /// As [`FakeBackend::held`], of the device `id`.
    pub fn held_on(&self, id: &str) -> u64 {
        self.machine.held(Some(id))
    }

    /// Waits until what was asked of it is as `condition` says.
    pub async fn when(&self, condition: impl FnMut(&Calls) -> bool) -> Calls {
        let mut seen = self.machine.calls.subscribe();
        *seen.wait_for(condition).await.expect("this backend holds the sender")
    }

    fn device(&self, options: &LoadOptions) -> Result<DeviceInfo> {
        let devices = self.devices.clone()?;
        let found = match &options.device {
            Some(id) => devices.iter().find(|d| d.id == *id),
            None => devices.first(),
        };
        found.cloned().ok_or_else(|| {
            let have: Vec<_> = devices.iter().map(|d| d.id.as_str()).collect();
            let asked = options.device.as_deref().unwrap_or("any");
            Error::backend_unavailable(&self.name, format!("there is no device `{asked}`; it has: {}", have.join(", ")))
        })
    }

    fn refusal(&self, m: &ModelInfo) -> Option<Error> {
        match &self.support {
            Support::No(reason) => Some(Error::unsupported_format(&m.id, reason)),
            _ => None,
        }
    }

    async fn try_load(&self, w: ModelWeights, o: LoadOptions) -> Result<FakeModel> {
        let started = Instant::now();
        if let Some(gate) = &self.gate {
            o.cancel.run_until_cancelled(gate.pass()).await.ok_or(Error::Cancelled)?;
        }
        let estimate = self.estimate_of(&w.info, &o);
        let failure = self.failure.as_ref().and_then(|failure| failure(&w.info.id, &o, estimate));
        if let Some(error) = failure.or_else(|| self.refusal(&w.info)) {
            return Err(error);
        }
        let device = self.device(&o)?;
        if !w.adapters.is_empty() {
            return Err(Error::load(&w.info.id, "a fake backend runs no adapter unmerged"));
        }
        let read = self.read(&w, &o)?;
        let (weights, kv_cache) = match &self.estimate {
            Estimating::Always(_) => (read, 0),
            Estimating::By(_) => (estimate.held(), estimate.kv_cache),
        };
        let dtype = match o.dtype {
            ComputeDtype::F16 => FloatType::F16,
            ComputeDtype::Bf16 => FloatType::Bf16,
            _ => FloatType::F32,
        };
        let names = (w.info.id.clone(), device.id.clone());
        let info = LoadedInfo::new(&w.info.id, &self.name, device, dtype, o.context_length, FakeModel::VOCAB_SIZE)
            .with_chat_template(true)
            .with_load_time(started.elapsed());
        let keeps_sessions = matches!(&self.support, Support::Yes(capabilities) if capabilities.sessions);
        let tenancy = Tenancy::new(names, (weights, kv_cache), w.reservation, self.machine.clone());
        Ok(FakeModel::new(info, keeps_sessions, tenancy))
    }

    fn estimate_of(&self, m: &ModelInfo, o: &LoadOptions) -> MemoryEstimate {
        match &self.estimate {
            Estimating::Always(estimate) => *estimate,
            Estimating::By(estimate) => estimate(m, o),
        }
    }

    /// Reads every tensor. Returns how many bytes they have.
    fn read(&self, w: &ModelWeights, o: &LoadOptions) -> Result<u64> {
        let Some(tensors) = &w.tensors else {
            return match &self.support {
                Support::Yes(capabilities) if capabilities.needs_weights => {
                    Err(Error::load(&w.info.id, "no tensors were given, but this backend needs weights"))
                }
                _ => Ok(0),
            };
        };
        let total = tensors.entries().len();
        let mut bytes = 0;
        for (done, entry) in tensors.entries().iter().enumerate() {
            if o.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            bytes += tensors.read(&entry.name, None)?.byte_len() as u64;
            if let Some(progress) = &o.progress {
                progress.on_progress(&ProgressEvent::loading(done + 1, total));
            }
        }
        Ok(bytes)
    }
}

impl fmt::Debug for FakeBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeBackend").field("name", &self.name).field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// Counts a load as failed unless it is told that it succeeded.
struct Failing<'a>(Option<(&'a Machine, &'a str)>);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if let Some((machine, model)) = self.0 {
            machine.calls.send_modify(|c| c.failed += 1);
            machine.tell(&Happening::LoadFailed(model.to_owned()));
        }
    }
}

#[async_trait]
impl InferenceBackend for FakeBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        self.devices.clone()
    }

    fn supports(&self, _: &ModelInfo, _: &LoadOptions) -> Support {
        self.support.clone()
    }

    fn device_memory(&self, id: &str) -> Result<Option<DeviceMemory>> {
        Ok(self.device_memory.get(id).map(|memory| memory(self.held_on(id))))
    }

    fn estimate(&self, m: &ModelInfo, o: &LoadOptions) -> Result<MemoryEstimate> {
        self.refusal(m).map_or_else(|| Ok(self.estimate_of(m, o)), Err)
    }

    async fn load(&self, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        let id = w.info.id.clone();
        self.machine.calls.send_modify(|c| c.loads += 1);
        self.machine.tell(&Happening::LoadBegan(id.clone()));
        let mut failing = Failing(Some((&self.machine, &id)));
        let model = self.try_load(w, o).await?;
        failing.0 = None;
        self.machine.calls.send_modify(|c| c.loaded += 1);
        self.machine.tell(&Happening::Loaded(id.clone()));
        Ok(Arc::new(model))
    }
}

#[cfg(test)]
mod tests;
