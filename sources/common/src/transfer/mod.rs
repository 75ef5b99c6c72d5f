//! Makes every file of a plan present and verified.
//!
//! | file | what it holds |
//! |---|---|
//! | `plan` | where files are; `missing`: which have to come; `preflight`: room for them |
//! | `fetch` | a whole call: several files at a time (`queue`), records, refs |
//! | `file` | one file: lock, partial, digest, publishing; `small`: the same without a partial |
//! | `download` | all bytes of one version of a file; `ranges`: several at a time |
//! | `body` | one request for bytes; `answer`: what comes back, judged; `bounds`: when a host is given up |
//! | `pour` | bytes from a connection to the disk; `flush`: on through the system's cache |
//! | `unpacked` | archives unpacked and parts joined, where a manifest says so; `steps`: one after the other |
//! | `read` | a small range, without storing it |
//!
//! Nothing is published unverified, and nothing that was not published is taken for present.

mod answer;
mod body;
mod bounds;
mod config;
mod context;
mod download;
mod fetch;
mod file;
mod flush;
mod missing;
#[cfg(test)]
mod order;
mod plan;
mod pour;
mod preflight;
mod queue;
mod ranges;
mod read;
mod small;
mod steps;
mod unpacked;

use std::{collections::BTreeMap, fmt, ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use llm_local_core::{ArtifactSource, Error, FetchContext, Manifest, Result};
use tokio::sync::Semaphore;

use config::Check;
pub use config::TransferConfig;
use context::{Call, FileContext};
use fetch::{Course, check_trust};
use plan::Plan;

use crate::{disk::Folders, network::Network, progress::Meter, store::Store};

/// Files of an artifact: their paths in the manifest, and where they lie.
pub type Files = BTreeMap<String, PathBuf>;

/// An artifact to fetch.
#[derive(Clone)]
#[non_exhaustive]
pub struct Job {
    /// Who knows how to get its bytes.
    pub source: Arc<dyn ArtifactSource>,
    /// Its files.
    pub manifest: Manifest,
}

impl Job {
    /// The files of `manifest`, from `source`.
    pub fn new(source: Arc<dyn ArtifactSource>, manifest: Manifest) -> Self {
        Self { source, manifest }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

/// Moves the bytes of artifacts into a store, or into the cache that their source shares with other tools. Cheap to
/// clone. Works on any executor: what it does runs on the threads of its [`Network`].
#[derive(Debug, Clone)]
pub struct Transfer {
    network: Network,
    store: Store,
    config: TransferConfig,
    check: Option<Check>,
}

impl Transfer {
    /// Fetches over `network` into `store`.
    pub fn new(network: Network, store: Store, config: TransferConfig) -> Self {
        Self { network, store, config, check: None }
    }

    /// Asks `check` about the files that were made of archives or parts, by their paths and sizes, before any of them is kept:
    /// what is in an archive nobody tells before. After an error of its, which the fetch gives, nothing of them is here, nor
    /// of what they were made of, unless other artifacts need that; and nothing is remembered of it. It is not asked about
    /// what was made and kept before.
    pub fn with_check(
        mut self,
        check: impl Fn(&Manifest, &BTreeMap<String, u64>) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.check = Some(Check(Arc::new(check)));
        self
    }

    /// The network it fetches over.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The store it fetches into.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Makes every file of `jobs` present: what is missing is fetched, resumed where an earlier call ended, verified and
    /// published; then the artifacts are recorded in the store. What is there already is used as it is, and files of
    /// this machine where they lie. Gives the files of each job.
    ///
    /// Where a manifest has steps ([`Manifest::unpack`]), their files are made of those that came, once they are verified,
    /// within the limits of what is wanted so ([`TransferConfig::unpack_of`]); what was made is kept instead of what it was made of, and given. Files that no
    /// step takes stay as they are. Where it has a version ([`Manifest::version`]), its files must be those that were
    /// first fetched under that.
    ///
    /// `cx.progress` hears of all jobs together: first what is present, at the end exactly 1.0, nothing after an error.
    /// When `cx.cancel` is cancelled all work has stopped once this returns; dropping the future ends it too. Either way
    /// what came is kept for the next call, and nothing unfinished is marked as present.
    ///
    /// # Errors
    /// The first error; the work on other files has stopped by then. [`Error::InsufficientStorage`] before the first
    /// byte; [`Error::IntegrityFailed`] with expected and found sizes or digests, also where the owner of a version has
    /// replaced a file of it, which is never published; [`Error::LoadFailed`] and [`Error::UnsupportedModelFormat`] for an
    /// archive, of which then nothing is kept; [`Error::InvalidSpec`] for steps of files that go into the cache of another
    /// tool; [`Error::NotAllowed`] for what a policy bounds ([`Limits::with_policy`](crate::unpack::Limits::with_policy)), of
    /// parts to be joined before the first byte; [`Error::Offline`], if requests are forbidden; [`Error::Unauthorized`], [`Error::NotFound`], [`Error::RateLimited`] or [`Error::DownloadFailed`] for
    /// what hosts and connections do; [`Error::Io`]; [`Error::Cancelled`]. Those of adapters come as
    /// [`Error::AdapterMergeFailed`].
    pub async fn fetch(&self, jobs: Vec<Job>, cx: &FetchContext) -> Result<Vec<Files>> {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        // Sizes come from remote listings: together they may be more than any number.
        let sizes = jobs.iter().flat_map(|job| &job.manifest.files).map(|file| file.size);
        let total = sizes.fold(0, u64::saturating_add);
        let meter = Meter::new(self.network.timer().clone(), cx.progress.clone(), total)?;
        let (call, store, cx) = (self.call(jobs), self.store.clone(), inner(cx));
        let fetching = async move {
            let fetched = match Course::begin(call, store, cx).await {
                Ok(course) => course.run(&meter).await,
                Err(error) => Err(error),
            };
            match &fetched {
                Ok(_) => meter.finish().await,
                Err(_) => meter.stop().await,
            }
            fetched
        };
        self.network.run(fetching).await
    }

    /// The files of `job` if all of them are there; of one whose manifest has steps ([`Manifest::unpack`]) what these made,
    /// whether or not what they took is there. Makes no request, takes no lock and changes nothing.
    ///
    /// # Errors
    /// Those of its source; [`Error::IntegrityFailed`] for a file of this machine that has not the size it should, and for
    /// one that is told to be another than it was when its version was first fetched.
    pub async fn present(&self, job: &Job, cx: &FetchContext) -> Result<Option<Files>> {
        let (call, cx) = (self.call(vec![job.clone()]), inner(cx));
        let looking = async move {
            check_trust(&call, &call.store).await?;
            let mut plan = Plan::survey(&call, &cx).await?;
            let paths = plan.look(&call).await?;
            Ok(plan.files(&call, 0, &paths[0]))
        };
        self.network.run(looking).await
    }

    /// How many bytes more are published once every file of `jobs` is present: none of a file whose content is here and
    /// only its link is missing; content that several files have counts once, and all of it where an earlier call has
    /// fetched a part. Of an archive that is not unpacked there is also what that takes of the disk: the same and a half,
    /// since nobody knows before; of parts to be joined, their bytes once more. Makes no request, takes no lock and changes nothing.
    ///
    /// # Errors
    /// As [`Transfer::present`].
    pub async fn unpublished_bytes(&self, jobs: &[Job], cx: &FetchContext) -> Result<u64> {
        let (call, cx) = (self.call(jobs.to_vec()), inner(cx));
        let looking = async move {
            check_trust(&call, &call.store).await?;
            let mut plan = Plan::survey(&call, &cx).await?;
            let paths = plan.look(&call).await?;
            let contents = missing::contents(&call, &plan, &paths);
            let unpacked = plan.to_unpack(&call)?;
            context::blocking(move || Ok(missing::unpublished(&call.root, &contents).saturating_add(unpacked))).await
        };
        self.network.run(looking).await
    }

    /// The bytes `range` of the file called `path`, which are few, from where it is published or else from its source:
    /// to look at a header before the file is fetched. They are not verified and not kept.
    ///
    /// # Errors
    /// As [`Transfer::fetch`]; [`Error::NotFound`] if the manifest has no such file, [`Error::InvalidSpec`] for a range
    /// beyond its end.
    pub async fn read(&self, job: &Job, path: &str, range: Range<u64>, cx: &FetchContext) -> Result<Bytes> {
        let manifest = &job.manifest;
        let Some(index) = manifest.files.iter().position(|file| file.path == path) else {
            return Err(Error::not_found(
                format!("{path} of {}", manifest.reference),
                "its manifest lists no such file",
            ));
        };
        let (call, cx) = (self.call(vec![job.clone()]), inner(cx));
        let reading = async move {
            let place = plan::survey_file(&call, &call.jobs[0], index, &cx).await;
            let place = place.map_err(|e| plan::of_job(&call.jobs[0], e))?;
            let file = FileContext::new(&call, 0, index, None, cx);
            read::read(&file, place, range).await.map_err(|e| plan::of_job(&call.jobs[0], e))
        };
        self.network.run(reading).await
    }

    fn call(&self, jobs: Vec<Job>) -> Arc<Call> {
        Arc::new(Call {
            network: self.network.clone(),
            root: self.store.root().to_owned(),
            store: self.store.clone(),
            config: self.config.clone(),
            check: self.check.clone(),
            jobs,
            connections: Arc::new(Semaphore::new(self.config.connections.max(1))),
            folders: Folders::default(),
        })
    }
}

/// What sources and workers get of `cx`: a token of their own, which the first error cancels, and nobody to tell of
/// progress but the meter.
fn inner(cx: &FetchContext) -> FetchContext {
    FetchContext::new().with_offline(cx.offline).with_cancel(cx.cancel.child_token())
}
