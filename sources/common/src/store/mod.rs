//! What is kept: records of artifacts, and how they are listed, verified, deleted and evicted.
//!
//! Below the store's root:
//!
//! | place | what it holds |
//! |---|---|
//! | `artifacts/<hex>.json` | a record for each artifact: its ref, revision, files and their digests, source, times |
//! | `blobs/<key>` | content that no other tool's cache takes; the folder may be a link to another file system |
//! | `trust/<hex>.json` | what a file of a version was when it was first fetched |
//! | `selected/<hex>.json` | which version of an artifact is selected, and which were before |
//! | `unfinished/<hex>.jsonl` | a note for each artifact that is not whole, of what came for it into the cache of another tool |
//! | `partials/<key>/` | files on their way |
//! | `unpacking/<hex>/` | what is being made of an archive or of parts |
//! | `github/<hex>.json` | answers of GitHub's API, which its source keeps ([`SOURCE_ANSWERS`](crate::disk::SOURCE_ANSWERS)) |
//! | `locks/` | `store.lock` for changes of the above, `<key>.lock` for each file on its way, `unpack-<hex>.lock` for each archive that is unpacked, `merge-<hex>.lock` for each merge whose result is written, and for each artifact in use `artifact-<hex>.lock` with a mark of what that use needs, `artifact-<hex>.json` |
//!
//! Content in the cache of another tool lies there, below [`Placement::root`](llm_local_core::Placement); only its
//! record is here.
//!
//! | file | what it does |
//! |---|---|
//! | `record`, `entry` | the form of a record, and of a file in it |
//! | `below` | paths that stay below a folder, whatever a file says |
//! | `ledger`, `near` | reads and writes records, and says what is near to a ref that names none |
//! | `change` | one change at a time: [`Store::with_cancel`], [`Store::with_on_wait`] |
//! | `keep` | [`Store::record`], [`Store::touch`], [`Store::pin`] |
//! | `hold` | [`Store::hold`]: what is loaded or being fetched |
//! | `made` | artifacts whose files were made of those that their source has |
//! | `merges` | [`Store::begin_merge`], [`Store::kept_merge`]: results of merges |
//! | `list` | [`Store::list`], [`Store::size`] |
//! | `group` | which artifacts are versions of one |
//! | `kept` | [`Store::kept`], [`Store::delete_kept`]: versions side by side |
//! | `selection` | [`Store::selection`], [`Store::select`], [`Store::roll_back`], [`Store::release`] |
//! | `trust` | what files of a version were at first, and the error if they are others now |
//! | `verify`, `repair` | [`Store::verify`], [`Store::remove_damaged`] |
//! | `delete` | [`Store::delete`] |
//! | `evict` | [`Store::evict`] |
//! | `unfinished` | [`Store::note_fetched`]: what came of artifacts that are not whole |
//! | `clean` | [`Store::clean`]: what unfinished downloads left |
//! | `removal`, `tree`, `traces`, `usage` | what a deletion may take, in which order, and what it leaves |
//!
//! Every call blocks. Processes change a store one at a time, under a lock; to read it takes none, since each record is
//! replaced in one step, and one that vanishes meanwhile is as good as never read.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use below::{Below, real_inside};
use change::Waiting;
use llm_local_core::Result;

use crate::disk::FileKey;

mod below;
mod change;
mod clean;
mod delete;
mod entry;
mod evict;
mod group;
mod hold;
mod keep;
mod kept;
mod ledger;
mod list;
mod made;
mod merges;
mod near;
mod record;
mod removal;
mod repair;
mod selection;
mod traces;
mod tree;
mod trust;
mod unfinished;
mod usage;
mod verify;

#[cfg(test)]
mod tests;

pub use clean::Cleaned;
pub use delete::Deleted;
pub use hold::Hold;
pub use keep::Came;
pub use kept::Kept;
pub use list::{Artifact, Listing, Size, UnreadableRecord};
pub(crate) use made::{Made, Output, made_key};
pub use merges::{KeptMerge, MERGED_SCHEME, MergeKey, MergeWriter};
pub use selection::{HoldKind, Selected, Selection};
pub(crate) use trust::{Differs, Trusted};
pub use verify::{Outcome, Verified};

/// Artifacts on this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    root: Arc<Path>,
    waiting: Waiting,
}

impl Store {
    /// The store at `root`, which is made with the first thing that is kept.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        // Records must mean the same in whatever folder a process is.
        let root = std::path::absolute(&root).unwrap_or(root);
        Self { root: root.into(), waiting: Waiting::default() }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where content of this key is published.
    pub(crate) fn blob(&self, key: &FileKey) -> PathBuf {
        key.blob(&self.root)
    }

    /// The time, as changes of this store are written down.
    fn now(&self) -> SystemTime {
        self.waiting.timer.wall()
    }

    fn artifacts(&self) -> PathBuf {
        self.root.join("artifacts")
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// The real path of the content `blob`, if its folder is there. Contents may all be on another file system, where
    /// `blobs` is a link; none may be elsewhere than below that.
    ///
    /// # Errors
    /// As [`real_inside`].
    fn real_blob(&self, blob: &Below) -> Result<Option<PathBuf>> {
        real_inside(&self.blobs(), &blob.at(&self.root))
    }

    fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }
}
