//! Progress: what an application hears while a spec becomes a loaded model.

use crate::ArtifactRef;

/// Hears of progress. It is called on the thread that makes the progress and must return at once.
pub trait ProgressHandler: Send + Sync {
    /// One event. For one load: `Resolving` for each ref, then `Download`s for all of its files together, then
    /// `Loading`s, then `Loaded`. A caller whose model is loaded already, or is being loaded for another caller, hears
    /// `Loaded` alone. After an error or a cancel nothing more comes.
    fn on_progress(&self, event: &ProgressEvent);
}

impl<F: Fn(&ProgressEvent) + Send + Sync> ProgressHandler for F {
    fn on_progress(&self, event: &ProgressEvent) {
        self(event);
    }
}

const _: fn(&dyn ProgressHandler) = |_| {};

/// An event of [`ProgressHandler`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ProgressEvent {
    /// A ref is being resolved.
    #[non_exhaustive]
    Resolving {
        /// The ref.
        reference: ArtifactRef,
    },
    /// Files are being fetched.
    Download(DownloadProgress),
    /// Tensors are being read, merged and handed to the backend.
    #[non_exhaustive]
    Loading {
        /// Tensors done.
        done: usize,
        /// Tensors in all.
        total: usize,
    },
    /// The model is ready. The last event of a load.
    Loaded,
}

impl ProgressEvent {
    /// `reference` is being resolved.
    pub fn resolving(reference: ArtifactRef) -> Self {
        Self::Resolving { reference }
    }

    /// `done` of `total` tensors were read and handed to the backend.
    pub fn loading(done: usize, total: usize) -> Self {
        Self::Loading { done, total }
    }
}

/// How far the fetching of one plan is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DownloadProgress {
    /// From 0.0 to 1.0, never decreasing; 1.0 exactly once everything is verified and in place.
    pub fraction: f64,
    /// Bytes done.
    pub completed_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// The file being fetched, if one is.
    pub current_file: Option<String>,
}

impl DownloadProgress {
    /// `completed_bytes` of `total_bytes`. The fraction stays below 1.0 until [`DownloadProgress::finished`].
    pub fn new(completed_bytes: u64, total_bytes: u64) -> Self {
        // The largest number below 1.0 that a reader would still print as 100 % is not wanted either.
        let fraction = if total_bytes == 0 { 0.0 } else { completed_bytes as f64 / total_bytes as f64 };
        Self { fraction: fraction.min(0.999), completed_bytes, total_bytes, current_file: None }
    }

    /// Everything is verified and in place.
    pub fn finished(total_bytes: u64) -> Self {
        Self { fraction: 1.0, completed_bytes: total_bytes, total_bytes, current_file: None }
    }

    /// Sets the file being fetched.
    pub fn with_current_file(mut self, file: impl Into<String>) -> Self {
        self.current_file = Some(file.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finished_reaches_one() {
        assert!(DownloadProgress::new(10, 10).fraction < 1.0);
        assert_eq!(DownloadProgress::new(0, 0).fraction, 0.0);
        assert_eq!(DownloadProgress::finished(10).fraction, 1.0);
    }
}
