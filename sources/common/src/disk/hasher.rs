//! Digests that follow a partial as it grows.

use std::{
    fs::File,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use llm_local_core::{Digest, Error, Result};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use super::{Partial, partial::Disk, positioned::read_at};

/// Bytes read at once: few enough to stay in a core's cache between the read and the hash.
const BUFFER: usize = 256 << 10;

/// Computes the digest of a [`Partial`] while it is being written: a thread reads the bytes back from its start as far
/// as there is no gap, and begins again when [`Partial::restart`] does. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Hasher {
    disk: Arc<Disk>,
    orders: Arc<Orders>,
    answer: oneshot::Receiver<Result<Digest>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Orders {
    /// Nobody wants the digest any more.
    stop: AtomicBool,
    /// No more bytes will come: a gap is an error.
    finish: AtomicBool,
}

impl Hasher {
    /// Begins to hash `partial` by the kind of digest that `expected` is; by SHA-256 without one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a kind of digest that is not known here, and [`Error::Io`] if there is no thread to be had.
    pub(crate) fn start(partial: &Partial, expected: Option<&Digest>) -> Result<Self> {
        let disk = partial.disk().clone();
        // So that an unknown kind is an error now.
        State::new(expected, disk.size)?;
        let orders = Arc::new(Orders::default());
        let (sender, answer) = oneshot::channel();
        let work = {
            let (disk, orders, expected) = (disk.clone(), orders.clone(), expected.copied());
            move || {
                if let Some(result) = follow(&disk, &orders, expected.as_ref()).transpose() {
                    // Whoever asked may be gone.
                    let _ = sender.send(result);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("llm-local-hash".into())
            .spawn(work)
            .map_err(|e| Error::io("start a thread that hashes", &disk.path, e))?;
        Ok(Self { disk, orders, answer, thread: Some(thread) })
    }

    /// The digest, once every byte was hashed. To be called when all of them are there.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file, also if bytes are missing.
    pub(crate) async fn digest(&mut self) -> Result<Digest> {
        self.orders.finish.store(true, Ordering::Release);
        self.disk.wake();
        (&mut self.answer).await.unwrap_or_else(|_| {
            let lost = std::io::Error::other("the thread that hashes it ended early");
            Err(Error::io("hash", &self.disk.path, lost))
        })
    }

    /// Ends the thread and waits until it has: it reads at most one buffer more. Within a runtime of tokio's.
    pub(crate) async fn end(mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // It is the digest that a panic of it is told by.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    fn stop(&self) {
        self.orders.stop.store(true, Ordering::Release);
        self.disk.wake();
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Hashes what `disk` has and gets. `None` if nobody wants the digest any more.
fn follow(disk: &Disk, orders: &Orders, expected: Option<&Digest>) -> Result<Option<Digest>> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(disk.size).unwrap_or(BUFFER))];
    'restarted: loop {
        let (mut state, mut at) = (State::new(expected, disk.size)?, 0);
        let epoch = disk.progress().epoch;
        loop {
            let stop = || orders.stop.load(Ordering::Acquire);
            let finish = || orders.finish.load(Ordering::Acquire);
            // Also with every byte hashed: until somebody asks for the digest, all may begin again.
            let progress = disk.wait_while(|p| p.epoch == epoch && p.prefix == at && !stop() && !finish());
            let (now, prefix) = (progress.epoch, progress.prefix);
            drop(progress);
            if stop() {
                return Ok(None);
            }
            if now != epoch {
                continue 'restarted;
            }
            // Every byte was still the one of this epoch after it was read.
            if at == disk.size {
                return state.finish().map(Some);
            }
            let wanted = buffer.len().min(usize::try_from(prefix - at).unwrap_or(usize::MAX));
            let read = disk.read(&mut buffer[..wanted], at)?;
            if read == 0 {
                // A restart cuts the file before it fills it again; otherwise bytes that are done are not there.
                if disk.progress().epoch != epoch {
                    continue 'restarted;
                }
                let what = if wanted == 0 { "bytes are missing" } else { "the file was cut" };
                let missing = format!("{what}: {at} of {} bytes could be read", disk.size);
                return Err(Error::io(
                    "hash",
                    &disk.path,
                    std::io::Error::new(std::io::ErrorKind::UnexpectedEof, missing),
                ));
            }
            state.update(&buffer[..read]);
            at += read as u64;
        }
    }
}

/// The digest of the file at `path`, of the kind that `expected` is; SHA-256 without one. Blocks; reads all of it.
///
/// # Errors
/// [`Error::Io`] that names the file, and [`Error::Unsupported`] for a kind of digest that is not known here.
pub(crate) fn digest_file(path: &Path, expected: Option<&Digest>) -> Result<Digest> {
    let failed = |e| Error::io("read", path, e);
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let (mut state, mut at) = (State::new(expected, size)?, 0);
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = read_at(&file, &mut buffer, at).map_err(failed)?;
        if read == 0 {
            return state.finish();
        }
        state.update(&buffer[..read]);
        at += read as u64;
    }
}

/// The digest of `bytes`, all of a file, of the kind that `expected` is; SHA-256 without one.
///
/// # Errors
/// [`Error::Unsupported`] for a kind of digest that is not known here.
pub fn digest_bytes(bytes: &[u8], expected: Option<&Digest>) -> Result<Digest> {
    let mut state = State::new(expected, bytes.len() as u64)?;
    state.update(bytes);
    state.finish()
}

/// A digest on its way.
enum State {
    Sha256(Sha256),
    GitSha1(Sha1),
}

impl State {
    /// Of a file of `size` bytes.
    fn new(expected: Option<&Digest>, size: u64) -> Result<Self> {
        match expected {
            None | Some(Digest::Sha256(_)) => Ok(Self::Sha256(Sha256::new())),
            Some(Digest::GitSha1(_)) => Ok(Self::GitSha1(Sha1::new_with_prefix(format!("blob {size}\0")))),
            Some(other) => Err(Error::unsupported(
                format!("verifying the digest {other}"),
                "this version knows SHA-256 and git's SHA-1 only; update it",
            )),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::GitSha1(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> Result<Digest> {
        Ok(match self {
            Self::Sha256(hash) => Digest::Sha256(hash.finalize().into()),
            Self::GitSha1(hash) => Digest::GitSha1(hash.finalize().into()),
        })
    }
}

#[cfg(test)]
mod tests;
