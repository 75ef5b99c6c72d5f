//! What tells a loaded model from others: its content, wherever it lies.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use llm_local_core::{Digest, Error, Manifest, Result};
use llm_local_source_common::transfer::Files;
use llm_local_weights::Checkpoint;
use sha2::{Digest as _, Sha256};

use super::seen::{Seen, Stamp};
use crate::{
    blocking::{Wanted, blocking_while_wanted},
    content,
};

/// What a model is made of, by content: the same on every machine, in every folder, and from every source that lists the
/// same files.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelDigest {
    /// Of the base: `sha256:` and the SHA-256 over a line per file, sorted by name, of name, size and the SHA-256 of its
    /// bytes. The name says what a file is for (`tokenizer.json`) or which of several weight files it is; the one weight
    /// file of a base, whatever it is called, has an empty one. A base without files, run by an engine elsewhere, has
    /// `revision:` and that of its ref and revision.
    pub base: String,
    /// Of the adapters that the model has, as [`llm_local_core::AdapterSet::digest`]: digest and weight of each in order; empty for the base alone.
    /// Where tensors were quantized again with them merged in, `+requantized` follows: such weights are others.
    pub adapters: String,
}

/// What the digest of a base ([`ModelDigest::base`]) is made from. Reading all weights takes about as long as loading them, so it is done when it
/// is first asked for.
pub(crate) struct Identity {
    model: String,
    /// What stands for a base without files.
    revision: String,
    files: Vec<IdentityFile>,
    /// Where they are, each by the name that its source gives it.
    paths: Files,
    base: Mutex<Option<Reading>>,
}

/// The digest of a base while it is computed, and then. It goes on when those who wait for it are gone, since they may
/// ask again; not when the model is.
type Reading = Shared<BoxFuture<'static, Result<String>>>;

#[derive(Clone)]
struct IdentityFile {
    /// As [`ModelDigest::base`] has it.
    name: String,
    path: PathBuf,
    /// What was there before it was loaded: content read later must be what was loaded.
    seen: Seen,
    stamp: Option<Stamp>,
    /// What its source says.
    digest: Option<Digest>,
}

impl Identity {
    /// The identity of the base `manifest`, whose files are at `files`. It is of what is there now: to be made before they are
    /// opened, and [checked](Identity::check_unchanged) then.
    pub(super) fn new(model: String, manifest: &Manifest, files: &Files) -> Result<Self> {
        let mut listed = Vec::new();
        // Not those of the manifest, of which some may be archives: what came out of them is the model.
        for (name, path) in files {
            let (seen, stamp) = Seen::with_stamp(path)?;
            listed.push(IdentityFile {
                name: name.clone(),
                path: path.clone(),
                seen,
                stamp,
                digest: manifest.file(name).and_then(|file| file.digest),
            });
        }
        let mut weights = listed.iter_mut().filter(|file| is_weights(&file.name));
        if let (Some(only), None) = (weights.next(), weights.next()) {
            only.name.clear();
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            model,
            revision: format!("{}\0{}", manifest.reference, manifest.revision),
            files: listed,
            paths: files.clone(),
            base: Mutex::new(None),
        })
    }

    /// The digest; the first call reads every file whose SHA-256 its source did not say. Calls that come meanwhile, or
    /// after the first was dropped, wait for that reading.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::LoadFailed`] if a file has changed since the model was loaded.
    pub(crate) async fn base(&self) -> Result<String> {
        self.reading().await
    }

    /// Of each file a line that tells its content from another without reading it: name, size, the digest that its source
    /// says or else its path, and its stamp. The stamp is there beside a digest too, which a file may have no longer: a load
    /// without a lock does not compare it, and what was made of a damaged file must not be taken for one of the repaired
    /// one. `None` for a base without files, and where the system does not keep times.
    pub(super) fn known(&self) -> Option<Vec<String>> {
        let lines = self.files.iter().map(|file| file.known(file.seen.size, file.stamp.as_ref()));
        lines.collect::<Option<Vec<_>>>().filter(|lines| !lines.is_empty())
    }

    /// As [`Identity::known`], of what is there now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn known_now(&self) -> Result<Option<Vec<String>>> {
        let line = |file: &IdentityFile| {
            let (seen, stamp) = Seen::with_stamp(&file.path)?;
            Ok(file.known(seen.size, stamp.as_ref()))
        };
        let lines = self.files.iter().map(line).collect::<Result<Option<Vec<_>>>>()?;
        Ok(lines.filter(|lines| !lines.is_empty()))
    }

    /// Checks that all files are those that were there when this was made.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] that names the file; [`Error::Io`].
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check_unchanged(&self.model))
    }

    /// Opens the base again, as it was opened for the load. Headers are read, weights are not.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::LoadFailed`] if a file has changed since the model was loaded; [`Error::Io`].
    pub(super) fn open_again(&self) -> Result<Checkpoint> {
        let opened = Checkpoint::open(&self.model, &self.paths)?;
        // Behind the opening: what is mapped is what is looked at, or older.
        self.check_unchanged()?;
        Ok(opened)
    }

    /// The reading that runs or has succeeded, else a new one.
    fn reading(&self) -> Reading {
        let mut slot = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(reading) if !matches!(reading.clone().now_or_never(), Some(Err(_))) => reading.clone(),
            _ => slot.insert(self.read()).clone(),
        }
    }

    fn read(&self) -> Reading {
        if self.files.is_empty() {
            let revision = format!("revision:{}", hex(Sha256::digest(&self.revision)));
            return async { Ok(revision) }.boxed().shared();
        }
        let (files, model) = (self.files.clone(), self.model.clone());
        let read = blocking_while_wanted("digest", move |wanted| {
            let mut all = Sha256::new();
            for file in &files {
                let digest = match file.digest {
                    Some(digest @ Digest::Sha256(_)) => digest,
                    _ => file.hash(&model, wanted)?,
                };
                all.update(format!("{}\0{}\0{digest}\n", file.name, file.seen.size));
            }
            Ok(format!("sha256:{}", hex(all.finalize())))
        });
        read.boxed().shared()
    }
}

impl IdentityFile {
    fn known(&self, size: u64, stamp: Option<&Stamp>) -> Option<String> {
        let (name, stamp) = (&self.name, stamp?);
        Some(match &self.digest {
            Some(digest) => format!("{name} {size} {digest} {stamp}"),
            None => format!("{name} {size} {} {stamp}", self.path.display()),
        })
    }

    fn hash(&self, model: &str, wanted: &Wanted) -> Result<Digest> {
        let (size, digest) = content::hash(&self.path, wanted)?;
        if size != self.seen.size {
            return Err(self.changed(model));
        }
        self.check_unchanged(model)?;
        Ok(digest)
    }

    fn check_unchanged(&self, model: &str) -> Result<()> {
        if Seen::now(&self.path)? == self.seen { Ok(()) } else { Err(self.changed(model)) }
    }

    fn changed(&self, model: &str) -> Error {
        let reason = format!(
            "{} has changed since it was opened, so what was read of it can no longer be told; \
             unload the model, if it is loaded, and try again",
            self.path.display()
        );
        Error::load(model, reason)
    }
}

/// Whether a file that its source calls `name` has weights.
fn is_weights(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf") || e.eq_ignore_ascii_case("safetensors"))
}

/// Bytes as text.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_local_core::{ManifestFile, Want};
    use pollster::block_on;

    /// A folder with two files, and its identity. `known`: whether the source says their digests.
    fn folder(weights: &[u8], known: bool) -> (tempfile::TempDir, Identity) {
        with_files(&[("weights", weights), ("config", b"{}")], known)
    }

    fn with_files(named: &[(&str, &[u8])], known: bool) -> (tempfile::TempDir, Identity) {
        let folder = tempfile::tempdir().unwrap();
        let (mut files, mut listed) = (Files::new(), Vec::new());
        for &(name, bytes) in named {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            files.insert(name.into(), folder.path().join(name));
            let file = ManifestFile::new(name, bytes.len() as u64);
            let digest = Digest::Sha256(Sha256::digest(bytes).into());
            listed.push(if known { file.with_digest(digest) } else { file });
        }
        let reference = llm_local_core::ArtifactRef::file(folder.path()).unwrap();
        let manifest = Manifest::new(reference, Want::Model, folder.path().display().to_string(), listed).unwrap();
        let identity = Identity::new("m".into(), &manifest, &files).unwrap();
        (folder, identity)
    }

    #[test]
    fn the_digest_is_of_the_content_and_not_of_the_place_or_source() {
        let (_keep, one) = folder(b"abc", false);
        let (_moved, other) = folder(b"abc", true);
        let (_changed, changed) = folder(b"abd", false);
        let one = block_on(one.base()).unwrap();
        assert_eq!(one, block_on(other.base()).unwrap());
        assert_ne!(one, block_on(changed.base()).unwrap());
        assert_eq!(one, EXPECTED);
    }

    /// By coreutils: `printf 'config\x002\x00sha256:%s\nweights\x003\x00sha256:%s\n' $A $B | sha256sum`, with the sums of
    /// `{}` and `abc`.
    const EXPECTED: &str = "sha256:0d7226e56f7413482388c058eb59cb3e95fb2dade4b06bee6f471dbde5b83e83";

    #[test]
    fn the_one_weight_file_may_have_any_name_and_others_may_not() {
        let base = |named: &[(&str, &[u8])]| {
            let (_keep, identity) = with_files(named, false);
            block_on(identity.base()).unwrap()
        };
        assert_eq!(base(&[("model.gguf", b"abc")]), base(&[("Model-Q4_0.GGUF", b"abc")]));
        assert_ne!(base(&[("model.gguf", b"abc")]), base(&[("model.gguf", b"abd")]));
        // Sorted as the unnamed file that it is: first.
        let one = base(&[("a.safetensors", b"abc"), ("config", b"{}")]);
        assert_eq!(one, base(&[("z.safetensors", b"abc"), ("config", b"{}")]));
        assert_eq!(one, UNNAMED);
        // What a file is for is in its name, and of several weight files each one's place.
        assert_ne!(one, base(&[("a.safetensors", b"abc"), ("tokenizer", b"{}")]));
        let shards = base(&[("1.safetensors", b"abc"), ("2.safetensors", b"abd")]);
        assert_ne!(shards, base(&[("2.safetensors", b"abc"), ("1.safetensors", b"abd")]));
        assert_ne!(shards, base(&[("1.safetensors", b"abc"), ("3.safetensors", b"abd")]));
    }

    /// As [`EXPECTED`], with `printf '\x003\x00sha256:%s\nconfig\x002\x00sha256:%s\n' $B $A | sha256sum`.
    const UNNAMED: &str = "sha256:65c1f201bb7306bd37fcf010aaa2cf0a98bd32fc41d50e2aedac6cb6057422c8";

    #[test]
    fn a_reading_goes_on_for_the_next_caller_and_is_the_only_one() {
        let (keep, identity) = folder(b"abc", false);
        let first = identity.reading();
        // A caller that gives up.
        drop(identity.base().now_or_never());
        assert!(identity.reading().ptr_eq(&first));
        let digest = block_on(identity.base()).unwrap();
        assert_eq!(digest, EXPECTED);
        // Nothing is read again.
        std::fs::remove_file(keep.path().join("weights")).unwrap();
        assert_eq!(block_on(identity.base()).unwrap(), digest);
    }

    #[test]
    fn a_reading_that_failed_is_tried_again() {
        let (keep, identity) = folder(b"abc", false);
        let (weights, aside) = (keep.path().join("weights"), keep.path().join("aside"));
        std::fs::rename(&weights, &aside).unwrap();
        assert_eq!(block_on(identity.base()).unwrap_err().code(), "io");
        std::fs::rename(&aside, &weights).unwrap();
        assert_eq!(block_on(identity.base()).unwrap(), EXPECTED);
    }

    #[test]
    fn a_reading_stops_when_nobody_can_ask_for_it() {
        let (_keep, identity) = folder(b"abc", false);
        let wanted = Wanted::new();
        identity.files[0].hash("m", &wanted).unwrap();
        wanted.give_up();
        assert!(matches!(identity.files[0].hash("m", &wanted), Err(Error::Cancelled)));
    }

    #[test]
    fn a_file_that_changed_after_the_load_has_no_digest() {
        let (keep, identity) = folder(b"abc", false);
        std::fs::write(keep.path().join("weights"), b"abcd").unwrap();
        let error = block_on(identity.base()).unwrap_err().to_string();
        assert!(error.contains("weights has changed since"), "{error}");
    }

    /// Puts other bytes in the place of the file at `path`, of the same size and time, as a copy that keeps times does.
    fn replace(path: &Path, bytes: &[u8]) {
        let modified = std::fs::metadata(path).unwrap().modified().unwrap();
        let new = path.with_extension("new");
        std::fs::write(&new, bytes).unwrap();
        std::fs::File::options().write(true).open(&new).unwrap().set_modified(modified).unwrap();
        std::fs::rename(&new, path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn another_file_of_the_same_size_and_time_is_known_for_another_whether_or_not_its_source_says_a_digest() {
        for has_digest in [false, true] {
            let (keep, identity) = folder(b"abc", has_digest);
            let known = identity.known();
            assert_eq!(known.as_ref().map(Vec::len), Some(2));
            assert_eq!(identity.known_now().unwrap(), known);
            identity.check_unchanged().unwrap();
            replace(&keep.path().join("weights"), b"abd");
            assert_ne!(identity.known_now().unwrap(), known);
            assert_eq!(identity.known(), known, "it is of what was there");
            let error = identity.check_unchanged().unwrap_err().to_string();
            assert!(error.contains("weights has changed"), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn bytes_written_in_place_under_the_old_time_are_known_for_others() {
        let (keep, identity) = folder(b"abc", true);
        let path = keep.path().join("weights");
        let at_once = std::fs::metadata(&path).unwrap();
        // The clock of a file system is coarse.
        while changed_at(&path) == changed_of(&at_once) {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            std::io::Write::write_all(&mut &file, b"abd").unwrap();
            file.set_modified(at_once.modified().unwrap()).unwrap();
        }
        assert_ne!(identity.known_now().unwrap(), identity.known());
    }

    #[cfg(unix)]
    fn changed_at(path: &Path) -> (i64, i64) {
        changed_of(&std::fs::metadata(path).unwrap())
    }

    #[cfg(unix)]
    fn changed_of(meta: &std::fs::Metadata) -> (i64, i64) {
        use std::os::unix::fs::MetadataExt as _;
        (meta.ctime(), meta.ctime_nsec())
    }

    #[test]
    fn a_base_without_files_is_told_by_its_revision() {
        let reference: llm_local_core::ArtifactRef = "remote:x".parse().unwrap();
        let identity = |revision: &str| {
            let manifest = Manifest::new(reference.clone(), Want::Model, revision, vec![]).unwrap();
            let identity = Identity::new("m".into(), &manifest, &Files::new()).unwrap();
            block_on(identity.base()).unwrap()
        };
        assert!(identity("1").starts_with("revision:"));
        assert_ne!(identity("1"), identity("2"));
    }
}
