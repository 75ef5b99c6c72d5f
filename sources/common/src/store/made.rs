//! Artifacts whose files were made of those that their source has: archives unpacked, parts joined.
//!
//! The record lists what was made, as contents of this store like any others, and beside that what it was made of, which
//! goes. So it is found again without the archive, by whatever ref of the same revision.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use llm_local_core::{Digest, Error, Manifest, ManifestFile, Placement, Result};

use super::{
    Came, Hold, Store,
    below::{Below, real},
    entry::{Origin, Place, RecordFile, place},
    group::hex_of,
    hold::Held,
    ledger::Ledger,
    record::Record,
    tree,
    usage::Usage,
};
use crate::{disk::FileKey, location::Location};

/// What was made of the files of an artifact.
#[derive(Debug, Clone)]
pub(crate) struct Made(Record);

/// A file of it.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    /// One of the manifest, as it is, at this path.
    Same(PathBuf),
    /// One with this size and SHA-256.
    Content(u64, Digest),
}

impl Made {
    /// Its files: their paths in the artifact, and where they are used.
    pub(crate) fn files(&self, store: &Store) -> BTreeMap<String, PathBuf> {
        self.0.own_files().map(|file| (file.path.clone(), self.0.used_path(store.root(), file))).collect()
    }
}

/// The name of what is made of `manifest`, whatever ref it was resolved from: of a lock, and of a folder.
pub(crate) fn made_key(manifest: &Manifest) -> Result<String> {
    let r = &manifest.reference;
    let how = serde_json::to_string(&(manifest.want, &manifest.files, &manifest.unpack));
    let how = how.map_err(|e| Error::invalid_spec(format!("manifest of {r}"), e.to_string()))?;
    Ok(hex_of(
        Location::of_resolved(r, &manifest.revision).parts().into_iter().chain([manifest.revision.as_str(), &how]),
    ))
}

impl Store {
    /// What was made of `manifest`, if all of it is here: nothing of one without steps.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn made(&self, manifest: &Manifest) -> Result<Option<Made>> {
        if manifest.unpack.is_empty() {
            return Ok(None);
        }
        let mut records = self.ledger()?.records;
        records.retain(|record| record.is_made_of(manifest));
        // As it was asked for, if it was so.
        records.sort_by_key(|record| record.reference != manifest.reference);
        Ok(records.into_iter().find(|record| record.is_whole(self.root())).map(Made))
    }

    /// That `outputs`, by their paths in the artifact, are what `manifest` becomes. `computed` has the digests of its files
    /// for which none was promised.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] as [`Store::record`].
    pub(crate) fn make(
        &self,
        manifest: &Manifest,
        outputs: &BTreeMap<String, Output>,
        computed: &BTreeMap<String, Digest>,
    ) -> Result<Made> {
        let file = |(path, output): (&String, &Output)| -> Result<RecordFile> {
            let file = |size, digest, computed, place| RecordFile {
                path: path.clone(),
                size,
                digest,
                computed,
                fetched: None,
                former: false,
                place,
            };
            Ok(match output {
                Output::Content(size, digest) => {
                    let blob = Below::new(self.root(), &self.blob(&FileKey::of_digest(digest)))?;
                    file(*size, Some(*digest), None, Place::Blob(blob))
                }
                Output::Same(used) => {
                    let Some(same) = manifest.file(path) else {
                        let reason = format!("its manifest has no file `{path}`");
                        return Err(Error::invalid_spec(format!("record of {}", manifest.reference), reason));
                    };
                    let place = place(self, manifest, same, None, Some(used))?;
                    file(same.size, same.digest, computed.get(path).copied(), place)
                }
            })
        };
        let mut record = Record::without_files(manifest, None)?;
        record.files = outputs.iter().map(file).collect::<Result<_>>()?;
        record.origins = Origin::all(manifest, computed);
        Ok(Made(record))
    }

    /// [`Store::hold`] of what was made, or is about to be published.
    ///
    /// # Errors
    /// As [`Store::hold`].
    pub(crate) fn hold_made(&self, made: &Made) -> Result<Hold> {
        self.hold_as(made.0.clone())
    }

    /// Records what was made of `manifest`. `came` says whether it was made now.
    ///
    /// # Errors
    /// As [`Store::record_files`].
    pub(crate) fn record_made(&self, manifest: &Manifest, made: Made, came: bool, now: SystemTime) -> Result<()> {
        let record = made.0.of(manifest)?;
        let paths = record.own_files().filter(|_| came).map(|file| (file.path.clone(), Came::Fetched));
        let came = paths.collect();
        self.keep_noted(record, &came, now)
    }

    /// What a hold of `manifest` needs: what was made of it, or else what that is to be made of.
    pub(super) fn needs(&self, manifest: &Manifest, placement: Option<&Placement>) -> Result<Record> {
        match self.made(manifest)? {
            Some(made) => made.0.of(manifest),
            None => Record::new(self, manifest, None, &Default::default(), placement),
        }
    }

    /// Removes the contents in this store of the files of `manifest` for which `goes` says so, unless another artifact
    /// needs them: what was unpacked, or cannot be.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Cancelled`] as [`Store::with_cancel`].
    pub(crate) fn remove_origins(&self, manifest: &Manifest, goes: impl Fn(&ManifestFile) -> bool) -> Result<()> {
        let blob = |file: &ManifestFile| self.blob(&FileKey::new(manifest, file));
        let blobs: Vec<_> = manifest.files.iter().filter(|file| goes(file)).map(blob).filter(|b| b.exists()).collect();
        let this = Record::without_files(manifest, None)?.key();
        let is_made = |needs: &Record, ledger: &Ledger| {
            let mut records = ledger.records.iter();
            !needs.unpack.is_empty() && records.any(|r| r.key() == needs.key() && r.is_whole(self.root()))
        };
        // Whoever waits for what is made here, or has it, needs what it is made of no more.
        self.remove_unless_needed(blobs, |needs, ledger| needs.key() != this && !is_made(needs, ledger))
    }

    /// Removes these contents of this store, unless an artifact needs them, or who holds one.
    ///
    /// # Errors
    /// As [`Store::remove_origins`].
    pub(crate) fn remove_unneeded(&self, blobs: Vec<PathBuf>) -> Result<()> {
        self.remove_unless_needed(blobs, |_, _| true)
    }

    /// As [`Store::remove_unneeded`], of the holds those for which `counts` says so.
    fn remove_unless_needed(&self, blobs: Vec<PathBuf>, counts: impl Fn(&Record, &Ledger) -> bool) -> Result<()> {
        if blobs.is_empty() {
            return Ok(());
        }
        let _changing = self.change()?;
        let (ledger, mut held) = (self.ledger()?, self.held()?);
        // What nobody can read may name any of it.
        if ledger.has_unknown() {
            return Ok(());
        }
        held.retain(|held| !matches!(held, Held::Needs(needs) if !counts(needs, &ledger)));
        let usage = Usage::new(self, &ledger.records, &ledger.unreadable, &held);
        for path in blobs {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !usage.has_content(&real(&path), &name) {
                tree::remove(&path)?;
            }
        }
        Ok(())
    }

    /// The folder in which what has this key is made.
    pub(crate) fn making(&self, key: &str) -> PathBuf {
        self.all_making().join(key)
    }

    /// The lock for that.
    pub(crate) fn making_lock(&self, key: &str) -> PathBuf {
        self.locks().join(format!("unpack-{key}.lock"))
    }

    /// Where all is made.
    pub(super) fn all_making(&self) -> PathBuf {
        self.root().join("unpacking")
    }
}

impl Record {
    /// Whether it is of what is made of `manifest`, by whatever ref.
    fn is_made_of(&self, manifest: &Manifest) -> bool {
        let listed = |(origin, file): (&Origin, &ManifestFile)| {
            // A digest that nobody told at first may be known since, as one that something was locked to.
            let same = file.digest.is_none_or(|digest| origin.digest.or(origin.computed) == Some(digest));
            same && (&origin.path, origin.size) == (&file.path, file.size)
        };
        let location = |r| Location::of_resolved(r, &manifest.revision);
        location(&self.reference) == location(&manifest.reference)
            && (self.want, &self.revision, &self.unpack) == (manifest.want, &manifest.revision, &manifest.unpack)
            && self.origins.len() == manifest.files.len()
            && self.origins.iter().zip(&manifest.files).all(listed)
    }

    /// The same files, made of `manifest`.
    fn of(self, manifest: &Manifest) -> Result<Self> {
        let mut record = Self::without_files(manifest, None)?;
        record.files = self.files.into_iter().filter(|file| !file.former).collect();
        record.origins = self.origins;
        Ok(record)
    }
}
