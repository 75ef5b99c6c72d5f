//! The one error type of the contract.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use crate::DecimalBytes;

/// What every fallible call of the contract returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause kept inside an [`Error`]. Shared, so that every caller who waited for one load gets the error.
pub type Cause = Arc<dyn std::error::Error + Send + Sync + 'static>;

/// Why a call failed. Messages name the file or ref, what was expected, what was found, and the fix; never a secret.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A spec, ref or request that cannot mean anything.
    #[error("invalid {field}: {reason}")]
    InvalidSpec {
        /// The field or the text that is wrong.
        field: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// A backend name or source scheme that no plugin has.
    #[error("{}", not_registered(kind, name, available, hint.as_deref()))]
    NotRegistered {
        /// What was looked for: "backend", "model source" or "adapter source".
        kind: &'static str,
        /// The name or scheme that was asked for.
        name: String,
        /// The names that are registered.
        available: Vec<String>,
        /// How to get it, where that is known (a cargo feature).
        hint: Option<String>,
    },
    /// Two plugins claim one name.
    #[error(
        "two plugins provide the {kind} `{name}`: {first} and {second}; remove one, or give one of them explicitly to the registry"
    )]
    PluginConflict {
        /// The name space: "backend", "model source" or "adapter source".
        kind: &'static str,
        /// The name that both claim.
        name: String,
        /// The crate that had it.
        first: String,
        /// The crate that claims it too.
        second: String,
    },
    /// A backend that cannot run on this machine.
    #[error("backend `{backend}` is not available: {reason}")]
    BackendUnavailable {
        /// The backend's name.
        backend: String,
        /// Why, and what would help.
        reason: String,
    },
    /// Every registered backend was passed over.
    #[error("no backend can run `{model}`: {}", if reasons.is_empty() { "none is registered; enable a cargo feature such as `candle`, or register one".to_owned() } else { reasons.join("; ") })]
    NoBackend {
        /// The model's id.
        model: String,
        /// One line per candidate: its name and why it was passed over.
        reasons: Vec<String>,
    },
    /// Nothing is at the place a ref names.
    #[error("{what} not found: {reason}")]
    NotFound {
        /// The ref, file or folder.
        what: String,
        /// Where was looked, and what would help.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done: "open", "read", "write", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: Arc<std::io::Error>,
    },
    /// A transfer that did not finish.
    #[error("download of {what} failed: {reason}")]
    DownloadFailed {
        /// The ref and file.
        what: String,
        /// What happened.
        reason: String,
        /// Whether trying again may help.
        retryable: bool,
        /// The underlying error.
        source: Option<Cause>,
    },
    /// Bytes that are not the ones promised.
    #[error("{what} is not what its source promised: expected {expected}, found {found}")]
    IntegrityFailed {
        /// The ref and file.
        what: String,
        /// The expected digest or size.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A model whose weights or files could not be loaded.
    #[error("loading `{model}` failed: {reason}")]
    LoadFailed {
        /// The model's id, or the file.
        model: String,
        /// What was expected and found, and the fix.
        reason: String,
        /// The underlying error.
        source: Option<Cause>,
    },
    /// Less memory than the load needs. Made by [`Error::insufficient_memory`].
    #[non_exhaustive]
    #[error("not enough memory: {}{}", short(*required, *available), hint.as_ref().map(|h| format!("; {h}")).unwrap_or_default())]
    InsufficientMemory {
        /// Bytes needed.
        required: u64,
        /// Bytes that may be taken.
        available: u64,
        /// The longest context that would fit, in tokens, where a shorter one would.
        largest_context: Option<usize>,
        /// What limits it, and what would help.
        hint: Option<String>,
    },
    /// A device's allocator that said no.
    #[error("{device} is out of memory: {reason}; unload other models, or load this one with a shorter context")]
    OutOfMemory {
        /// The device's id.
        device: String,
        /// What was being done, and what the allocator said.
        reason: String,
    },
    /// Less disk space than the transfer needs. Made by [`Error::insufficient_storage`].
    #[non_exhaustive]
    #[error("not enough disk space: {}", short(*required, *available))]
    InsufficientStorage {
        /// Bytes needed.
        required: u64,
        /// Bytes free.
        available: u64,
    },
    /// The model was unloaded, or never loaded.
    #[error("model `{model}` is not loaded; load it again")]
    ModelNotLoaded {
        /// The model's id.
        model: String,
    },
    /// The call cannot be made while that model loads.
    #[error("model `{model}` is being loaded; wait for that load to finish")]
    LoadInProgress {
        /// The model's id.
        model: String,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Anything wrong with an adapter: it cannot be had, is broken, does not fit, or uses what is not supported.
    #[error("adapter {adapter} cannot be used: {reason}")]
    AdapterMergeFailed {
        /// The adapter's ref.
        adapter: String,
        /// The defect: the tensor or field, what was expected and what was found.
        reason: String,
        /// The underlying error.
        source: Option<Cause>,
    },
    /// A model format, architecture or config value that no reader understands.
    #[error("{model} has an unsupported format: {reason}")]
    UnsupportedModelFormat {
        /// The ref or file.
        model: String,
        /// What was found, and what is supported.
        reason: String,
    },
    /// A prompt longer than the context.
    #[error(
        "the prompt has {prompt_tokens} tokens, but the context holds {context_length}; shorten the prompt or load the model with a larger context length"
    )]
    ContextLengthExceeded {
        /// Tokens in the prompt.
        prompt_tokens: usize,
        /// Tokens the context holds.
        context_length: usize,
    },
    /// A generation that broke.
    #[error("generation failed: {reason}")]
    GenerationFailed {
        /// What happened.
        reason: String,
        /// The underlying error.
        source: Option<Cause>,
    },
    /// A call that this plugin does not offer.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// The call or feature.
        what: String,
        /// Why, and what to use instead.
        reason: String,
    },
    /// The network is needed but the caller is offline.
    #[error("{what} is not on this machine and the network may not be used; go online once, or give a local path")]
    Offline {
        /// The ref.
        what: String,
    },
    /// The source wants other credentials.
    #[error("access to {what} was refused: {reason}")]
    Unauthorized {
        /// The ref.
        what: String,
        /// What to do: which token, which licence to accept.
        reason: String,
    },
    /// What the application does not let the engine fetch or use.
    #[error("the application's policy does not allow {what}: {reason}")]
    NotAllowed {
        /// The ref, file or host.
        what: String,
        /// The rule, what it allows, and what was found.
        reason: String,
    },
    /// The source asks to slow down.
    #[error("{what} is rate limited{}", retry_after.map(|d| format!("; try again in {} s", d.as_secs())).unwrap_or_default())]
    RateLimited {
        /// The ref or host.
        what: String,
        /// When it may be tried again.
        retry_after: Option<Duration>,
    },
}

/// How much is required, and how much there is: in bytes where it would look like enough else.
fn short(required: u64, available: u64) -> String {
    let shown = [required, available].map(|bytes| DecimalBytes(bytes).to_string());
    let [required, available] =
        if shown[0] == shown[1] { [required, available].map(|n| format!("{n} B")) } else { shown };
    format!("{required} required, {available} available")
}

fn not_registered(kind: &str, name: &str, available: &[String], hint: Option<&str>) -> String {
    let have = if available.is_empty() {
        format!("no {kind} is registered")
    } else {
        format!("registered: {}", available.join(", "))
    };
    let hint = hint.map(|h| format!("; {h}")).unwrap_or_default();
    format!("no {kind} named `{name}` ({have}{hint})")
}

impl Error {
    /// A stable, machine-readable name of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidSpec { .. } => "invalid_spec",
            Self::NotRegistered { .. } => "not_registered",
            Self::PluginConflict { .. } => "plugin_conflict",
            Self::BackendUnavailable { .. } => "backend_unavailable",
            Self::NoBackend { .. } => "no_backend",
            Self::NotFound { .. } => "not_found",
            Self::Io { .. } => "io",
            Self::DownloadFailed { .. } => "download_failed",
            Self::IntegrityFailed { .. } => "integrity_failed",
            Self::LoadFailed { .. } => "load_failed",
            Self::InsufficientMemory { .. } => "insufficient_memory",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::InsufficientStorage { .. } => "insufficient_storage",
            Self::ModelNotLoaded { .. } => "model_not_loaded",
            Self::LoadInProgress { .. } => "load_in_progress",
            Self::Cancelled => "cancelled",
            Self::AdapterMergeFailed { .. } => "adapter_merge_failed",
            Self::UnsupportedModelFormat { .. } => "unsupported_model_format",
            Self::ContextLengthExceeded { .. } => "context_length_exceeded",
            Self::GenerationFailed { .. } => "generation_failed",
            Self::Unsupported { .. } => "unsupported",
            Self::Offline { .. } => "offline",
            Self::Unauthorized { .. } => "unauthorized",
            Self::NotAllowed { .. } => "not_allowed",
            Self::RateLimited { .. } => "rate_limited",
        }
    }

    /// Whether the same call may succeed later without a change by the caller. An adapter's trouble is as retryable
    /// as its cause.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::DownloadFailed { retryable, .. } => *retryable,
            Self::RateLimited { .. }
            | Self::LoadInProgress { .. }
            | Self::InsufficientMemory { .. }
            | Self::OutOfMemory { .. }
            | Self::InsufficientStorage { .. } => true,
            Self::AdapterMergeFailed { source: Some(cause), .. } => {
                cause.downcast_ref::<Error>().is_some_and(Error::is_retryable)
            }
            _ => false,
        }
    }

    /// Whether memory was short: [`Error::InsufficientMemory`] or [`Error::OutOfMemory`], also within an adapter's trouble.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::InsufficientMemory { .. } | Self::OutOfMemory { .. } => true,
            Self::AdapterMergeFailed { source: Some(cause), .. } => {
                cause.downcast_ref::<Error>().is_some_and(Error::is_out_of_memory)
            }
            _ => false,
        }
    }

    /// [`Error::InvalidSpec`].
    pub fn invalid_spec(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidSpec { field: field.into(), reason: reason.into() }
    }

    /// [`Error::NotFound`].
    pub fn not_found(what: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self::NotFound { what: what.to_string(), reason: reason.into() }
    }

    /// [`Error::Io`].
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source: Arc::new(source) }
    }

    /// [`Error::LoadFailed`] without a cause.
    pub fn load(model: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self::LoadFailed { model: model.to_string(), reason: reason.into(), source: None }
    }

    /// [`Error::UnsupportedModelFormat`].
    pub fn unsupported_format(model: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self::UnsupportedModelFormat { model: model.to_string(), reason: reason.into() }
    }

    /// [`Error::AdapterMergeFailed`] without a cause.
    pub fn adapter(adapter: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self::AdapterMergeFailed { adapter: adapter.to_string(), reason: reason.into(), source: None }
    }

    /// Turns any error met while getting or reading an adapter into [`Error::AdapterMergeFailed`], with itself as the
    /// cause. An error that is one already, and [`Error::Cancelled`], stay as they are.
    pub fn into_adapter(self, adapter: impl fmt::Display) -> Self {
        match self {
            Self::AdapterMergeFailed { .. } | Self::Cancelled => self,
            other => Self::AdapterMergeFailed {
                adapter: adapter.to_string(),
                reason: other.to_string(),
                source: Some(Arc::new(other)),
            },
        }
    }

    /// [`Error::NotAllowed`].
    pub fn not_allowed(what: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self::NotAllowed { what: what.to_string(), reason: reason.into() }
    }

    /// [`Error::GenerationFailed`] without a cause.
    pub fn generation(reason: impl Into<String>) -> Self {
        Self::GenerationFailed { reason: reason.into(), source: None }
    }

    /// [`Error::InsufficientMemory`], in bytes.
    pub fn insufficient_memory(required: u64, available: u64) -> Self {
        Self::InsufficientMemory { required, available, largest_context: None, hint: None }
    }

    /// [`Error::OutOfMemory`].
    pub fn out_of_memory(device: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::OutOfMemory { device: device.into(), reason: reason.into() }
    }

    /// Says what limits the memory and what would help, of [`Error::InsufficientMemory`]; any other error stays as it is.
    pub fn with_memory_hint(mut self, text: impl Into<String>) -> Self {
        if let Self::InsufficientMemory { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// Says which context would fit, in tokens, of [`Error::InsufficientMemory`]; any other error stays as it is.
    pub fn with_largest_context(mut self, tokens: Option<usize>) -> Self {
        if let Self::InsufficientMemory { largest_context, .. } = &mut self {
            *largest_context = tokens;
        }
        self
    }

    /// [`Error::InsufficientStorage`], in bytes.
    pub fn insufficient_storage(required: u64, available: u64) -> Self {
        Self::InsufficientStorage { required, available }
    }

    /// [`Error::BackendUnavailable`].
    pub fn backend_unavailable(backend: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::BackendUnavailable { backend: backend.into(), reason: reason.into() }
    }

    /// [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn an_adapter_error_keeps_its_cause_and_whether_it_is_retryable() {
        let cause = Error::DownloadFailed {
            what: "hf:a/b".into(),
            reason: "connection reset".into(),
            retryable: true,
            source: None,
        };
        let error = cause.into_adapter("hf:a/b");
        assert_eq!(error.code(), "adapter_merge_failed");
        assert!(error.is_retryable());
        assert!(error.source().unwrap().to_string().contains("connection reset"));
        assert!(!Error::adapter("x", "broken").is_retryable());
    }

    #[test]
    fn memory_that_was_short_is_told_with_what_would_help() {
        let error = Error::insufficient_memory(9, 5).with_memory_hint("a context of 512 tokens would fit");
        let error = error.with_largest_context(Some(512));
        assert!(matches!(error, Error::InsufficientMemory { largest_context: Some(512), .. }));
        assert_eq!(
            error.to_string(),
            "not enough memory: 9 B required, 5 B available; a context of 512 tokens would fit"
        );
        assert!(error.is_out_of_memory() && error.into_adapter("a").is_out_of_memory());
        assert!(Error::out_of_memory("cuda:0", "x").is_out_of_memory());
        assert!(!Error::Cancelled.is_out_of_memory() && !Error::adapter("a", "b").is_out_of_memory());
    }

    #[test]
    fn what_is_short_is_told_in_units_in_which_it_is_less() {
        let shown = |required, available| Error::insufficient_memory(required, available).to_string();
        assert_eq!(shown(4_200_000_000, 1_100_000), "not enough memory: 4.20 GB required, 1.1 MB available");
        assert_eq!(
            shown(4_200_000_001, 4_200_000_000),
            "not enough memory: 4200000001 B required, 4200000000 B available"
        );
        let disk = Error::insufficient_storage(2_500_000, 1_000).to_string();
        assert_eq!(disk, "not enough disk space: 2.5 MB required, 1.0 kB available");
    }

    #[test]
    fn an_unknown_name_lists_what_there_is_and_the_feature() {
        let error = Error::NotRegistered {
            kind: "backend",
            name: "mlx".into(),
            available: vec!["candle".into()],
            hint: Some("enable the cargo feature `mlx`".into()),
        };
        assert_eq!(error.to_string(), "no backend named `mlx` (registered: candle; enable the cargo feature `mlx`)");
    }
}
