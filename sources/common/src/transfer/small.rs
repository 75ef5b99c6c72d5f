//! A small file: in memory until it is verified, then written in one step.

use std::{path::PathBuf, sync::Arc};

use llm_local_core::{Digest, Error, Result};

use super::{
    answer::is_strong,
    body::{Body, Opening, open},
    bounds::{Answers, Restarts},
    context::{FileContext, blocking, untrusted},
    file::{Brought, Item},
    plan::local,
};
use crate::{
    disk::{FileKey, FileLock, digest_bytes, publish_bytes},
    network::{Attempts, Failure, Retry},
};

/// The most bytes that a small file has: little enough to be in memory and to come again after a crash.
pub(super) const SMALL: u64 = 512 << 10;
/// How many small files may be on their way for each connection: while some come, the disk has others to write.
pub(super) const PER_CONNECTION: usize = 4;
/// How many may be on their way at most, however many connections there are: each takes its bytes of memory.
pub(super) const MOST_AT_ONCE: usize = 32;

/// Brings a small file. What an earlier version left of it as a partial goes.
pub(super) async fn bring(item: &Item, lock: FileLock) -> Result<Brought> {
    let (file, mut again) = (item.file(), false);
    // Until the last byte is on the disk, whatever becomes of the call.
    let lock = Arc::new(lock);
    loop {
        let bytes = match bytes(file).await? {
            Came::Bytes(bytes) => bytes,
            Came::Local(path) => {
                let path = local(file.manifest(), &file.entry().path, file.entry().size, path)?;
                return Ok(Brought::Local(path));
            }
        };
        if file.stop().is_cancelled() {
            return Err(Error::Cancelled);
        }
        let (lock, call, expected) = (lock.clone(), file.call.clone(), file.entry().digest);
        let (key, targets) = (item.key.clone(), item.targets());
        let (job, index) = (file.job, file.index);
        let (right, found) = blocking(move || {
            let _lock = lock;
            let (manifest, store) = (&call.jobs[job].manifest, &call.store);
            let trusted = store.trusted(manifest, &manifest.files[index].path)?;
            let was = trusted.as_ref().map(|trusted| trusted.digest);
            let found = digest_bytes(&bytes, expected.or(was).as_ref())?;
            let right = expected.is_none_or(|expected| expected == found);
            if right {
                let comparable = match &trusted {
                    Some(trusted) if !trusted.is_comparable(&found) => digest_bytes(&bytes, was.as_ref())?,
                    _ => found,
                };
                untrusted(store, manifest, trusted.as_ref(), comparable)?;
                publish_bytes(&bytes, &call.root, &targets, &call.folders)?;
                forget_partial(&key, &call.root);
            }
            Ok((right, found))
        })
        .await?;
        if right {
            return Ok(Brought::Published(found));
        }
        if again {
            return Err(file.wrong_digest(found));
        }
        file.once_more(found);
        again = true;
    }
}

/// Removes the partial of a file that is published, if there is one. What cannot be removed does no harm.
fn forget_partial(key: &FileKey, root: &std::path::Path) {
    let folder = key.partial(root);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "an old download of a small file stays");
        }
        _ => {}
    }
}

enum Came {
    Bytes(Vec<u8>),
    Local(PathBuf),
}

/// All bytes of the file, unverified.
///
/// # Errors
/// What went wrong for good, or too often; [`Error::Cancelled`].
async fn bytes(file: &FileContext) -> Result<Came> {
    let size = file.entry().size;
    let mut coming =
        Coming { file, bytes: Vec::with_capacity(size as usize), etag: None, restarts: Restarts::default() };
    let (mut attempts, mut answers, mut most) = (Attempts::new(file.network()), Answers::default(), 0);
    file.recount(0);
    while coming.done() < size {
        let connection = file.connection().await?;
        let attempt = file.unless_stopped(coming.attempt()).await?;
        drop(connection);
        // Only more than ever before is progress, or a host that always cuts the same answer off would be asked for ever.
        let gained = coming.done().saturating_sub(most);
        most += gained;
        let counted = if coming.done() < size { answers.count(file, gained) } else { Ok(()) };
        match attempt {
            Ok(None) => counted?,
            Ok(Some(path)) => return Ok(Came::Local(path)),
            Err(failure) => {
                if gained > 0 {
                    attempts.progressed();
                }
                file.unless_stopped(attempts.next(failure)).await??;
                counted?;
            }
        }
    }
    Ok(Came::Bytes(coming.bytes))
}

/// A file on its way.
struct Coming<'a> {
    file: &'a FileContext,
    /// From its start, all of one version as far as the host says.
    bytes: Vec<u8>,
    /// What they came under.
    etag: Option<String>,
    restarts: Restarts,
}

impl Coming<'_> {
    fn done(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// One request for what is missing. A path if the file is on this machine.
    async fn attempt(&mut self) -> Result<Option<PathBuf>, Failure> {
        let (file, size) = (self.file, self.file.entry().size);
        if !self.can_join() {
            self.restart(None);
        }
        let mut body = match open(file, self.done()..size, self.etag.as_deref()).await? {
            Opening::Body(body) => body,
            Opening::Local(path) => return Ok(Some(path)),
            Opening::Changed(etag) => return self.changed(etag),
            Opening::Beyond => {
                self.restarts.beyond(file)?;
                self.restart(None);
                return Ok(None);
            }
        };
        let whole = body.range == (0..size);
        if whole {
            self.restart(body.etag.take());
        } else if self.done() == 0 {
            self.etag = body.etag.take();
        } else if body.etag.is_some() && body.etag != self.etag {
            return self.changed(body.etag);
        }
        let end = body.range.end;
        self.take(body).await?;
        match self.done() == size {
            true => Ok(None),
            false if self.can_join() && self.done() == end => Ok(None),
            false => Err(file.only_a_part()),
        }
    }

    /// Takes what comes. What came before a failure is kept.
    async fn take(&mut self, mut body: Body) -> Result<(), Failure> {
        let (file, start, end) = (self.file, self.done(), body.range.end);
        loop {
            let chunk = match body.next(file).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if self.done() == end => return Ok(()),
                Ok(None) => return Err(file.too_short(self.done() - start, end - start)),
                // All is here: how the connection ended does not matter.
                Err(failure) if self.done() == end && failure.retry != Retry::Never => return Ok(()),
                Err(failure) => return Err(failure),
            };
            if chunk.len() as u64 > end - self.done() {
                return Err(file.too_long(end));
            }
            self.bytes.extend_from_slice(&chunk);
            file.count(chunk.len() as u64);
        }
    }

    /// Whether something will tell that other bytes are of the same version: a digest in the end, or a strong ETag.
    fn can_join(&self) -> bool {
        self.file.entry().digest.is_some() || self.etag.as_deref().is_some_and(is_strong)
    }

    fn changed(&mut self, etag: Option<String>) -> Result<Option<PathBuf>, Failure> {
        self.restarts.changed(self.file)?;
        self.restart(etag);
        Ok(None)
    }

    fn restart(&mut self, etag: Option<String>) {
        if !self.bytes.is_empty() {
            self.bytes.clear();
            self.file.recount(0);
        }
        self.etag = etag;
    }
}

impl FileContext {
    /// The bytes that came twice have the digest `found`.
    pub(super) fn wrong_digest(&self, found: Digest) -> Error {
        let expected = self.entry().digest.map_or_else(|| "none".to_owned(), |digest| digest.to_string());
        Error::IntegrityFailed { what: self.what.clone(), expected, found: found.to_string() }
    }

    /// The bytes have the digest `found`, which is wrong, for the first time.
    pub(super) fn once_more(&self, found: Digest) {
        let expected = self.entry().digest.map_or_else(|| "none".to_owned(), |digest| digest.to_string());
        tracing::warn!(file = self.what, expected, %found, "the digest is wrong; fetching the file once more");
    }
}
