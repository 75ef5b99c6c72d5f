//! A whole call: what is there, what is missing, and the end of it.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use llm_local_core::{Digest, Error, FetchContext, Manifest, ManifestFile, Result};
use tokio::task::JoinSet;

use super::{
    Call, Files,
    context::{FileContext, blocking, untrusted},
    file::{Fetched, Item, Spot, fetch_file},
    missing::{Content, Here, Wanted, bytes, contents},
    plan::{Place, Plan, of_job},
    preflight::check_room,
    queue::Queue,
    unpacked::{Unpacking, check_joins},
};
use crate::{
    disk::{digest_file, if_full, sweep, write_text_staged},
    progress::{FileMeter, Meter},
    store::{Came, Hold, Store},
};

/// A call under way.
pub(super) struct Course {
    call: Arc<Call>,
    store: Store,
    /// Its token ends all work of the call: it is cancelled with the first error.
    cx: FetchContext,
    plan: Plan,
    /// For each job and file, the path to use once it is there.
    paths: Vec<Vec<Option<PathBuf>>>,
    /// For each job, how many files have no path yet.
    missing: Vec<usize>,
    /// For each job, what its record is to say.
    news: Vec<News>,
    unnoted: Vec<Unnoted>,
    /// `None` if all files are there and the store cannot be written to: nothing is, then.
    holds: Option<Vec<Hold>>,
    /// For each job and file.
    meters: Vec<Vec<FileMeter>>,
}

#[derive(Clone, Default)]
struct News {
    /// Digests of files for which none was promised.
    computed: BTreeMap<String, Digest>,
    /// How those came that were not there before.
    came: BTreeMap<String, Came>,
}

/// Files that came and that the store has not heard of.
#[derive(Clone, Default)]
struct Unnoted {
    paths: Vec<String>,
    bytes: u64,
}

/// So many bytes of small files may be unknown to the store when the process is killed.
const MOST_UNNOTED: u64 = 64 << 20;

impl Course {
    /// Looks for what is there.
    pub(super) async fn begin(call: Arc<Call>, store: Store, cx: FetchContext) -> Result<Self> {
        check_trust(&call, &store).await?;
        let mut plan = Plan::survey(&call, &cx).await?;
        // Held before it is looked for: what is there then stays there.
        let mut holds = hold(&call, &store, &plan).await;
        let mut paths = plan.look(&call).await?;
        if plan.made.iter().any(Option::is_some) {
            // Of what was made since, or by another ref, that was held which it was made of.
            let again = hold(&call, &store, &plan).await;
            holds = holds.and_then(|holds| Ok(holds.into_iter().chain(again?).collect()));
            plan = Plan::survey(&call, &cx).await?;
            paths = plan.look(&call).await?;
        }
        let count = |paths: &Vec<Option<PathBuf>>| paths.iter().filter(|path| path.is_none()).count();
        let missing: Vec<_> = paths.iter().map(count).collect();
        let to_unpack: Vec<_> = (0..call.jobs.len()).filter(|job| plan.is_to_unpack(&call, *job)).collect();
        for job in to_unpack.iter().map(|job| &call.jobs[*job]) {
            let limits = call.config.unpack_of(job.manifest.want);
            check_joins(&job.manifest, limits).map_err(|e| of_job(job, e))?;
        }
        let holds = match holds {
            Err(error @ Error::Io { .. }) if missing.iter().all(|missing| *missing == 0) && to_unpack.is_empty() => {
                tracing::debug!(%error, "nothing is noted of a use of what is here: the store cannot be written to");
                None
            }
            holds => Some(holds?),
        };
        let (news, unnoted) = (vec![News::default(); call.jobs.len()], vec![Unnoted::default(); call.jobs.len()]);
        Ok(Self { call, store, cx, plan, paths, missing, news, unnoted, holds, meters: Vec::new() })
    }

    /// Makes every file present.
    ///
    /// # Errors
    /// The first; [`Error::Cancelled`]. No worker runs then.
    pub(super) async fn run(mut self, meter: &Meter) -> Result<Vec<Files>> {
        let contents = contents(&self.call, &self.plan, &self.paths);
        let root = self.call.root.clone();
        let (contents, here) = blocking(move || {
            let here: Vec<_> = contents.iter().map(|content| content.here(&root)).collect();
            Ok((contents, here))
        })
        .await?;
        let items = self.items(meter, &contents, &here);
        let (root, unpacked) = (self.call.root.clone(), self.plan.to_unpack(&self.call)?);
        blocking(move || check_room(&root, contents.iter().zip(here), unpacked)).await?;
        meter.begin();
        for job in 0..self.call.jobs.len() {
            self.finish(job).await.map_err(|e| of_job(&self.call.jobs[job], e))?;
        }
        self.fetch(items).await?;
        for job in 0..self.call.jobs.len() {
            self.unpack(job).await.map_err(|e| of_job(&self.call.jobs[job], e))?;
        }
        let all: Option<Vec<_>> = (0..self.call.jobs.len()).map(|job| self.files(job)).collect();
        all.ok_or_else(|| Error::unsupported("fetching", "a file is neither here nor was it fetched"))
    }

    /// What is to be done for `contents`, with a meter for each file of the call, which knows what is `here`.
    fn items(&mut self, meter: &Meter, contents: &[Content], here: &[Here]) -> Vec<Item> {
        let meters = self.call.jobs.iter().map(|job| {
            let files = job.manifest.files.iter();
            let meter = |file: &ManifestFile| meter.file(job.manifest.reference.clone(), &*file.path, file.size);
            files.map(meter).collect::<Vec<_>>()
        });
        let meters: Vec<_> = meters.collect();
        for (job, meters) in meters.iter().enumerate() {
            let is_here = |index| self.paths[job].get(index).map_or(self.plan.made[job].is_some(), Option::is_some);
            meters.iter().enumerate().filter(|(index, _)| is_here(*index)).for_each(|(_, meter)| meter.done());
        }
        let item = |(content, here): (&Content, &Here)| {
            let spot = |(nth, wanted): (usize, &Wanted)| {
                let meter = meters[wanted.job][wanted.index].clone();
                // What a partial has will be one of the files; a blob is all of them.
                if here.blob || nth == 0 {
                    meter.reset_to(here.bytes);
                }
                let file = FileContext::new(&self.call, wanted.job, wanted.index, Some(meter), self.cx.clone());
                Spot { file: Arc::new(file), target: wanted.target.clone() }
            };
            let spots = content.spots.iter().enumerate().map(spot).collect();
            Item { key: content.key.clone(), spots, twin: content.twin.clone() }
        };
        let items = contents.iter().zip(here).map(item).collect();
        self.meters = meters;
        items
    }

    /// Fetches `items`, some at a time; the first error ends the others.
    async fn fetch(&mut self, items: Vec<Item>) -> Result<()> {
        let (mut queue, mut running, mut failed) = (Queue::new(&self.call.config, items), JoinSet::new(), None);
        loop {
            while failed.is_none() {
                let Some((among, item)) = queue.next() else { break };
                running.spawn(async move {
                    let fetched = fetch_file(&item).await;
                    (among, item, fetched)
                });
            }
            let Some(joined) = running.join_next().await else { break };
            let result = match joined {
                Ok((among, item, fetched)) => {
                    queue.ended(among);
                    match fetched {
                        Ok(fetched) => self.take(&item, fetched).await,
                        Err(error) => Err((item.file().job, error)),
                    }
                }
                Err(e) if e.is_panic() => {
                    self.cx.cancel.cancel();
                    while running.join_next().await.is_some() {}
                    std::panic::resume_unwind(e.into_panic());
                }
                Err(_) => Err((0, Error::Cancelled)),
            };
            if let Err(error) = result {
                // Those that are ended by this say that they were cancelled.
                failed.get_or_insert(error);
                self.cx.cancel.cancel();
            }
        }
        let Some((job, error)) = failed else { return Ok(()) };
        for job in 0..self.call.jobs.len() {
            if let Err(error) = self.note_all(job).await {
                tracing::warn!(%error, "what came of an unfinished download is not noted");
            }
        }
        let contents = contents(&self.call, &self.plan, &self.paths);
        let root = self.call.root.clone();
        let error = blocking(move || Ok(if_full(error, || bytes(&root, &contents)))).await?;
        Err(of_job(&self.call.jobs[job], error))
    }

    async fn take(&mut self, item: &Item, fetched: Fetched) -> Result<(), (usize, Error)> {
        let mut jobs = Vec::new();
        for (spot, path) in item.spots.iter().zip(fetched.paths) {
            let (job, index) = (spot.file.job, spot.file.index);
            if self.paths[job][index].replace(path).is_none() {
                self.missing[job] -= 1;
            }
            let news = &mut self.news[job];
            let path = || spot.file.entry().path.clone();
            news.came.extend(fetched.came.map(|came| (path(), came)));
            news.computed.extend(fetched.computed.map(|digest| (path(), digest)));
            if !jobs.contains(&job) {
                jobs.push(job);
            }
        }
        for job in jobs {
            if fetched.came == Some(Came::Fetched) {
                self.note(job, item).await.map_err(|error| (job, error))?;
            }
            self.finish(job).await.map_err(|error| (job, error))?;
        }
        Ok(())
    }

    /// Notes that `item` came, if other files of the job are still missing: should they never come, this one can be told
    /// from those of the tool whose cache it is in. Of small files many are noted at a time.
    async fn note(&mut self, job: usize, item: &Item) -> Result<()> {
        let of_job = item.spots.iter().filter(|spot| spot.file.job == job);
        let unnoted = &mut self.unnoted[job];
        unnoted.paths.extend(of_job.map(|spot| spot.file.entry().path.clone()));
        unnoted.bytes += item.file().entry().size;
        if item.is_small() && unnoted.bytes < MOST_UNNOTED { Ok(()) } else { self.note_all(job).await }
    }

    /// Notes what came of the job and was not noted yet.
    async fn note_all(&mut self, job: usize) -> Result<()> {
        let Unnoted { paths, .. } = std::mem::take(&mut self.unnoted[job]);
        let placement = self.plan.placements[job].clone().filter(|_| self.missing[job] > 0);
        let Some(placement) = placement.filter(|_| !paths.is_empty()) else { return Ok(()) };
        let (call, store) = (self.call.clone(), self.store.clone());
        blocking(move || {
            let manifest = &call.jobs[job].manifest;
            paths.iter().try_for_each(|path| store.note_fetched(manifest, &placement, path))
        })
        .await
    }

    fn files(&self, job: usize) -> Option<Files> {
        self.plan.files(&self.call, job, &self.paths[job])
    }

    /// Makes the files of the job, if its manifest says how, of those that came.
    async fn unpack(&mut self, job: usize) -> Result<()> {
        if !self.plan.is_to_unpack(&self.call, job) {
            return Ok(());
        }
        let files = self.call.jobs[job].manifest.files.iter().zip(&self.paths[job]);
        let files = files.filter_map(|(file, path)| Some((file.path.clone(), path.clone()?)));
        let unpacking = Unpacking {
            call: self.call.clone(),
            store: self.store.clone(),
            job,
            files: files.collect(),
            computed: self.news[job].computed.clone(),
            cx: self.cx.clone(),
            meter: self.meters[job].first().cloned(),
        };
        self.plan.made[job] = Some(unpacking.run().await?);
        Ok(())
    }

    /// Records the job if all its files are here, and then writes the refs that name its revision.
    async fn finish(&self, job: usize) -> Result<()> {
        // Files that all are their owner's are no artifact of the store.
        if self.missing[job] > 0 || self.plan.is_local(&self.call, job) || self.holds.is_none() {
            return Ok(());
        }
        // One that is to be unpacked is recorded when it was.
        let Some(files) = self.files(job) else { return Ok(()) };
        let (call, store) = (self.call.clone(), self.store.clone());
        if self.plan.made[job].is_some() {
            return blocking(move || {
                let (manifest, now) = (&call.jobs[job].manifest, call.network.timer().wall());
                let Some(made) = store.made(manifest)? else { return Ok(()) };
                store.record_made(manifest, made, false, now)?;
                // What a crash left of an archive that was unpacked before it.
                store.remove_origins(manifest, |file| !files.contains_key(&file.path))
            })
            .await;
        }
        let (placement, news) = (self.plan.placements[job].clone(), self.news[job].clone());
        let keys: Vec<_> = self.plan.places[job]
            .iter()
            .zip(&call.jobs[job].manifest.files)
            .filter_map(|(place, file)| match place {
                Place::Stored { key, .. } => Some((key.clone(), file.size)),
                Place::Local(_) => None,
            })
            .collect();
        let finish = move || {
            let (manifest, now) = (&call.jobs[job].manifest, call.network.timer().wall());
            call.folders.sync()?;
            let computed = first_seen(&store, manifest, &files, news.computed)?;
            store.record_files(manifest, &files, &computed, placement.as_deref(), &news.came, now)?;
            keys.iter().try_for_each(|(key, size)| sweep(&call.root, key, *size))?;
            let Some(placement) = placement else { return Ok(()) };
            for (path, text) in &placement.refs {
                if fs::read_to_string(path).ok().as_ref() != Some(text) {
                    write_text_staged(path, text, &placement.root)?;
                }
            }
            Ok(())
        };
        blocking(finish).await
    }
}

/// `computed`, and the digests of those `files` of a version that were here before, of which none was told and none is
/// known: with them, what they are is known from now on.
///
/// # Errors
/// [`Error::IntegrityFailed`] for one that is another than it was when the version was first fetched.
fn first_seen(
    store: &Store,
    manifest: &Manifest,
    files: &Files,
    mut computed: BTreeMap<String, Digest>,
) -> Result<BTreeMap<String, Digest>> {
    if manifest.version.is_none() {
        return Ok(computed);
    }
    let untold = |file: &&ManifestFile| file.digest.is_none() && !computed.contains_key(&file.path);
    let untold: Vec<_> = manifest.files.iter().filter(untold).collect();
    let known = if untold.is_empty() { BTreeMap::new() } else { store.known(manifest)? };
    for file in untold {
        let trusted = store.trusted(manifest, &file.path)?;
        // What was recorded at this revision was digested when it came.
        let recorded =
            known.get(&file.path).filter(|d| trusted.as_ref().is_none_or(|trusted| trusted.is_comparable(d)));
        let digest = match recorded {
            Some(digest) => *digest,
            None => digest_file(&files[&file.path], trusted.as_ref().map(|trusted| &trusted.digest))?,
        };
        untrusted(store, manifest, trusted.as_ref(), digest)?;
        computed.insert(file.path.clone(), digest);
    }
    Ok(computed)
}

/// Holds what is told of the files of the call against what they were at first.
pub(super) async fn check_trust(call: &Arc<Call>, store: &Store) -> Result<()> {
    let (call, store) = (call.clone(), store.clone());
    blocking(move || call.jobs.iter().try_for_each(|job| store.check_trust(&job.manifest).map_err(|e| of_job(job, e))))
        .await
}

/// Holds what is in a store or is to be.
async fn hold(call: &Arc<Call>, store: &Store, plan: &Plan) -> Result<Vec<Hold>> {
    let (call, store, placements) = (call.clone(), store.clone(), plan.placements.clone());
    let stored: Vec<_> = (0..call.jobs.len()).filter(|job| !plan.is_local(&call, *job)).collect();
    blocking(move || {
        let hold = |job: usize| store.hold(&call.jobs[job].manifest, placements[job].as_deref());
        stored.into_iter().map(|job| hold(job).map_err(|e| of_job(&call.jobs[job], e))).collect()
    })
    .await
}
