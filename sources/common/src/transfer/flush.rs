//! Bytes on their way from the system's cache to the disk.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use tokio::task::JoinHandle;

/// Bytes after which the disk is set to work.
const EVERY: u64 = 64 << 20;

/// Has the disk begin with the bytes of a file while more come: publishing waits until it has all of them, and would wait
/// long if it began only then. It gives no guarantee, and what fails here fails in publishing again.
pub(super) struct Flush {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: u64,
    running: Option<JoinHandle<()>>,
}

impl Flush {
    /// Of the file at `path`.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), state: Mutex::default() }
    }

    /// `n` more bytes were written.
    pub(super) fn written(&self, n: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting += n;
        if state.waiting < EVERY || state.running.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        state.waiting = 0;
        let path = self.path.clone();
        // A handle of its own, so that an error is told to the one that publishing uses, too.
        state.running = Some(tokio::task::spawn_blocking(move || {
            let _ = File::open(path).and_then(|file| file.sync_data());
        }));
    }

    /// Waits until the disk is left alone, and the file is not open here any more.
    pub(super) async fn ended(&self) {
        let running = self.state.lock().unwrap_or_else(PoisonError::into_inner).running.take();
        if let Some(running) = running {
            // It fails only if it panics, which it does not, or if the runtime ends.
            let _ = running.await;
        }
    }
}
