//! Where the files of a call are, and which have to come.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use llm_local_core::{Error, FetchContext, Manifest, ManifestFile, Opened, Placement, Result, Want};

use super::{Call, Files, Job, context::blocking, unpacked::estimate};
use crate::{
    disk::{FileKey, Target},
    store::made_key,
};

/// Where one file is, or is to be.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// It is its owner's, and used where it lies.
    Local(PathBuf),
    /// It is published there, or to be.
    Stored { key: FileKey, target: Target },
}

/// The places of all files of a call.
pub(super) struct Plan {
    /// For each job, where its source wants the files.
    pub(super) placements: Vec<Option<Arc<Placement>>>,
    /// For each job, one for each file; none for one whose files were made of these.
    pub(super) places: Vec<Vec<Place>>,
    /// For each job, the files that were made, where its manifest says how and all of them are there.
    pub(super) made: Vec<Option<Files>>,
}

impl Plan {
    /// Asks the sources where files are wanted and which lie on this machine. Makes no request: they are told that they
    /// are offline.
    ///
    /// # Errors
    /// The sources', but that a file cannot be had offline; [`Error::IntegrityFailed`] for a file of this machine whose
    /// size is not the one in the manifest.
    pub(super) async fn survey(call: &Arc<Call>, cx: &FetchContext) -> Result<Self> {
        let mut plan = Self { placements: Vec::new(), places: Vec::new(), made: vec![None; call.jobs.len()] };
        for job in &call.jobs {
            let (placement, places) = survey_job(call, job, cx).await.map_err(|e| of_job(job, e))?;
            plan.placements.push(placement.map(Arc::new));
            plan.places.push(places);
        }
        Ok(plan)
    }

    /// For each job and file, the path to use if it is there. A job whose files were made of others has none of those.
    pub(super) async fn look(&mut self, call: &Arc<Call>) -> Result<Vec<Vec<Option<PathBuf>>>> {
        let steps = |job: &Job| !job.manifest.unpack.is_empty();
        for number in (0..call.jobs.len()).filter(|number| steps(&call.jobs[*number])) {
            let theirs = call.clone();
            let made =
                blocking(move || Ok(theirs.store.made(&theirs.jobs[number].manifest)?.map(|m| m.files(&theirs.store))));
            self.made[number] = made.await.map_err(|e| of_job(&call.jobs[number], e))?;
            if self.made[number].is_some() {
                self.places[number].clear();
            }
        }
        let (call, places) = (call.clone(), self.places.clone());
        let look = move || {
            let there = |job: &Job, places: &[Place]| {
                let pairs = job.manifest.files.iter().zip(places);
                pairs.map(|(file, place)| place.path_if_there(file.size)).collect::<Vec<_>>()
            };
            Ok(call.jobs.iter().zip(&places).map(|(job, places)| there(job, places)).collect())
        };
        blocking(look).await
    }

    /// Whether no file of the job is in a store.
    pub(super) fn is_local(&self, call: &Call, job: usize) -> bool {
        call.jobs[job].manifest.unpack.is_empty()
            && self.places[job].iter().all(|place| matches!(place, Place::Local(_)))
    }

    /// Whether files of the job are to be made of those that come.
    pub(super) fn is_to_unpack(&self, call: &Call, job: usize) -> bool {
        !call.jobs[job].manifest.unpack.is_empty() && self.made[job].is_none()
    }

    /// Bytes of the disk that it may take to make what is not made, once for each.
    pub(super) fn to_unpack(&self, call: &Call) -> Result<u64> {
        let jobs = (0..call.jobs.len()).filter(|job| self.is_to_unpack(call, *job));
        let of_job = |job: usize| {
            let manifest = &call.jobs[job].manifest;
            Ok((made_key(manifest)?, estimate(manifest)))
        };
        let each = jobs.map(of_job).collect::<Result<BTreeMap<_, _>>>()?;
        Ok(each.into_values().fold(0, u64::saturating_add))
    }

    /// The files of the job by their names, if all are there; `paths` are those of the manifest's files.
    pub(super) fn files(&self, call: &Call, job: usize, paths: &[Option<PathBuf>]) -> Option<Files> {
        if self.is_to_unpack(call, job) {
            None
        } else {
            self.made[job].clone().or_else(|| files(&call.jobs[job].manifest, paths))
        }
    }
}

impl Place {
    fn path_if_there(&self, size: u64) -> Option<PathBuf> {
        match self {
            Self::Local(path) => Some(path.clone()),
            Self::Stored { target, .. } => target.is_published(size).then(|| target.path().to_owned()),
        }
    }
}

/// The paths of a job's files by their names in the manifest, if all are there.
fn files(manifest: &Manifest, paths: &[Option<PathBuf>]) -> Option<Files> {
    let names = manifest.files.iter().map(|file| file.path.clone());
    names.zip(paths.iter().cloned()).map(|(name, path)| Some((name, path?))).collect::<Option<BTreeMap<_, _>>>()
}

/// An error met while the files of `job` were fetched.
pub(super) fn of_job(job: &Job, error: Error) -> Error {
    match job.manifest.want {
        Want::Adapter => error.into_adapter(&job.manifest.reference),
        _ => error,
    }
}

async fn survey_job(call: &Arc<Call>, job: &Job, cx: &FetchContext) -> Result<(Option<Placement>, Vec<Place>)> {
    let placement = job.source.placement(&job.manifest)?;
    if let Some(placement) = &placement {
        check(&job.manifest, placement)?;
        if !job.manifest.unpack.is_empty() {
            return Err(Error::invalid_spec(
                format!("manifest of {}", job.manifest.reference),
                "its files are to be unpacked, and those in the cache of another tool are not ours to replace",
            ));
        }
    }
    let files = job.manifest.files.iter().enumerate();
    let targets: Vec<_> = files.map(|(i, file)| target(call, &job.manifest, placement.as_ref(), i, file)).collect();
    let sizes: Vec<_> = job.manifest.files.iter().map(|file| file.size).collect();
    let (targets, published) = blocking(move || {
        let published: Vec<_> = targets.iter().zip(sizes).map(|((_, t), size)| t.is_published(size)).collect();
        Ok((targets, published))
    })
    .await?;
    let mut places = Vec::with_capacity(targets.len());
    for ((file, (key, target)), published) in job.manifest.files.iter().zip(targets).zip(published) {
        let local = if published { None } else { local_path(job, file, cx).await? };
        places.push(local.map_or(Place::Stored { key, target }, Place::Local));
    }
    Ok((placement, places))
}

/// The place of one file of a job, as [`Plan::survey`] finds it.
pub(super) async fn survey_file(call: &Arc<Call>, job: &Job, index: usize, cx: &FetchContext) -> Result<Place> {
    let (manifest, file) = (&job.manifest, &job.manifest.files[index]);
    let placement = job.source.placement(manifest)?;
    if let Some(placement) = &placement {
        check(manifest, placement)?;
    }
    let (key, target) = target(call, manifest, placement.as_ref(), index, file);
    let size = file.size;
    let (published, target) = blocking(move || Ok((target.is_published(size), target))).await?;
    let local = if published { None } else { local_path(job, file, cx).await? };
    Ok(local.map_or(Place::Stored { key, target }, Place::Local))
}

/// Where the file `index` of `manifest` is to be published.
fn target(
    call: &Call,
    manifest: &Manifest,
    placement: Option<&Placement>,
    index: usize,
    file: &ManifestFile,
) -> (FileKey, Target) {
    let key = FileKey::new(manifest, file);
    let target = match placement.map(|placement| &placement.files[index]) {
        Some(place) => Target { blob: place.blob.clone(), link: Some(place.link.clone()) },
        None => Target { blob: key.blob(&call.root), link: None },
    };
    (key, target)
}

/// Where the file lies if it is its owner's. A source that has it here says so without the network; one that needs the
/// network is not asked for bytes yet.
async fn local_path(job: &Job, file: &ManifestFile, cx: &FetchContext) -> Result<Option<PathBuf>> {
    let offline = cx.clone().with_offline(true);
    let opened = job.source.open(&job.manifest, file, 0..file.size, &offline);
    match cx.cancel.run_until_cancelled(opened).await.ok_or(Error::Cancelled)? {
        Ok(Opened::Local(path)) => local(&job.manifest, &file.path, file.size, path).map(Some),
        Ok(_) | Err(Error::Offline { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `path`, if the file there has the size that the manifest says.
pub(super) fn local(manifest: &Manifest, name: &str, size: u64, path: PathBuf) -> Result<PathBuf> {
    let found = fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?.len();
    if found == size {
        return Ok(path);
    }
    Err(Error::IntegrityFailed {
        what: format!("{name} of {} ({})", manifest.reference, path.display()),
        expected: format!("{size} bytes"),
        found: format!("{found} bytes; it changed since it was resolved"),
    })
}

/// A placement comes from a plugin: it must have a place for each file, and none outside of its root.
fn check(manifest: &Manifest, placement: &Placement) -> Result<()> {
    let bad = |reason: String| Err(Error::invalid_spec(format!("placement of {}", manifest.reference), reason));
    let (places, files) = (placement.files.len(), manifest.files.len());
    if places != files {
        return bad(format!("expected a place for each of {files} files, found {places}"));
    }
    let paths = placement.files.iter().flat_map(|file| [&file.blob, &file.link]);
    let mut paths = paths.chain(placement.refs.iter().map(|(path, _)| path)).chain([&placement.links]);
    let outside = |path: &&PathBuf| {
        let steps_out = path.components().any(|c| c == std::path::Component::ParentDir);
        steps_out || !path.is_absolute() || !path.starts_with(&placement.root)
    };
    match paths.find(outside) {
        Some(path) => {
            bad(format!("expected absolute paths below {}, found {}", placement.root.display(), path.display()))
        }
        None => Ok(()),
    }
}
