//! What the files of a version were when they were first fetched: the owner of a release promises that a tag always means
//! the same, and nothing but this holds him to it. It outlasts the files themselves, and goes when a user deletes the
//! version.
//!
//! What a file was is remembered for all refs of a location, and which files a version has for each group of refs: another
//! file under another name would otherwise be one of which nothing is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use llm_local_core::{ArtifactRef, Digest, Error, Manifest, ManifestFile, Result, Want};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{
    Store,
    group::{Group, asks_for, at_version, hex_of},
    ledger::{Ledger, files_ending},
    record::{Record, from_millis, to_millis},
    tree,
};
use crate::{disk::write_text_atomically, location::Location};

/// The version of the form that is written and read.
const VERSION: u32 = 1;

/// What one file of a version was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trusted {
    form: u32,
    /// The ref by which it was asked for first.
    reference: ArtifactRef,
    want: Want,
    revision: String,
    version: String,
    path: String,
    size: u64,
    pub(crate) digest: Digest,
    /// Milliseconds since 1970.
    at: u64,
}

/// How bytes differ from those that were fetched first.
pub(crate) enum Differs {
    /// They are so many.
    Size(u64),
    /// They have this digest.
    Digest(Digest),
}

impl Trusted {
    /// Compares what is told of `file` with this. Digests of two kinds cannot be compared: then the bytes decide.
    pub(crate) fn differs(&self, file: &ManifestFile) -> Option<Differs> {
        if file.size != self.size {
            return Some(Differs::Size(file.size));
        }
        let told = file.digest.filter(|digest| self.is_comparable(digest));
        told.filter(|digest| *digest != self.digest).map(Differs::Digest)
    }

    /// Whether `digest` is of the kind that is remembered.
    pub(crate) fn is_comparable(&self, digest: &Digest) -> bool {
        std::mem::discriminant(digest) == std::mem::discriminant(&self.digest)
    }

    /// Whether `which` names it.
    pub(super) fn is(&self, which: &ArtifactRef) -> bool {
        let r = &self.reference;
        which.fragment().is_none_or(|it| Some(it) == r.fragment() || it == self.path)
            && asks_for(which, r, &self.revision, Some(&self.version))
    }

    /// Whether `revision` is the pinned one that it came from, or the version.
    pub(super) fn is_at(&self, revision: &str) -> bool {
        self.version == revision || self.revision == revision
    }

    /// The group of the artifact that brought it.
    pub(super) fn group(&self) -> Group<'_> {
        Group::of_resolved(&self.reference, &self.revision, self.want)
    }

    /// Whether `record` has this file.
    fn is_of(&self, record: &Record) -> bool {
        Location::of_resolved(&record.reference, &record.revision)
            == Location::of_resolved(&self.reference, &self.revision)
            && record.named.as_deref() == Some(self.version.as_str())
            && record.manifest().is_ok_and(|manifest| manifest.file(&self.path).is_some())
    }

    /// The day on which it was fetched, by UTC.
    fn day(&self) -> String {
        let at = OffsetDateTime::from(from_millis(self.at));
        format!("{:04}-{:02}-{:02}", at.year(), u8::from(at.month()), at.day())
    }
}

impl Store {
    /// What is remembered of the file called `path` of `manifest`, if that has a version.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidSpec`] that names what is remembered, if it cannot be read.
    pub(crate) fn trusted(&self, manifest: &Manifest, path: &str) -> Result<Option<Trusted>> {
        match &manifest.version {
            Some(version) => {
                let location = Location::of_resolved(&manifest.reference, &manifest.revision);
                let first = read(&self.trust_path(location, version, path))?;
                let group = Group::of_resolved(&manifest.reference, &manifest.revision, manifest.want);
                first.map_or_else(|| read(&self.trust_path_of(&group, version, path)), |first| Ok(Some(first)))
            }
            None => Ok(None),
        }
    }

    /// The versions of what `reference` names, wanted as `want`, of which is remembered what their files were, whether or
    /// not they are kept.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remembered(&self, reference: &ArtifactRef, want: Want) -> Result<BTreeSet<String>> {
        let group = Group::of(reference, want);
        let all = self.all_trusted()?.into_iter();
        Ok(all.filter(|(_, trusted)| trusted.group() == group).map(|(_, trusted)| trusted.version).collect())
    }

    /// What the files of `manifest` are by the records of its revision, whatever version that was fetched as.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn known(&self, manifest: &Manifest) -> Result<BTreeMap<String, Digest>> {
        let location = Location::of_resolved(&manifest.reference, &manifest.revision);
        self.digests_by(manifest, |record| Location::of_resolved(&record.reference, &record.revision) == location)
    }

    /// Holds what is told of the files of `manifest`, or else known of what is here of it, against what they were when
    /// they were first fetched.
    ///
    /// # Errors
    /// [`Error::IntegrityFailed`] for the first that differs, or if there are others than there were; as
    /// [`Store::trusted`].
    pub(crate) fn check_trust(&self, manifest: &Manifest) -> Result<()> {
        let mut known = None;
        for file in &manifest.files {
            let Some(trusted) = self.trusted(manifest, &file.path)? else { continue };
            let mut file = file.clone();
            if file.digest.is_none() {
                let known = match &mut known {
                    Some(known) => known,
                    none => none.insert(self.known(manifest)?),
                };
                file.digest = known.get(&file.path).copied();
            }
            if let Some(differs) = trusted.differs(&file) {
                return Err(self.replaced(manifest, &trusted, &differs));
            }
        }
        manifest.version.as_ref().map_or(Ok(()), |version| self.check_names(manifest, version))
    }

    /// Holds the names of the files of `manifest` against those that `version` had when it was first fetched.
    fn check_names(&self, manifest: &Manifest, version: &str) -> Result<()> {
        let group = Group::of_resolved(&manifest.reference, &manifest.revision, manifest.want);
        let mut trusted: Vec<_> = self.all_trusted()?.into_iter().map(|(_, trusted)| trusted).collect();
        trusted.retain(|trusted| trusted.group() == group && trusted.version == version);
        // A revision never changes: if other files of it are wanted than before, they are of the same release.
        if trusted.iter().any(|trusted| trusted.revision == manifest.revision) {
            return Ok(());
        }
        let is: BTreeSet<_> = manifest.files.iter().map(|file| file.path.clone()).collect();
        let mut was: BTreeSet<_> = trusted.iter().map(|trusted| trusted.path.clone()).collect();
        let Some(first) = trusted.iter().min_by_key(|trusted| trusted.at).filter(|_| was != is) else { return Ok(()) };
        // Nothing is remembered of files of which no digest was ever known.
        let ledger = self.ledger()?;
        for record in ledger.of_group(&group).filter(|record| record.named.as_deref() == Some(version)) {
            was.extend(record.manifest()?.files.into_iter().map(|file| file.path));
        }
        if was == is {
            return Ok(());
        }
        let list = |names: &BTreeSet<String>| {
            Vec::from_iter(names.iter().map(|name| format!("`{}`", name.escape_debug()))).join(", ")
        };
        let names = self.that_have(&trusted);
        Err(Error::IntegrityFailed {
            what: format!("the files of {}", manifest.reference),
            expected: format!("{}, as they were first fetched under `{version}` on {}", list(&was), first.day()),
            found: format!(
                "{}: files were replaced in the release; to accept the new ones, delete (`rm`) what is kept of \
                 `{version}`: {names}",
                list(&is)
            ),
        })
    }

    /// The error for a file that is not what it was.
    pub(crate) fn replaced(&self, manifest: &Manifest, trusted: &Trusted, differs: &Differs) -> Error {
        let (was, is) = match differs {
            Differs::Size(size) => (format!("{} bytes", trusted.size), format!("{size} bytes")),
            Differs::Digest(digest) => (trusted.digest.to_string(), digest.to_string()),
        };
        let Trusted { version, path, .. } = trusted;
        let names = self.that_have(std::slice::from_ref(trusted));
        Error::IntegrityFailed {
            what: format!("{path} of {}", manifest.reference),
            expected: format!("{was}, as it was first fetched under `{version}` on {}", trusted.day()),
            found: format!(
                "{is}: the file was replaced in the release; to accept the new one, delete (`rm`) what is kept of \
                 `{version}`: {names}"
            ),
        }
    }

    /// The refs whose deletion makes these files of a version forgotten.
    fn that_have(&self, trusted: &[Trusted]) -> String {
        let records = self.ledger().map(|ledger| ledger.records).unwrap_or_default();
        let refs = trusted.iter().flat_map(|trusted| {
            let of = records.iter().filter(|record| trusted.is_of(record));
            let refs = of.map(|record| (&record.reference, &record.revision));
            let refs = refs.chain([(&trusted.reference, &trusted.revision)]);
            refs.map(|(r, revision)| at_version(r, revision, &trusted.version)).collect::<Vec<_>>()
        });
        let refs: BTreeSet<_> = refs.map(|reference| reference.to_string()).collect();
        Vec::from_iter(refs.iter().map(|reference| format!("`{reference}`"))).join(" and ")
    }

    /// Remembers the files of `record`, which is written, unless something is remembered of them. Only for those who
    /// have the right to change the store.
    pub(super) fn trust(&self, record: &Record, now: SystemTime) -> Result<()> {
        let Some(version) = &record.named else { return Ok(()) };
        for (path, size, digest) in record.sourced() {
            // Of one of which no digest is known there is nothing to remember yet.
            let Some(digest) = digest else { continue };
            let location = Location::of_resolved(&record.reference, &record.revision);
            let first = self.trust_path(location, version, path);
            let of_group = self.trust_path_of(&record.group(), version, path);
            let at = match read(&first)? {
                None if of_group.exists() => continue,
                None => first,
                Some(known) if known.group() == record.group() || of_group.exists() => continue,
                Some(_) => of_group,
            };
            let trusted = Trusted {
                form: VERSION,
                reference: record.reference.clone(),
                want: record.want,
                revision: record.revision.clone(),
                version: version.clone(),
                path: path.clone(),
                size,
                digest,
                at: to_millis(now),
            };
            let text = serde_json::to_string_pretty(&trusted);
            let text =
                text.map_err(|e| Error::invalid_spec(format!("{path} of {}", record.reference), e.to_string()))?;
            write_text_atomically(&at, &text)?;
        }
        Ok(())
    }

    /// Forgets `trusted` and what is remembered of the files of the records `going`, unless one that stays has them. Only
    /// for those who have the right to change the store, once the records are gone.
    pub(super) fn forget(&self, ledger: &Ledger, going: &[usize], trusted: Vec<(PathBuf, Trusted)>) -> Result<()> {
        let records = |goes: bool| {
            let all = ledger.records.iter().enumerate();
            all.filter(move |(number, _)| going.contains(number) == goes).map(|(_, record)| record)
        };
        let mut all = trusted;
        if records(true).any(|record| record.named.is_some()) {
            let of_going = |t: &Trusted| records(true).any(|record| t.is_of(record));
            all.extend(self.all_trusted()?.into_iter().filter(|(_, trusted)| of_going(trusted)));
        }
        for (path, trusted) in all {
            // What says no more than that a group has the file goes with that group.
            let location = Location::of_resolved(&trusted.reference, &trusted.revision);
            let is_of_all = path == self.trust_path(location, &trusted.version, &trusted.path);
            let has_it = |record: &Record| trusted.is_of(record) && (is_of_all || record.group() == trusted.group());
            if !records(false).any(has_it) {
                tree::remove(&path)?;
            }
        }
        Ok(())
    }

    /// All that is remembered and can be read, and where.
    pub(super) fn all_trusted(&self) -> Result<Vec<(PathBuf, Trusted)>> {
        let read = |path: PathBuf| {
            let trusted = read(&path).unwrap_or_else(|error| {
                tracing::warn!(%error, "what is remembered of a file is passed over");
                None
            });
            Some((path, trusted?))
        };
        Ok(files_ending(&self.trust_folder(), ".json")?.into_iter().filter_map(read).collect())
    }

    fn trust_path(&self, location: Location<'_>, version: &str, path: &str) -> PathBuf {
        let Location { scheme, locator, part } = location;
        let name = hex_of([Some(scheme), Some(locator), part, Some(version), Some(path)].into_iter().flatten());
        self.trust_folder().join(format!("{name}.json"))
    }

    /// Where it is remembered that `version` has the file also for the refs of `group`, if it came by others first.
    fn trust_path_of(&self, group: &Group<'_>, version: &str, path: &str) -> PathBuf {
        let name = hex_of([group.key().as_str(), version, path]);
        self.trust_folder().join(format!("{name}.json"))
    }

    fn trust_folder(&self) -> PathBuf {
        self.root().join("trust")
    }
}

/// What is remembered at `path`, if anything is.
fn read(path: &Path) -> Result<Option<Trusted>> {
    #[derive(Deserialize)]
    struct Form {
        form: u32,
    }
    let text = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| Error::io("read", path, e))?,
    };
    let bad = |reason: String| {
        let reason = format!(
            "it says what a file of a version was when it was first fetched, but cannot be read: {reason}; remove it to \
             accept the file as it is now"
        );
        Error::invalid_spec(path.display().to_string(), reason)
    };
    // One that is newer may have other fields, and is not to be removed for that.
    let Form { form } = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    if form != VERSION {
        let reason = format!("it has form {form}, and this program knows {VERSION}; update the program");
        return Err(Error::invalid_spec(path.display().to_string(), reason));
    }
    serde_json::from_slice(&text).map(Some).map_err(|e| bad(e.to_string()))
}
