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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::network::{Network, NetworkConfig};

    /// Whether this process has the file open.
    fn is_open(path: &Path) -> bool {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok()).any(|open| open == path)
    }

    #[test]
    fn once_it_has_ended_the_file_is_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("data");
        std::fs::write(&path, vec![1; 8 << 20]).unwrap();
        let network = Network::new(NetworkConfig::new());
        let flushed = network.run(async move {
            let flush = Flush::new(&path);
            for _ in 0..20 {
                flush.written(EVERY - 1);
                flush.written(1);
                assert!(flush.state.lock().unwrap().running.is_some());
                flush.ended().await;
                assert!(!is_open(&path) && flush.state.lock().unwrap().running.is_none());
            }
            Ok(())
        });
        pollster::block_on(flushed).unwrap();
    }
}
