//! A backend that loads fake models.

use std::{sync::Arc, time::Instant};

use llm_local_core::{
    Capabilities, ComputeDtype, DeviceInfo, DeviceKind, Error, FloatType, InferenceBackend, LoadOptions, LoadedInfo,
    LoadedModel, MemoryEstimate, ModelInfo, ModelWeights, ProgressEvent, Result, Support, async_trait,
};
use tokio::sync::{Semaphore, watch};

use super::FakeModel;

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

/// Holds loads back until a test lets them through.
#[derive(Debug)]
pub struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self(Semaphore::new(0))
    }

    /// Lets `n` loads through, those that wait first.
    pub fn let_through(&self, n: usize) {
        self.0.add_permits(n);
    }

    /// Lets every load through from now on.
    pub fn open(&self) {
        self.0.close();
    }

    async fn pass(&self) {
        // An error says that the gate was opened for good.
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}

/// A backend that loads [`FakeModel`]s. It reads every tensor it is given once, as stored; so what is wrong with a
/// tensor source shows as it would with a real one.
#[derive(Debug)]
pub struct FakeBackend {
    name: String,
    devices: Result<Vec<DeviceInfo>>,
    support: Support,
    estimate: MemoryEstimate,
    failure: Option<Error>,
    gate: Option<Arc<Gate>>,
    calls: Arc<watch::Sender<Calls>>,
}

impl FakeBackend {
    /// A backend with the device `cpu` that runs every model.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            devices: Ok(vec![DeviceInfo::new("cpu", DeviceKind::Cpu, "a processor that is not there")]),
            support: Support::Yes(Capabilities::new()),
            estimate: MemoryEstimate::new(1 << 20, 1 << 10),
            failure: None,
            gate: None,
            calls: Arc::new(watch::Sender::new(Calls::default())),
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
        self.estimate = estimate;
        self
    }

    /// Makes every load fail with `error`, after the gate.
    pub fn with_failure(mut self, error: Error) -> Self {
        self.failure = Some(error);
        self
    }

    /// Makes every load wait at `gate`.
    pub fn with_gate(mut self, gate: Arc<Gate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// What was asked of it and its models.
    pub fn calls(&self) -> Calls {
        *self.calls.borrow()
    }

    /// Waits until what was asked of it is as `condition` says.
    pub async fn when(&self, condition: impl FnMut(&Calls) -> bool) -> Calls {
        let mut seen = self.calls.subscribe();
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
        if let Some(error) = self.failure.clone().or_else(|| self.refusal(&w.info)) {
            return Err(error);
        }
        let device = self.device(&o)?;
        if !w.adapters.is_empty() {
            return Err(Error::load(&w.info.id, "a fake backend runs no adapter unmerged"));
        }
        let weights = self.read(&w, &o)?;
        let dtype = match o.dtype {
            ComputeDtype::F16 => FloatType::F16,
            ComputeDtype::Bf16 => FloatType::Bf16,
            _ => FloatType::F32,
        };
        let info = LoadedInfo::new(&w.info.id, &self.name, device, dtype, o.context_length, FakeModel::VOCAB_SIZE)
            .with_chat_template(true)
            .with_load_time(started.elapsed());
        let keeps_sessions = matches!(&self.support, Support::Yes(capabilities) if capabilities.sessions);
        Ok(FakeModel::new(info, weights, keeps_sessions, w.reservation, self.calls.clone()))
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

/// Counts a load as failed unless it is told that it succeeded.
struct Failing<'a>(Option<&'a watch::Sender<Calls>>);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if let Some(calls) = self.0 {
            calls.send_modify(|c| c.failed += 1);
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

    fn estimate(&self, m: &ModelInfo, _: &LoadOptions) -> Result<MemoryEstimate> {
        self.refusal(m).map_or(Ok(self.estimate), Err)
    }

    async fn load(&self, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        self.calls.send_modify(|c| c.loads += 1);
        let mut failing = Failing(Some(&self.calls));
        let model = self.try_load(w, o).await?;
        failing.0 = None;
        self.calls.send_modify(|c| c.loaded += 1);
        Ok(Arc::new(model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::MemoryTensorSource;
    use llm_local_core::{CancellationToken, ModelFormat, TensorSource, TextFiles};
    use std::{future::Future, pin::pin, task::Context};

    fn weights(tensors: Option<Arc<dyn TensorSource>>) -> ModelWeights {
        let format = ModelFormat::Gguf { metadata: Arc::default() };
        ModelWeights::new(Arc::new(ModelInfo::new("m", format, vec![])), tensors, TextFiles::default())
    }

    fn one_tensor() -> Option<Arc<dyn TensorSource>> {
        Some(Arc::new(MemoryTensorSource::new().with_floats("w", &[4], FloatType::F32, &[0.0; 4])))
    }

    #[test]
    fn a_load_reads_the_tensors_and_a_drop_unloads() {
        let backend = FakeBackend::new("fake");
        let model = pollster::block_on(backend.load(weights(one_tensor()), LoadOptions::new(8))).unwrap();
        assert_eq!(model.memory().weights, 16);
        assert_eq!((backend.calls().loaded, backend.calls().live()), (1, 1));
        drop(model);
        assert_eq!((backend.calls().unloads, backend.calls().live()), (1, 0));
    }

    #[test]
    fn a_gate_holds_loads_back_and_a_dropped_or_cancelled_one_is_counted_as_failed() {
        let gate = Arc::new(Gate::new());
        let backend = FakeBackend::new("fake").with_gate(gate.clone());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        {
            let mut dropped = pin!(backend.load(weights(one_tensor()), LoadOptions::new(8)));
            assert!(dropped.as_mut().poll(&mut cx).is_pending());
            assert_eq!(pollster::block_on(backend.when(|c| c.loads == 1)).failed, 0);
        }
        assert_eq!(backend.calls().failed, 1);
        let cancel = CancellationToken::new();
        let options = LoadOptions::new(8).with_cancel(cancel.clone());
        let mut cancelled = pin!(backend.load(weights(one_tensor()), options));
        assert!(cancelled.as_mut().poll(&mut cx).is_pending());
        cancel.cancel();
        assert!(matches!(pollster::block_on(cancelled), Err(Error::Cancelled)));
        gate.let_through(1);
        pollster::block_on(backend.load(weights(one_tensor()), LoadOptions::new(8))).unwrap();
        gate.open();
        pollster::block_on(backend.load(weights(one_tensor()), LoadOptions::new(8))).unwrap();
        assert_eq!((backend.calls().loads, backend.calls().failed), (4, 2));
    }

    #[test]
    fn what_it_does_not_do_it_refuses() {
        let load = |backend: &FakeBackend, w, o| pollster::block_on(backend.load(w, o)).map(drop).unwrap_err();
        let backend = FakeBackend::new("fake");
        let error = load(&backend, weights(one_tensor()), LoadOptions::new(8).with_device("gpu"));
        assert!(error.to_string().contains("gpu") && error.to_string().contains("cpu"), "{error}");
        assert_eq!(load(&backend, weights(None), LoadOptions::new(8)).code(), "load_failed");
        let failing = FakeBackend::new("fake").with_failure(Error::Cancelled);
        assert_eq!(load(&failing, weights(None), LoadOptions::new(8)).code(), "cancelled");
        let no = FakeBackend::new("fake").with_support(Support::No("too new".into()));
        assert!(load(&no, weights(None), LoadOptions::new(8)).to_string().contains("too new"));
        let remote = Support::Yes(Capabilities::new().with_needs_weights(false));
        let remote = FakeBackend::new("fake").with_support(remote);
        pollster::block_on(remote.load(weights(None), LoadOptions::new(8))).unwrap();
        let gone = FakeBackend::new("fake").with_unavailable("no such chip");
        assert!(gone.devices().unwrap_err().to_string().contains("no such chip"));
    }
}
