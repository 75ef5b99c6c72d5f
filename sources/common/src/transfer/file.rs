//! One file, from nothing to published.

use std::{path::PathBuf, sync::Arc};

use llm_local_core::{Digest, Error, Result};

use super::{
    context::{FileContext, blocking, untrusted},
    download::{self, download},
    flush::Flush,
    plan::local,
    small::{self, SMALL},
};
use crate::{
    disk::{FileKey, FileLock, Hasher, Partial, Target, digest_file, link, publish},
    store::Came,
};

/// Content that has to come, and where it is wanted: once, unless several files of the call have the same content.
pub(super) struct Item {
    pub(super) key: FileKey,
    /// At least one. All have one blob.
    pub(super) spots: Vec<Spot>,
    /// Where another file of the call has it.
    pub(super) twin: Option<PathBuf>,
}

/// A file of the call.
pub(super) struct Spot {
    pub(super) file: Arc<FileContext>,
    pub(super) target: Target,
}

/// Content that is here.
pub(super) struct Fetched {
    /// The path to use, for each spot.
    pub(super) paths: Vec<PathBuf>,
    /// Its digest, where none was promised.
    pub(super) computed: Option<Digest>,
    /// How it came; `None` if it is its owner's.
    pub(super) came: Option<Came>,
}

/// Makes the content of `item` present: fetched under its lock, verified, published, linked.
///
/// # Errors
/// What went wrong for good; [`Error::Cancelled`]. Nothing runs on then, and what came of a large file stays in its
/// partial unless it was proved wrong.
pub(super) async fn fetch_file(item: &Item) -> Result<Fetched> {
    let (lock, there) = lock(item).await?;
    let brought = match there {
        true => Brought::There,
        false if item.is_small() => small::bring(item, lock).await?,
        false => bring(item, lock).await?,
    };
    item.done();
    let published = || item.spots.iter().map(|spot| spot.target.path().to_owned()).collect();
    Ok(match brought {
        Brought::There => Fetched { paths: published(), computed: None, came: Some(Came::Linked) },
        Brought::Local(path) => Fetched { paths: vec![path; item.spots.len()], computed: None, came: None },
        Brought::Published(digest) => {
            let computed = item.file().entry().digest.is_none().then_some(digest);
            Fetched { paths: published(), computed, came: Some(Came::Fetched) }
        }
    })
}

/// How content came to be here.
pub(super) enum Brought {
    /// Whoever had the lock before has brought it, or only links were missing.
    There,
    /// It is a file of this machine, and used where it lies.
    Local(PathBuf),
    /// It was fetched, verified and published.
    Published(Digest),
}

/// The lock of the content, and whether the content is there: then links that were missing are made, too.
async fn lock(item: &Item) -> Result<(FileLock, bool)> {
    let file = item.file();
    let path = item.key.lock(&file.call.root);
    let link = {
        let (call, targets, twin) = (file.call.clone(), item.targets(), item.twin.clone());
        let size = file.entry().size;
        move || link(&targets, size, twin.as_deref(), &call.folders)
    };
    // Most locks are free, and of many small files each step counts.
    let free = {
        let (path, link) = (path.clone(), link.clone());
        blocking(move || FileLock::try_acquire(&path)?.map(|lock| Ok((lock, link()?))).transpose()).await?
    };
    if let Some(locked) = free {
        return Ok(locked);
    }
    let waiting = |reason| {
        if let Some(meter) = &file.meter {
            meter.waiting(reason);
        }
    };
    let lock = FileLock::acquire_apart(&path, &**file.network().timer(), file.stop(), waiting).await?;
    blocking(move || Ok((lock, link()?))).await
}

/// Brings a large file, by way of a partial.
async fn bring(item: &Item, lock: FileLock) -> Result<Brought> {
    let file = item.file();
    let (root, key, size) = (file.call.root.clone(), item.key.clone(), file.entry().size);
    let segment_bytes = file.call.config.segment_bytes;
    let partial = blocking(move || Partial::open(&root, &key, size, lock, segment_bytes)).await?;
    // Without a digest each write is on the disk before it counts.
    let flush = item.key.has_digest().then(|| file.flush.get_or_init(|| Flush::new(partial.path())));
    let verified = verified(file, &partial).await;
    // Whatever came of it, nobody has the partial open once this is over.
    if let Some(flush) = flush {
        flush.ended().await;
    }
    let digest = match verified? {
        Verified::Digest(digest) => digest,
        Verified::Local(path) => {
            let path = local(file.manifest(), &file.entry().path, size, path)?;
            blocking(|| partial.remove()).await?;
            return Ok(Brought::Local(path));
        }
    };
    if file.stop().is_cancelled() {
        return Err(Error::Cancelled);
    }
    let (call, job, index, targets) = (file.call.clone(), file.job, file.index, item.targets());
    blocking(move || {
        let (manifest, store) = (&call.jobs[job].manifest, &call.store);
        let trusted = store.trusted(manifest, &manifest.files[index].path)?;
        let comparable = match &trusted {
            Some(trusted) if !trusted.is_comparable(&digest) => digest_file(partial.path(), Some(&trusted.digest))?,
            _ => digest,
        };
        if let Err(error) = untrusted(store, manifest, trusted.as_ref(), comparable) {
            if let Err(left) = partial.remove() {
                tracing::warn!(error = %left, "what was refused is still there");
            }
            return Err(error);
        }
        publish(partial, &targets, &call.folders)
    })
    .await?;
    Ok(Brought::Published(digest))
}

impl Item {
    /// The file that it is fetched as.
    pub(super) fn file(&self) -> &Arc<FileContext> {
        &self.spots[0].file
    }

    /// Whether it comes in one request and is written in one step.
    pub(super) fn is_small(&self) -> bool {
        let file = self.file();
        let request = file.call.config.segment_bytes.unwrap_or(SMALL);
        file.entry().size <= request.min(SMALL)
    }

    pub(super) fn targets(&self) -> Vec<Target> {
        self.spots.iter().map(|spot| spot.target.clone()).collect()
    }

    fn done(&self) {
        for meter in self.spots.iter().filter_map(|spot| spot.file.meter.as_ref()) {
            meter.done();
        }
    }
}

enum Verified {
    Digest(Digest),
    Local(PathBuf),
}

/// Fetches what `partial` lacks and verifies it. Content that is not what was promised is forgotten and fetched once
/// more: what was there from an earlier run, or came through a bad proxy, may be to blame. No thread reads it any more
/// once this has ended.
async fn verified(file: &Arc<FileContext>, partial: &Partial) -> Result<Verified> {
    let expected = file.entry().digest;
    let mut again = false;
    loop {
        file.recount(partial.done_bytes());
        let mut hasher = Hasher::start(partial, expected.as_ref())?;
        let came = match download(file, partial).await {
            Ok(download::Came::Partial) => file.unless_stopped(hasher.digest()).await.flatten().map(Verified::Digest),
            Ok(download::Came::Local(path)) => Ok(Verified::Local(path)),
            Err(error) => Err(error),
        };
        hasher.end().await;
        let found = match came? {
            Verified::Digest(found) if expected.is_some_and(|expected| expected != found) => found,
            verified => return Ok(verified),
        };
        let partial = partial.clone();
        if again {
            blocking(|| partial.remove()).await?;
            return Err(file.wrong_digest(found));
        }
        file.once_more(found);
        again = true;
        blocking(move || partial.restart(None)).await?;
    }
}
