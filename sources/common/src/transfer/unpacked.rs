//! Files made of those that came: archives unpacked, parts joined.
//!
//! What was verified is read from where it is published, what is made of it is written into a folder that nobody else
//! looks into, and each file of that becomes a content of the store under its own digest. A crash leaves that folder, or
//! contents that nobody records, or all of it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use llm_local_core::{Digest, Error, FetchContext, Manifest, Result, Unpack};
use tokio_util::sync::CancellationToken;

use super::{
    Call, Files,
    config::Check,
    context::{blocking, untrusted},
    steps::{File, Steps, name},
};
use crate::{
    disk::{FileKey, FileLock, Folders, Target, digest_file, if_full, link, sweep},
    progress::FileMeter,
    store::{Made, Store, made_key},
    unpack::Limits,
};

/// A job whose files came and are to become others.
pub(super) struct Unpacking {
    pub(super) call: Arc<Call>,
    pub(super) store: Store,
    pub(super) job: usize,
    /// Where its files are.
    pub(super) files: Files,
    /// The digests of those for which none was promised, as far as they are known.
    pub(super) computed: BTreeMap<String, Digest>,
    pub(super) cx: FetchContext,
    /// Who is told that another process unpacks it.
    pub(super) meter: Option<FileMeter>,
}

impl Unpacking {
    /// Makes the files, or finds that somebody has made them meanwhile; records the artifact, and removes what it was made
    /// of, unless others need that.
    ///
    /// # Errors
    /// Those of [`unpack`](mod@crate::unpack) and of who checks what was made, after which what cannot be unpacked is gone; [`Error::Cancelled`] and
    /// [`Error::Io`], after which it is there for the next time. Nothing of what was made is left, unless it is recorded
    /// already, or needed by others, or the system does not let it go: that is logged, and left to
    /// [`Store::clean`](crate::store::Store::clean).
    pub(super) async fn run(self) -> Result<Files> {
        let manifest = &self.call.jobs[self.job].manifest;
        let key = made_key(manifest)?;
        let waiting = |reason| {
            if let Some(meter) = &self.meter {
                meter.waiting(reason);
            }
        };
        let lock = self.store.making_lock(&key);
        let lock = FileLock::acquire_apart(&lock, &**self.call.network.timer(), &self.cx.cancel, waiting).await?;
        // However this future ends, the work ends with it.
        let cancel = self.cx.cancel.child_token();
        let _ends = cancel.clone().drop_guard();
        blocking(move || {
            let _lock = lock;
            self.make(&key, &cancel)
        })
        .await
    }

    fn manifest(&self) -> &Manifest {
        &self.call.jobs[self.job].manifest
    }

    fn make(mut self, key: &str, cancel: &CancellationToken) -> Result<Files> {
        if let Some(made) = self.store.made(self.manifest())? {
            return self.keep(made, false);
        }
        self.look()?;
        let folder = Folder::fresh(self.store.making(key))?;
        let steps = Steps { manifest: self.manifest(), folder: &folder.0, call: &self.call, cancel };
        let made = match steps.take(&self.files) {
            Ok(made) => made,
            Err(error) => {
                drop(folder);
                if is_bad(&error) {
                    self.forget_origins();
                }
                return Err(if_full(error, || estimate(self.manifest())));
            }
        };
        if let Some(Check(check)) = &self.call.check {
            let sizes = made.iter().map(|(path, file)| (path.clone(), file.size())).collect();
            if let Err(error) = check(self.manifest(), &sizes) {
                drop(folder);
                self.forget_origins();
                return Err(error);
            }
        }
        let outputs = made.iter().map(|(path, file)| (path.clone(), file.output())).collect();
        let result = self.store.make(self.manifest(), &outputs, &self.computed)?;
        // Until it is recorded, nothing else says that these contents are needed.
        let hold = self.store.hold_made(&result)?;
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let mut published = Vec::new();
        let kept = self.publish(made.values(), &mut published).and_then(|()| {
            drop(folder);
            self.keep(result, true)
        });
        drop(hold);
        if kept.is_err()
            && let Err(error) = self.store.remove_unneeded(published)
        {
            tracing::warn!(%error, "what was unpacked and not recorded is still there; it is cleaned away later");
        }
        kept
    }

    /// Looks that all is there still, and what it is where nobody said so before.
    fn look(&mut self) -> Result<()> {
        let manifest = self.call.jobs[self.job].manifest.clone();
        for file in &manifest.files {
            let path = &self.files[&file.path];
            if !path.exists() {
                return Err(Error::DownloadFailed {
                    what: name(&manifest, &file.path),
                    reason: "it was removed before it was unpacked, perhaps since it cannot be; try again".into(),
                    retryable: true,
                    source: None,
                });
            }
            if file.digest.is_none() && !self.computed.contains_key(&file.path) {
                let trusted = self.store.trusted(&manifest, &file.path)?;
                let found = digest_file(path, trusted.as_ref().map(|trusted| &trusted.digest))?;
                if let Err(error) = untrusted(&self.store, &manifest, trusted.as_ref(), found) {
                    self.forget_origins();
                    return Err(error);
                }
                self.computed.insert(file.path.clone(), found);
            }
        }
        Ok(())
    }

    /// Removes what was refused. That it cannot be is not what is wrong.
    fn forget_origins(&self) {
        if let Err(error) = self.store.remove_origins(self.manifest(), |_| true) {
            tracing::warn!(%error, "what was refused is still there");
        }
    }

    /// Moves what was made to the contents of the store. One that is there stays, if it is what its name says: who was told
    /// that it is damaged, and deleted it where another artifact needs it, too, gets it whole. `published` gets those that
    /// were moved there, also where it fails.
    fn publish<'a>(&self, made: impl Iterator<Item = &'a File>, published: &mut Vec<PathBuf>) -> Result<()> {
        let folders = &self.call.folders;
        for file in made {
            let File::Made { path, size, digest } = file else { continue };
            let target = Target { blob: self.store.blob(&FileKey::of_digest(digest)), link: None };
            if target.has_blob(*size) {
                let found = digest_file(&target.blob, Some(digest))?;
                if found == *digest {
                    continue;
                }
                tracing::warn!(path = %target.blob.display(), %found, "what is there was changed or damaged, and is replaced");
                fs::remove_file(&target.blob).map_err(|e| Error::io("delete", &target.blob, e))?;
            }
            let blob = target.blob.clone();
            move_to(target, path, *size, folders, |from, to| fs::rename(from, to))?;
            published.push(blob);
        }
        folders.sync()
    }

    /// Records what was made, and removes what it was made of.
    fn keep(&self, made: Made, new: bool) -> Result<Files> {
        let (manifest, files) = (self.manifest(), made.files(&self.store));
        self.store.record_made(manifest, made, new, self.call.network.timer().wall())?;
        for file in &manifest.files {
            sweep(&self.call.root, &FileKey::new(manifest, file), file.size)?;
        }
        self.store.remove_origins(manifest, |file| !files.contains_key(&file.path))?;
        Ok(files)
    }
}

/// Moves the file at `path`, of `size` bytes that are on disk, to `target`, which is no link, by `rename`. On another file
/// system it becomes a copy, as a download does.
///
/// # Errors
/// [`Error::Io`] that names the target, or the file if it is not whole.
fn move_to(
    target: Target,
    path: &Path,
    size: u64,
    folders: &Folders,
    rename: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<()> {
    let blob = &target.blob;
    let folder = blob.parent().unwrap_or(blob).to_owned();
    folders.make(&folder)?;
    match rename(path, blob) {
        Ok(()) => folders.changed(&folder),
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            if !link(&[target], size, Some(path), folders)? {
                let why = format!("it should have {size} bytes, and was changed while it was unpacked; try again");
                return Err(Error::io("copy", path, io::Error::new(io::ErrorKind::InvalidData, why)));
            }
        }
        Err(e) => return Err(Error::io("move what was unpacked to", blob, e)),
    }
    Ok(())
}

/// Bytes of the disk that it takes to make the files of `manifest`, beside those of the files themselves. What is in an
/// archive is known only once it is unpacked: weights in 16 bits compress to no less than about two thirds.
pub(super) fn estimate(manifest: &Manifest) -> u64 {
    let mut sizes: BTreeMap<&str, u64> = manifest.files.iter().map(|file| (&*file.path, file.size)).collect();
    let mut sum = 0_u64;
    for step in &manifest.unpack {
        let taken: u64 = step.takes().filter_map(|name| sizes.remove(name)).fold(0, u64::saturating_add);
        match step {
            Unpack::Join { into, .. } => {
                sizes.insert(into, taken);
                sum = sum.saturating_add(taken);
            }
            _ => sum = sum.saturating_add(taken.saturating_add(taken / 2)),
        }
    }
    sum
}

/// Refuses what `manifest` joins of parts where a policy allows no file of so many bytes: unlike what is in an archive, that
/// is known before anything comes.
///
/// # Errors
/// [`Error::NotAllowed`] that names the file and the rule.
pub(super) fn check_joins(manifest: &Manifest, limits: &Limits) -> Result<()> {
    let mut sizes: BTreeMap<&str, u64> = manifest.files.iter().map(|file| (&*file.path, file.size)).collect();
    for (number, step) in manifest.unpack.iter().enumerate() {
        let taken = step.takes().filter_map(|name| sizes.remove(name)).fold(0, u64::saturating_add);
        if let Unpack::Join { into, .. } = step {
            let is_taken = manifest.unpack[number + 1..].iter().any(|step| step.takes().any(|name| name == into));
            limits.check_joined(&name(manifest, into), taken, is_taken)?;
            sizes.insert(into, taken);
        }
    }
    Ok(())
}

/// Whether `error` says that what was unpacked is not as it has to be, so that it would fail again.
fn is_bad(error: &Error) -> bool {
    matches!(error, Error::LoadFailed { .. } | Error::UnsupportedModelFormat { .. } | Error::NotAllowed { .. })
}

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    /// The folder at `path`, without what a crash left in it. Only for who has its lock.
    fn fresh(path: PathBuf) -> Result<Self> {
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("delete", path, e)),
            _ => {}
        }
        fs::create_dir_all(&path).map_err(|e| Error::io("create the folder", &path, e))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "what was unpacked is not all gone; it is cleaned away later");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use llm_local_core::{ArtifactRef, ArtifactSource, ManifestFile, Opened, Want, async_trait};

    use super::*;
    use crate::{
        disk::steps_below,
        network::{Network, NetworkConfig},
        transfer::{Job, Transfer, TransferConfig},
    };

    struct NoSource;

    #[async_trait]
    impl ArtifactSource for NoSource {
        fn scheme(&self) -> &str {
            "test"
        }

        async fn resolve(&self, reference: &ArtifactRef, _: Want, _: &FetchContext) -> Result<Manifest> {
            Err(Error::not_found(reference, "nothing is here"))
        }

        async fn open(&self, m: &Manifest, _: &ManifestFile, _: Range<u64>, _: &FetchContext) -> Result<Opened> {
            Err(Error::not_found(&m.reference, "nothing is here"))
        }
    }

    fn manifest(steps: Vec<Unpack>) -> Manifest {
        let files = ["a", "b", "c"].map(|path| ManifestFile::new(path, 1000)).into();
        Manifest::new("test:o/r@v1".parse().unwrap(), Want::Adapter, "7:1", files).unwrap().with_unpack(steps).unwrap()
    }

    #[test]
    fn the_estimate_counts_each_step() {
        let join = || Unpack::Join { parts: vec!["a".into(), "b".into()], into: "ab".into() };
        let archive = |file: &str| Unpack::Archive { file: file.into() };
        assert_eq!(estimate(&manifest(vec![])), 0);
        assert_eq!(estimate(&manifest(vec![join()])), 2000);
        assert_eq!(estimate(&manifest(vec![archive("c")])), 1500);
        assert_eq!(estimate(&manifest(vec![join(), archive("ab"), archive("c")])), 2000 + 3000 + 1500);
    }

    #[test]
    fn what_was_unpacked_gets_to_another_file_system_as_a_copy_and_a_failure_is_named() {
        const CONTENT: &[u8] = b"what was unpacked";
        let size = CONTENT.len() as u64;
        let folder = tempfile::tempdir().unwrap();
        let (path, blobs) = (folder.path().join("unpacking/0"), folder.path().join("blobs"));
        let (blob, folders) = (blobs.join("sha256-5a"), Folders::default());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, CONTENT).unwrap();
        let move_by = |size: u64, kind: io::ErrorKind| {
            let target = Target { blob: blob.clone(), link: None };
            move_to(target, &path, size, &folders, |_, _| Err(kind.into()))
        };
        let there = || fs::read_dir(&blobs).unwrap().count();
        let error = move_by(size, io::ErrorKind::PermissionDenied).unwrap_err().to_string();
        assert!(error.contains(&blob.display().to_string()), "{error}");
        let error = move_by(size + 1, io::ErrorKind::CrossesDevices).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert_eq!(there(), 0);
        move_by(size, io::ErrorKind::CrossesDevices).unwrap();
        assert_eq!((fs::read(&blob).unwrap().as_slice(), there()), (CONTENT, 1));
        // One that was cut off is replaced.
        fs::write(&blob, "what").unwrap();
        move_by(size, io::ErrorKind::CrossesDevices).unwrap();
        assert_eq!((fs::read(&blob).unwrap().as_slice(), there()), (CONTENT, 1));
        let copies = steps_below(&blobs).into_iter().map(|step| step.what);
        assert_eq!(Vec::from_iter(copies), ["sync", "rename", "sync", "rename"], "no name before the disk has it");
    }

    /// One that is cancelled while it unpacks: as far as the first look at the token, which is inside of an archive or of
    /// a part.
    #[test]
    fn a_cancel_while_unpacking_leaves_what_came_and_nothing_else() {
        for steps in [
            vec![Unpack::Archive { file: "a.zip".into() }],
            vec![Unpack::Join { parts: vec!["a.zip".into()], into: "a.gguf".into() }],
        ] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::new(folder.path());
            let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
            zip.start_file("config.json", zip::write::SimpleFileOptions::default()).unwrap();
            io::Write::write_all(&mut zip, b"{}").unwrap();
            let bytes = zip.finish().unwrap().into_inner();
            let digest = crate::disk::digest_bytes(&bytes, None).unwrap();
            let file = ManifestFile::new("a.zip", bytes.len() as u64).with_digest(digest);
            let reference: ArtifactRef = "test:o/r@v1".parse().unwrap();
            let manifest = Manifest::new(reference, Want::Adapter, "7:1", vec![file]).unwrap();
            let manifest = manifest.with_unpack(steps).unwrap();
            let blob = store.blob(&FileKey::of_digest(&digest));
            fs::create_dir_all(blob.parent().unwrap()).unwrap();
            fs::write(&blob, &bytes).unwrap();
            let transfer = Transfer::new(Network::new(NetworkConfig::new()), store.clone(), TransferConfig::new());
            let unpacking = || Unpacking {
                call: transfer.call(vec![Job::new(Arc::new(NoSource), manifest.clone())]),
                store: store.clone(),
                job: 0,
                files: [("a.zip".to_owned(), blob.clone())].into(),
                computed: BTreeMap::new(),
                cx: FetchContext::new(),
                meter: None,
            };
            let cancel = CancellationToken::new();
            cancel.cancel();
            let key = made_key(&manifest).unwrap();
            assert!(matches!(unpacking().make(&key, &cancel), Err(Error::Cancelled)));
            let names = |folder: &Path| {
                let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
                entries.collect::<Vec<_>>()
            };
            let blobs = || names(blob.parent().unwrap());
            assert!(blob.exists() && blobs().len() == 1 && !store.making(&key).exists());
            assert!(store.list().unwrap().artifacts.is_empty());
            unpacking().make(&key, &CancellationToken::new()).unwrap();
            assert!(blobs().len() == 1 && !store.making(&key).exists(), "{:?} {:?}", blobs(), names(folder.path()));
            assert_eq!(store.list().unwrap().artifacts.len(), 1);
            // Whoever comes with an archive that somebody removed meanwhile is told so.
            store.delete(&manifest.reference).unwrap();
            let error = unpacking().make(&key, &CancellationToken::new()).unwrap_err();
            assert!(error.is_retryable() && error.to_string().contains("a.zip"), "{error}");
        }
    }
}
