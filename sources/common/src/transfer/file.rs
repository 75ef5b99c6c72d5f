//! One file, from nothing to published.

use std::{path::PathBuf, sync::Arc};

use llm_local_core::{Digest, Error, Result};

use super::{
    context::{FileContext, blocking},
    download::{Came, download},
    flush::Flush,
    plan::local,
};
use crate::disk::{FileKey, FileLock, Hasher, Partial, Target, link, publish};

/// Content that has to come, and where it is wanted: once, unless several files of the call have the same content.
pub(super) struct Item {
    pub(super) key: FileKey,
    /// At least one. All have one blob.
    pub(super) spots: Vec<Spot>,
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
    /// Whether it came by this call.
    pub(super) fresh: bool,
}

/// Makes the content of `item` present: fetched under its lock, verified, published, linked.
///
/// # Errors
/// What went wrong for good; [`Error::Cancelled`]. Nothing runs on then, and what came stays in the partial unless it was
/// proved wrong.
pub(super) async fn fetch_file(item: &Item) -> Result<Fetched> {
    let file = &item.spots[0].file;
    let (root, size) = (file.call.root.clone(), file.entry().size);
    let timer = file.network().timer().clone();
    let waiting = |reason| {
        if let Some(meter) = &file.meter {
            meter.waiting(reason);
        }
    };
    let lock = FileLock::acquire(&item.key.lock(&root), &*timer, file.stop(), waiting).await?;
    let targets: Vec<_> = item.spots.iter().map(|spot| spot.target.clone()).collect();
    // Whoever was waited for may have brought it.
    let (there, targets) = blocking(move || Ok((link_all(&targets, size)?, targets))).await?;
    let paths: Vec<_> = targets.iter().map(|target| target.path().to_owned()).collect();
    if there {
        item.done();
        return Ok(Fetched { paths, computed: None, fresh: false });
    }
    let (key, segment_bytes) = (item.key.clone(), file.call.config.segment_bytes);
    let partial = blocking(move || Partial::open(&root, &key, size, lock, segment_bytes)).await?;
    file.flush.get_or_init(|| Flush::new(partial.path()));
    let digest = match verified(file, &partial).await? {
        Verified::Digest(digest) => digest,
        Verified::Local(path) => {
            let path = local(file.manifest(), &file.entry().path, size, path)?;
            blocking(|| partial.remove()).await?;
            item.done();
            return Ok(Fetched { paths: vec![path; paths.len()], computed: None, fresh: false });
        }
    };
    if file.stop().is_cancelled() {
        return Err(Error::Cancelled);
    }
    blocking(move || {
        publish(partial, &targets[0])?;
        targets[1..].iter().try_for_each(link)
    })
    .await?;
    item.done();
    let computed = file.entry().digest.is_none().then_some(digest);
    Ok(Fetched { paths, computed, fresh: true })
}

impl Item {
    fn done(&self) {
        for meter in self.spots.iter().filter_map(|spot| spot.file.meter.as_ref()) {
            meter.done();
        }
    }
}

/// Makes the links that lack nothing but themselves. Whether all targets are there.
fn link_all(targets: &[Target], size: u64) -> Result<bool> {
    for target in targets {
        if target.is_published(size) {
            continue;
        }
        if !target.has_blob(size) {
            return Ok(false);
        }
        link(target)?;
    }
    Ok(true)
}

enum Verified {
    Digest(Digest),
    Local(PathBuf),
}

/// Fetches what `partial` lacks and verifies it. Content that is not what was promised is forgotten and fetched once
/// more: what was there from an earlier run, or came through a bad proxy, may be to blame.
async fn verified(file: &Arc<FileContext>, partial: &Partial) -> Result<Verified> {
    let expected = file.entry().digest;
    let mut again = false;
    loop {
        file.recount(partial.done_bytes());
        let hasher = Hasher::start(partial, expected.as_ref())?;
        if let Came::Local(path) = download(file, partial).await? {
            return Ok(Verified::Local(path));
        }
        let found = file.unless_stopped(hasher.finish()).await??;
        let Some(expected) = expected.filter(|expected| *expected != found) else {
            return Ok(Verified::Digest(found));
        };
        if again {
            let partial = partial.clone();
            blocking(|| partial.remove()).await?;
            return Err(Error::IntegrityFailed {
                what: file.what.clone(),
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
        tracing::warn!(file = file.what, %expected, %found, "the digest is wrong; fetching the file once more");
        again = true;
        let partial = partial.clone();
        blocking(move || partial.restart(None)).await?;
    }
}
