//! Progress: what an application hears while a spec becomes a loaded model.

use std::time::Duration;

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
    /// Files are being fetched: how far all of them together are.
    Download(DownloadProgress),
    /// Files are being fetched: how far one of them is. The last one of a file has all its bytes, and comes once it is
    /// verified and in place.
    File(FileProgress),
    /// Somebody else, another process perhaps, is fetching this file; it is waited for.
    #[non_exhaustive]
    Waiting {
        /// The file and its ref.
        what: String,
        /// Who is waited for.
        reason: String,
    },
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

    /// The fetching of `what` waits, for `reason`.
    pub fn waiting(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Waiting { what: what.into(), reason: reason.into() }
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
    /// The file being fetched, if one is; of several, the one whose bytes came last.
    pub current_file: Option<String>,
    /// How fast bytes come, over the last seconds; `None` before that can be said.
    pub bytes_per_second: Option<f64>,
}

impl DownloadProgress {
    /// `completed_bytes` of `total_bytes`. The fraction stays below 1.0 until [`DownloadProgress::finished`].
    pub fn new(completed_bytes: u64, total_bytes: u64) -> Self {
        // The largest number below 1.0 that a reader would still print as 100 % is not wanted either.
        let fraction = if total_bytes == 0 { 0.0 } else { completed_bytes as f64 / total_bytes as f64 };
        Self { fraction: fraction.min(0.999), completed_bytes, total_bytes, current_file: None, bytes_per_second: None }
    }

    /// Everything is verified and in place.
    pub fn finished(total_bytes: u64) -> Self {
        Self { fraction: 1.0, completed_bytes: total_bytes, total_bytes, current_file: None, bytes_per_second: None }
    }

    /// Sets the file being fetched.
    pub fn with_current_file(mut self, file: impl Into<String>) -> Self {
        self.current_file = Some(file.into());
        self
    }

    /// Sets how fast bytes come.
    pub fn with_speed(mut self, bytes_per_second: f64) -> Self {
        self.bytes_per_second = Some(bytes_per_second);
        self
    }

    /// How long the rest takes at the present speed.
    pub fn remaining(&self) -> Option<Duration> {
        let rest = self.total_bytes.saturating_sub(self.completed_bytes) as f64;
        Duration::try_from_secs_f64(rest / self.bytes_per_second?).ok()
    }
}

/// How far the fetching of one file is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileProgress {
    /// The ref it belongs to.
    pub reference: ArtifactRef,
    /// Its path in the manifest.
    pub path: String,
    /// Bytes that are here, verified only once they are all.
    pub completed_bytes: u64,
    /// Its size in bytes.
    pub total_bytes: u64,
}

impl FileProgress {
    /// `completed_bytes` of `total_bytes` of the file at `path` of `reference` are here.
    pub fn new(reference: ArtifactRef, path: impl Into<String>, completed_bytes: u64, total_bytes: u64) -> Self {
        Self { reference, path: path.into(), completed_bytes, total_bytes }
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

    #[test]
    fn what_remains_follows_from_the_speed() {
        let progress = DownloadProgress::new(4, 10);
        assert_eq!(progress.remaining(), None);
        assert_eq!(progress.clone().with_speed(2.0).remaining(), Some(Duration::from_secs(3)));
        assert_eq!(progress.with_speed(0.0).remaining(), None);
    }
}
