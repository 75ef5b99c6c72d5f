//! What a backend writes.

use std::{any::Any, collections::BTreeMap, fmt, sync::Arc};

use llm_local_core::{
    AdapterSet, CancellationToken, Error, LoadedInfo, ModelInfo, Result, SessionState, SessionTensor, TensorSource,
    TrimLevel,
};

use crate::text::TextPipeline;

/// A model that lives on its worker's thread. It need not be `Send`.
pub trait StepModel: 'static {
    /// The KV cache of one sequence.
    type Cache: 'static;

    /// A set of adapters that it can compute with, beside its weights. [`std::convert::Infallible`] where there is none.
    type Adapters: 'static;

    /// An empty cache for a sequence that begins with `prompt` tokens; it may grow beyond that.
    ///
    /// # Errors
    /// Whatever keeps the model from it; it ends the generation that the cache is for.
    fn new_cache(&mut self, prompt: usize) -> Result<Self::Cache>;

    /// Whether `cache` can go on as that of a sequence of `tokens` tokens. Asked before every step, with all tokens
    /// that the sequence has then: the whole prompt, and each token generated so far. If not, the cache is dropped and
    /// all of the sequence computed anew in a new one, which must hold what it was made for. A model whose computation
    /// of every token depends on the length of the sequence says no when that changes.
    fn holds(&self, cache: &Self::Cache, tokens: usize) -> bool {
        let _ = (cache, tokens);
        true
    }

    /// Computes `tokens` at the positions from `position` on, with `adapters` or as the base alone. Returns the logits
    /// after the last of them, shape (vocab,), f32. A cache is computed with one set of adapters from its first token on.
    ///
    /// # Errors
    /// Whatever went wrong; it ends the generation that the cache is for, and no other.
    fn forward(
        &mut self,
        cache: &mut Self::Cache,
        tokens: &[u32],
        position: usize,
        adapters: Option<&Self::Adapters>,
    ) -> Result<Vec<f32>>;

    /// Whether it can run adapters beside its weights; if so, the two methods below are there.
    fn runs_adapters(&self) -> bool {
        false
    }

    /// Makes `set`, which is not empty, ready to compute with. The base stays as it is: other sets may be in use.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] that names the adapter and what of it cannot be run; [`Error::Unsupported`] unless
    /// the model runs adapters.
    fn prepare_adapters(&mut self, set: &AdapterSet) -> Result<Self::Adapters> {
        let _ = set;
        Err(Error::unsupported("adapters beside the weights", "this model runs none; merge them into its weights"))
    }

    /// Bytes that `adapters` take beside the base.
    fn adapter_bytes(&self, adapters: &Self::Adapters) -> u64 {
        let _ = adapters;
        0
    }

    /// Whether tensors of the base can be replaced; if so, the method below is there.
    fn replaces_tensors(&self) -> bool {
        false
    }

    /// Makes [`NewTensors::names`] of the base anew, and then replaces them at once. Returns the base as it was, in the form
    /// of a set of adapters: what still runs goes on with that as if it were the base. Its
    /// [bytes](StepModel::adapter_bytes) are those of the tensors that were replaced. Sets that were made ready before go
    /// on with the base that they were made for.
    ///
    /// # Errors
    /// As [`LoadedModel::replace_tensors`](llm_local_core::LoadedModel::replace_tensors), with nothing changed;
    /// [`Error::Cancelled`] if [`NewTensors::cancel`] is.
    fn replace_tensors(&mut self, new: &NewTensors) -> Result<Self::Adapters> {
        let _ = new;
        Err(Error::unsupported(
            "replace_tensors",
            "this model keeps its weights as they were loaded; load another spec",
        ))
    }

    /// Bytes that the base's weights take.
    fn weight_bytes(&self) -> u64;

    /// Bytes that `cache` takes when it holds `positions` tokens.
    fn cache_bytes(&self, cache: &Self::Cache, positions: usize) -> u64;

    /// Whether caches can be kept between requests; if so, the four methods below are there.
    fn keeps_sessions(&self) -> bool {
        false
    }

    /// Makes `cache` forget all but its first `tokens` tokens: at least one, and fewer than it has. Returns `false`,
    /// and has changed nothing, if it cannot: a window may have left behind what those tokens saw. The sequence is
    /// then computed anew.
    ///
    /// # Errors
    /// Whatever went wrong; the cache is not used again.
    fn truncate(&mut self, cache: &mut Self::Cache, tokens: usize) -> Result<bool> {
        let _ = (cache, tokens);
        Ok(false)
    }

    /// A cache of its own with the same content.
    ///
    /// # Errors
    /// Whatever went wrong; [`Error::Unsupported`] unless the model keeps sessions.
    fn copy_cache(&mut self, cache: &Self::Cache) -> Result<Self::Cache> {
        let _ = cache;
        Err(no_sessions())
    }

    /// The content of a cache as data: metadata with an entry `format`, and tensors.
    ///
    /// # Errors
    /// As [`StepModel::copy_cache`].
    fn export_cache(&mut self, cache: &Self::Cache) -> Result<(BTreeMap<String, String>, Vec<SessionTensor>)> {
        let _ = cache;
        Err(no_sessions())
    }

    /// A cache with the content that [`StepModel::export_cache`] gave. The state may come from a file: everything in it
    /// is checked.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that says what does not fit; else as [`StepModel::copy_cache`].
    fn import_cache(&mut self, state: &SessionState) -> Result<Self::Cache> {
        let _ = state;
        Err(no_sessions())
    }

    /// Frees what can be rebuilt, such as buffers that an allocator keeps. Returns the bytes freed.
    ///
    /// # Errors
    /// Whatever went wrong.
    fn trim(&mut self, level: TrimLevel) -> Result<u64> {
        let _ = level;
        Ok(0)
    }
}

fn no_sessions() -> Error {
    Error::unsupported("a session", "this model keeps no KV cache between requests; send the whole chat")
}

/// What [`LoadedModel::replace_tensors`](llm_local_core::LoadedModel::replace_tensors) was given.
pub struct NewTensors {
    /// Where they are read.
    pub tensors: Arc<dyn TensorSource>,
    /// The description of all that is in there.
    pub info: Arc<ModelInfo>,
    /// Those that are to be replaced.
    pub names: Vec<String>,
    /// Cancelled when the model is to be unloaded; looked at between tensors.
    pub cancel: CancellationToken,
}

impl fmt::Debug for NewTensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewTensors")
            .field("model", &self.info.id)
            .field("names", &self.names.len())
            .finish_non_exhaustive()
    }
}

/// What [`spawn`](super::spawn)'s closure builds on the worker's thread.
#[derive(Debug)]
pub struct Built<M> {
    /// The model.
    pub model: M,
    /// What was loaded. `load_time` and `has_chat_template` are filled in by the worker.
    pub info: LoadedInfo,
    /// Its text side.
    pub text: TextPipeline,
    /// Tokens of a prompt computed in one step; at least 1.
    pub prefill_chunk: usize,
    /// The adapters that it runs with where a request names none; empty for the base alone.
    pub adapters: AdapterSet,
    /// Dropped, on the worker's thread, after the model: the reservation.
    pub reservation: Option<Box<dyn Any + Send + Sync>>,
}
