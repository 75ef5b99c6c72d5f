//! Backends: code that runs models.

use std::{any::Any, collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    AdapterSet, ComputeDtype, Error, FloatType, GenerateRequest, Generation, Input, KvCacheType, LoraAdapter,
    ModelInfo, ProgressHandler, Result, SessionId, SessionState, TensorSource, model::GgufMetadata,
};

/// Runs models. One instance serves a whole registry.
#[async_trait]
pub trait InferenceBackend: Send + Sync {
    /// The name that specs prefer it by: `candle`, `mlx`, ...
    fn name(&self) -> &str;

    /// The devices it can run on here, best first.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`] with why, if it cannot run here at all.
    fn devices(&self) -> Result<Vec<DeviceInfo>>;

    /// Whether it can run the model `m` as `o` says. Answered from the description and the tensor headers alone.
    fn supports(&self, m: &ModelInfo, o: &LoadOptions) -> Support;

    /// How much memory the device `id` of [`InferenceBackend::devices`] has now, where it has memory of its own or may use
    /// less of the machine's than there is: `None` for one that takes what the machine has, as the processor does.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`] if the device cannot be asked.
    fn device_memory(&self, id: &str) -> Result<Option<DeviceMemory>> {
        let _ = id;
        Ok(None)
    }

    /// Says how much memory all its models may take together on the device `id` of [`InferenceBackend::devices`], in bytes: what
    /// its allocator should keep to, if it has one that can be told. The engine says it before each load; it admits loads by
    /// the same budget, so a backend need not refuse anything by it.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`] if the device cannot be told.
    fn set_memory_budget(&self, id: &str, bytes: u64) -> Result<()> {
        let _ = (id, bytes);
        Ok(())
    }

    /// What running `m` as `o` says would take, by part.
    ///
    /// # Errors
    /// [`Error::UnsupportedModelFormat`] where `supports` says no, [`Error::InvalidSpec`] for options it cannot follow.
    fn estimate(&self, m: &ModelInfo, o: &LoadOptions) -> Result<MemoryEstimate>;

    /// Loads a model. Dropping the future gives up; memory taken until then is given back.
    ///
    /// # Errors
    /// [`Error::LoadFailed`], [`Error::InsufficientMemory`], [`Error::Cancelled`], or what reading a tensor gave; for
    /// [`ModelWeights::adapters`], those of [`LoadedModel::set_adapters`]. [`Error::OutOfMemory`] where the device's
    /// allocator said no, with everything that was taken until then given back.
    async fn load(&self, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>>;
}

const _: fn(&dyn InferenceBackend, &dyn LoadedModel) = |_, _| {};

/// Whether a backend can run a model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Support {
    /// It can.
    Yes(Capabilities),
    /// It cannot, and why: the field or tensor, what it has and what would be supported.
    No(String),
}

/// What a backend can do with a model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// It can run adapters beside the weights, without merging them: those of [`ModelWeights::adapters`], those that a
    /// request names, and those of [`LoadedModel::set_adapters`].
    pub unmerged: bool,
    /// It can read tensors of a loaded model anew: [`LoadedModel::replace_tensors`].
    pub replaces_tensors: bool,
    /// It keeps KV caches between requests.
    pub sessions: bool,
    /// It wants the weights; a remote engine does not.
    pub needs_weights: bool,
    /// The longest context it can hold for this model, in tokens.
    pub max_context: Option<usize>,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::new()
    }
}

impl Capabilities {
    /// A backend that wants weights, and can neither run adapters unmerged, nor replace tensors, nor keep sessions.
    pub fn new() -> Self {
        Self { unmerged: false, replaces_tensors: false, sessions: false, needs_weights: true, max_context: None }
    }

    /// Sets whether adapters can run unmerged.
    pub fn with_unmerged(mut self, unmerged: bool) -> Self {
        self.unmerged = unmerged;
        self
    }

    /// Sets whether tensors of a loaded model can be replaced.
    pub fn with_replaces_tensors(mut self, replaces_tensors: bool) -> Self {
        self.replaces_tensors = replaces_tensors;
        self
    }

    /// Sets whether KV caches are kept between requests.
    pub fn with_sessions(mut self, sessions: bool) -> Self {
        self.sessions = sessions;
        self
    }

    /// Sets whether the weights are wanted.
    pub fn with_needs_weights(mut self, needs_weights: bool) -> Self {
        self.needs_weights = needs_weights;
        self
    }

    /// Sets the longest context, in tokens.
    pub fn with_max_context(mut self, tokens: usize) -> Self {
        self.max_context = Some(tokens);
        self
    }
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The name that specs prefer it by: `cpu`, `metal`, `cuda:0`.
    pub id: String,
    /// What kind it is.
    pub kind: DeviceKind,
    /// A name for people.
    pub name: String,
    /// Its memory in bytes, where the backend knows it and it is its own.
    pub memory: Option<u64>,
}

impl DeviceInfo {
    /// A device with unknown memory.
    pub fn new(id: impl Into<String>, kind: DeviceKind, name: impl Into<String>) -> Self {
        Self { id: id.into(), kind, name: name.into(), memory: None }
    }

    /// Sets its memory in bytes.
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }
}

/// Memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeviceMemory {
    /// What models may take of it in all: all that a GPU has; of memory that it shares with the processor, the part that the
    /// system recommends to use.
    pub total: u64,
    /// What may still be taken now.
    pub available: u64,
}

impl DeviceMemory {
    /// `available` bytes of `total`.
    pub fn new(total: u64, available: u64) -> Self {
        Self { total, available }
    }
}

/// Kinds of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// A GPU of Apple's.
    Metal,
    /// A GPU of NVIDIA's.
    Cuda,
    /// Another machine.
    Remote,
}

/// How a model is loaded. What was `Auto` in the spec has been decided.
#[derive(Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The largest number of tokens that prompt and answer have together; the KV cache is bounded by it.
    pub context_length: usize,
    /// What dense weights and activations are computed in; `Auto` leaves it to the backend.
    pub dtype: ComputeDtype,
    /// What keys and values are kept in; `Auto` leaves it to the backend.
    pub kv_cache: KvCacheType,
    /// The device by its id; without one, the backend's first.
    pub device: Option<String>,
    /// Who hears of [`crate::ProgressEvent::Loading`].
    pub progress: Option<Arc<dyn ProgressHandler>>,
    /// Looked at between tensors; when cancelled, the load ends with [`Error::Cancelled`].
    pub cancel: CancellationToken,
}

impl LoadOptions {
    /// A load with a context of `context_length` tokens.
    pub fn new(context_length: usize) -> Self {
        Self {
            context_length,
            dtype: ComputeDtype::Auto,
            kv_cache: KvCacheType::Auto,
            device: None,
            progress: None,
            cancel: CancellationToken::new(),
        }
    }

    /// Sets the compute dtype.
    pub fn with_dtype(mut self, dtype: ComputeDtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets what keys and values are kept in.
    pub fn with_kv_cache(mut self, kv_cache: KvCacheType) -> Self {
        self.kv_cache = kv_cache;
        self
    }

    /// Sets the device by its id.
    pub fn with_device(mut self, device: impl Into<String>) -> Self {
        self.device = Some(device.into());
        self
    }

    /// Sets who hears of progress.
    pub fn with_progress(mut self, progress: Arc<dyn ProgressHandler>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Sets the token that cancels the load.
    pub fn with_cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions")
            .field("context_length", &self.context_length)
            .field("dtype", &self.dtype)
            .field("kv_cache", &self.kv_cache)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// Everything a backend gets to load a model.
#[non_exhaustive]
pub struct ModelWeights {
    /// The description.
    pub info: Arc<ModelInfo>,
    /// The tensors, adapters already merged in where they are to be merged; `None` for a remote engine.
    pub tensors: Option<Arc<dyn TensorSource>>,
    /// Tokenizer, chat template and generation defaults.
    pub text: TextFiles,
    /// Adapters to run beside the weights, each with its weight; empty unless the backend said that it can. They are in
    /// the names and in the row order of the Hugging Face layout, whatever layout the base has; queries, keys and values, and
    /// gate and up, may be modules of their own where the base has one for all, and one where the base has several. The set
    /// is the model's own until [`LoadedModel::set_adapters`] replaces it.
    pub adapters: Vec<(Arc<LoraAdapter>, f32)>,
    /// The memory set aside for this model. Held as long as the model is.
    pub reservation: Option<Box<dyn Any + Send + Sync>>,
}

impl ModelWeights {
    /// Weights without unmerged adapters.
    pub fn new(info: Arc<ModelInfo>, tensors: Option<Arc<dyn TensorSource>>, text: TextFiles) -> Self {
        Self { info, tensors, text, adapters: Vec::new(), reservation: None }
    }

    /// Sets the adapters to run unmerged.
    pub fn with_adapters(mut self, adapters: Vec<(Arc<LoraAdapter>, f32)>) -> Self {
        self.adapters = adapters;
        self
    }

    /// Sets the reservation.
    pub fn with_reservation(mut self, reservation: Box<dyn Any + Send + Sync>) -> Self {
        self.reservation = Some(reservation);
        self
    }
}

impl fmt::Debug for ModelWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelWeights").field("model", &self.info.id).finish_non_exhaustive()
    }
}

/// Where a model's tokenizer, chat template and generation defaults are.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TextFiles {
    /// Files of a Hugging Face folder by name: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`,
    /// `generation_config.json`, `config.json`.
    pub files: BTreeMap<String, PathBuf>,
    /// Metadata of a GGUF file.
    pub gguf: Option<Arc<GgufMetadata>>,
}

impl TextFiles {
    /// Files of a Hugging Face folder.
    pub fn from_files(files: BTreeMap<String, PathBuf>) -> Self {
        Self { files, gguf: None }
    }

    /// Metadata of a GGUF file.
    pub fn from_gguf(gguf: Arc<GgufMetadata>) -> Self {
        Self { files: BTreeMap::new(), gguf: Some(gguf) }
    }
}

/// A model in memory. Dropping the last handle starts its unloading; [`LoadedModel::unload`] waits for it.
#[async_trait]
pub trait LoadedModel: Send + Sync {
    /// What was loaded, and how.
    fn info(&self) -> LoadedInfo;

    /// Starts a generation. It never blocks; what is wrong with the request is the stream's first item.
    fn generate(&self, r: GenerateRequest) -> Generation;

    /// The logits after the last token of the input: shape (vocab,), f32.
    ///
    /// # Errors
    /// [`Error::ContextLengthExceeded`], [`Error::ModelNotLoaded`], [`Error::GenerationFailed`].
    async fn logits(&self, r: LogitsRequest) -> Result<Vec<f32>>;

    /// Replaces the model's own adapters, without loading the base anew. It is in line with the requests: those made
    /// before keep the adapters that they started with, to their end. What sessions computed with the adapters replaced
    /// is forgotten, and computed anew when they go on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless a backend can; [`Error::AdapterMergeFailed`] that names the adapter and what of it the
    /// model cannot run, with nothing changed; [`Error::ModelNotLoaded`].
    async fn set_adapters(&self, a: AdapterSet) -> Result<()> {
        let _ = a;
        Err(Error::unsupported("set_adapters", "this model was loaded with its adapters merged; load another spec"))
    }

    /// Reads the tensors `names` anew from `tensors`, which `info` describes, and puts them in place of those that were
    /// loaded; the others stay as they are, and `tensors` must give them as the source of the load did. What the backend
    /// holds as one with them (queries, keys and values; gate and up) is read anew too. Afterwards the model computes as one
    /// that was loaded from `tensors`, to the bit.
    ///
    /// It is in line with the requests: those made before that use the model's own weights keep the weights that they
    /// started with, to their end. What sessions have computed is forgotten, and computed anew when they go on. All that is
    /// new is read before anything is replaced, so for that moment, and while requests made before still run, the tensors
    /// take memory twice. No other request goes on while they are read.
    ///
    /// # Errors
    /// With nothing changed: [`Error::Unsupported`] unless a backend can ([`Capabilities::replaces_tensors`]), for a
    /// description with which it would hold other parts of the model otherwise (another vocabulary, a head that is tied or
    /// untied), and while adapters are set that run beside the weights; [`Error::InvalidSpec`] for a name that is no tensor
    /// of the model; what reading a tensor gave; [`Error::ModelNotLoaded`], also for one that is unloaded meanwhile.
    async fn replace_tensors(
        &self,
        tensors: Arc<dyn TensorSource>,
        info: Arc<ModelInfo>,
        names: Vec<String>,
    ) -> Result<()> {
        let _ = (tensors, info, names);
        Err(Error::unsupported("replace_tensors", "this backend keeps weights as they were loaded; load another spec"))
    }

    /// Forgets a session and frees its KV cache, once a running generation of it has ended. The first poll asks for it:
    /// whoever cannot wait, in a `Drop`, polls once and lets go.
    ///
    /// # Errors
    /// [`Error::ModelNotLoaded`].
    async fn end_session(&self, s: SessionId) -> Result<()> {
        let _ = s;
        Ok(())
    }

    /// Gives the session `to` what the session `from` has computed; each goes on by itself. A running generation of
    /// `from` is waited for. What `to` had is forgotten; a session that has computed nothing is forked as such.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless the backend keeps sessions; [`Error::ModelNotLoaded`].
    async fn fork_session(&self, from: &SessionId, to: SessionId) -> Result<()> {
        let _ = to;
        Err(no_sessions(from))
    }

    /// What the session has computed with the model's own adapters of now: nothing, if it has not begun or was trimmed, or if
    /// these are replaced meanwhile. A running generation of it is waited for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless the backend keeps sessions; [`Error::ModelNotLoaded`].
    async fn export_session(&self, s: &SessionId) -> Result<SessionState> {
        Err(no_sessions(s))
    }

    /// Gives the session what [`LoadedModel::export_session`] gave, of the same model with the same adapters, which the
    /// model has now: the caller answers for that. What it had is forgotten; of adapters that are replaced meanwhile, so is
    /// what is given.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless the backend keeps sessions; [`Error::InvalidSpec`] if the state is not one of this
    /// model's; [`Error::ModelNotLoaded`].
    async fn import_session(&self, s: &SessionId, state: SessionState) -> Result<()> {
        let _ = state;
        Err(no_sessions(s))
    }

    /// Bytes that the model holds now, by part.
    fn memory(&self) -> MemoryReport;

    /// What was computed since the load.
    fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Frees what can be rebuilt. Returns the bytes freed.
    ///
    /// # Errors
    /// [`Error::ModelNotLoaded`].
    async fn trim(&self, level: TrimLevel) -> Result<u64> {
        let _ = level;
        Ok(0)
    }

    /// Gives the memory back, and returns when it is back. Generations end with [`Error::ModelNotLoaded`], and so does
    /// every later call but this one, which may be repeated.
    ///
    /// # Errors
    /// None that is expected; a backend that cannot give memory back says so.
    async fn unload(&self) -> Result<()>;
}

fn no_sessions(session: &SessionId) -> Error {
    Error::unsupported(
        format!("session `{}`", session.as_str()),
        "this backend keeps no KV cache between requests; send the whole chat",
    )
}

/// What was loaded, and how.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoadedInfo {
    /// The model's id.
    pub model: String,
    /// The backend's name.
    pub backend: String,
    /// The device.
    pub device: DeviceInfo,
    /// What dense weights are computed in.
    pub dtype: FloatType,
    /// The types that dense weights are held in, by the type that they are stored in; empty where the backend does not say.
    pub held_in: Vec<(FloatType, FloatType)>,
    /// Matrices that are read at a time at most, where tensors are replaced.
    pub reads_at_once: usize,
    /// Tokens that prompt and answer may have together.
    pub context_length: usize,
    /// Number of logits.
    pub vocab_size: usize,
    /// Whether the model brought a chat template, so that [`Input::Messages`] works.
    pub has_chat_template: bool,
    /// How long the backend took to load it.
    pub load_time: Duration,
}

impl LoadedInfo {
    /// What was loaded where.
    pub fn new(
        model: impl Into<String>,
        backend: impl Into<String>,
        device: DeviceInfo,
        dtype: FloatType,
        context_length: usize,
        vocab_size: usize,
    ) -> Self {
        Self {
            model: model.into(),
            backend: backend.into(),
            device,
            dtype,
            held_in: Vec::new(),
            reads_at_once: 1,
            context_length,
            vocab_size,
            has_chat_template: false,
            load_time: Duration::ZERO,
        }
    }

    /// Sets what dense weights are held in, by what they are stored in.
    pub fn with_held_in(mut self, held_in: Vec<(FloatType, FloatType)>) -> Self {
        self.held_in = held_in;
        self
    }

    /// Sets how many matrices are read at a time at most, where tensors are replaced; 1 otherwise.
    pub fn with_reads_at_once(mut self, reads_at_once: usize) -> Self {
        self.reads_at_once = reads_at_once;
        self
    }

    /// Sets whether there is a chat template.
    pub fn with_chat_template(mut self, has_chat_template: bool) -> Self {
        self.has_chat_template = has_chat_template;
        self
    }

    /// Sets how long the load took.
    pub fn with_load_time(mut self, load_time: Duration) -> Self {
        self.load_time = load_time;
        self
    }
}

/// A request for logits.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LogitsRequest {
    /// The prompt.
    pub input: Input,
    /// The adapters, as in [`GenerateRequest::adapters`].
    pub adapters: Option<AdapterSet>,
}

impl LogitsRequest {
    /// The logits after `input`.
    pub fn new(input: impl Into<Input>) -> Self {
        Self { input: input.into(), adapters: None }
    }

    /// Sets the adapters.
    pub fn with_adapters(mut self, adapters: AdapterSet) -> Self {
        self.adapters = Some(adapters);
        self
    }
}

/// What a model would take, in bytes, by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// Weights as they will be held, with what is merged into them.
    pub weights: u64,
    /// Adapters that run beside the weights.
    pub adapters: u64,
    /// Tokenizer and chat template.
    pub text: u64,
    /// The KV cache at its full context, for one generation.
    pub kv_cache: u64,
    /// Activations and scratch of one step.
    pub working: u64,
    /// What the backend's loading takes on top for a moment.
    pub load_peak: u64,
    /// What merging adapters takes on top meanwhile: their factors, and the largest sum that is made at a time.
    pub merge_peak: u64,
}

impl MemoryEstimate {
    /// An estimate of weights and KV cache, in bytes.
    pub fn new(weights: u64, kv_cache: u64) -> Self {
        Self { weights, kv_cache, ..Self::default() }
    }

    /// Sets the adapters beside the weights, in bytes.
    pub fn with_adapters(mut self, bytes: u64) -> Self {
        self.adapters = bytes;
        self
    }

    /// Sets tokenizer and chat template, in bytes.
    pub fn with_text(mut self, bytes: u64) -> Self {
        self.text = bytes;
        self
    }

    /// Sets activations and scratch, in bytes.
    pub fn with_working(mut self, bytes: u64) -> Self {
        self.working = bytes;
        self
    }

    /// Sets what loading takes on top, in bytes.
    pub fn with_load_peak(mut self, bytes: u64) -> Self {
        self.load_peak = bytes;
        self
    }

    /// Sets what merging takes on top, in bytes.
    pub fn with_merge_peak(mut self, bytes: u64) -> Self {
        self.merge_peak = bytes;
        self
    }

    /// What is there as long as the model is, whatever it computes: weights, adapters and text.
    pub fn held(&self) -> u64 {
        sum([self.weights, self.adapters, self.text])
    }

    /// The most it takes once it is loaded.
    pub fn running(&self) -> u64 {
        sum([self.held(), self.kv_cache, self.working])
    }

    /// The most it takes at one time: the load's peak and the KV cache are not there together.
    pub fn total(&self) -> u64 {
        self.running().max(sum([self.held(), self.load_peak, self.merge_peak]))
    }
}

/// Estimates of what does not exist may be beyond any number; they must not come out small.
fn sum<const N: usize>(parts: [u64; N]) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

/// What a model holds now, in bytes, by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemoryReport {
    /// Weights, with the adapters that run beside them. Of tensors that were replaced
    /// ([`LoadedModel::replace_tensors`]) and with which requests made before still run, it may count only those that the
    /// replacement right behind these requests took away: what later replacements took away too is then missing, until
    /// these requests end.
    pub weights: u64,
    /// KV caches.
    pub kv_cache: u64,
}

impl MemoryReport {
    /// A report of weights and KV caches, in bytes.
    pub fn new(weights: u64, kv_cache: u64) -> Self {
        Self { weights, kv_cache }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache)
    }
}

/// What was computed since a model was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Forward steps: prefill chunks and decoded tokens.
    pub forward_steps: u64,
    /// Tokens in them.
    pub forward_tokens: u64,
}

impl Counters {
    /// Counts of steps and of the tokens in them.
    pub fn new(forward_steps: u64, forward_tokens: u64) -> Self {
        Self { forward_steps, forward_tokens }
    }
}

/// How much a model is to free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrimLevel {
    /// Caches that cost little to rebuild.
    Caches,
    /// Also the KV caches of idle sessions, which are rebuilt from their tokens.
    Sessions,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_counts_the_larger_of_load_peak_and_running() {
        let estimate = MemoryEstimate::new(100, 20).with_working(5).with_load_peak(10);
        assert_eq!(estimate.total(), 125);
        assert_eq!(estimate.with_load_peak(40).total(), 140);
        let estimate = estimate.with_adapters(7).with_text(3).with_merge_peak(30);
        assert_eq!((estimate.held(), estimate.running(), estimate.total()), (110, 135, 150));
        assert_eq!(MemoryEstimate::new(u64::MAX, 1).total(), u64::MAX);
    }
}
