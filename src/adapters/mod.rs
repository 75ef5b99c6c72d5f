//! Adapters and their versions: what is kept, what their sources have, and which version a ref means.
//!
//! Versions of an adapter are kept side by side: by the tag of a GitHub release, by the commit of a repository of the Hub,
//! by the content of files of this machine. Refs that differ in their revision alone are refs of one adapter.
//!
//! - A ref that names a version (`github:owner/repo@v1`, a commit) always means that one; once it is kept, no request is
//!   made for it.
//! - A moving ref (`@latest`, none, a branch) is resolved once for each plan: its source is asked what it means. It then
//!   means that version until another is asked for, and what was meant before is remembered.
//! - A moving ref that is held means the held version, without a request: [`Adapters::pin`] holds one until
//!   [`Adapters::unpin`], [`Adapters::rollback`] the one before the current until [`Adapters::update`].
//! - Where the source cannot be asked (offline, no connection, its rate limit), a moving ref means the version that was
//!   used last, with a warning in the log.
//! - A path means the files that lie there, used in place. [`Adapters::pin`] and [`Adapters::update`] copy them into the
//!   store, from which a held one is used whatever happens to the files.
//!
//! Which version is meant shows in [`crate::PlannedArtifact`] and in the statistics of each generation
//! ([`llm_local_core::GenerationStats::adapters`]). A spec with a lock ([`crate::lock`]) means what that says, whatever is
//! held.
//!
//! | file | what it does |
//! |---|---|
//! | `list` | [`Adapters::list`]: what is kept |
//! | `versions` | [`Adapters::versions`], [`Adapters::is_update_available`]: what the source has |
//! | `update` | [`Adapters::update`] |
//! | `hold` | [`Adapters::pin`], [`Adapters::unpin`], [`Adapters::rollback`], [`Adapters::delete`] |
//! | `inspect`, `report`, `said` | [`Adapters::inspect`]: what an adapter is |
//! | `convert` | [`Adapters::convert`]: an adapter in another format |
//! | `compatibility` | [`Adapters::check`]: whether an adapter fits a base |
//! | `copies` | files of this machine as something to keep |
//!
//! Whatever is wrong is an [`Error::AdapterMergeFailed`](llm_local_core::Error::AdapterMergeFailed), with the cause as its
//! source.

mod compatibility;
mod convert;
mod copies;
mod hold;
mod inspect;
mod list;
mod report;
mod said;
mod update;
mod versions;

pub use list::{AdapterVersion, InstalledAdapter};
pub use llm_local_source_common::store::{Deleted, HoldKind};
pub use report::{AdapterFormat, AdapterReport, Scaling};

pub(crate) use copies::{Copies, absolute};

use std::{fmt, sync::Arc};

use llm_local_core::{AdapterSource, ArtifactRef, FetchContext, ProgressHandler, Result, Want};
use llm_local_source_common::store::Store;

use crate::engine::{Engine, Versions};

/// The adapters of an [`Engine`], and their versions. Cheap to clone.
#[derive(Clone)]
pub struct Adapters {
    engine: Engine,
}

impl Adapters {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine }
    }

    fn store(&self) -> &Store {
        self.engine.store()
    }

    fn source(&self, reference: &ArtifactRef) -> Result<Arc<dyn AdapterSource>> {
        self.engine.inner.registry.adapter_source(reference)
    }

    /// What a call may do, and who hears of it. Sources are asked for adapters too that can only be read by what a spec says
    /// of them, which no call here knows.
    fn context(&self, progress: Option<Arc<dyn ProgressHandler>>) -> FetchContext {
        self.engine.context(progress).with_any_adapter(true)
    }

    /// What is kept of the adapter.
    async fn kept(&self, reference: &ArtifactRef) -> Result<Versions> {
        Versions::of(self.store(), reference, Want::Adapter).await
    }
}

impl fmt::Debug for Adapters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapters").field("engine", &self.engine).finish()
    }
}
