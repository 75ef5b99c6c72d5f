//! The versions of an artifact that are kept side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use llm_local_core::{ArtifactRef, Digest, Error, Manifest, Result, Want};

use super::{
    Deleted, Store,
    delete::Named,
    group::{Group, asked},
    ledger::Ledger,
    record::{Record, from_millis},
};

/// A version of an artifact that is kept.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Kept {
    /// As its source resolved it, under the ref by which it was asked for: a fetch of it needs no request while it is
    /// whole.
    pub manifest: Manifest,
    /// When it was first recorded.
    pub created: SystemTime,
    /// When it was last used.
    pub last_used: SystemTime,
    /// Bytes on disk. Content that versions share counts for each.
    pub bytes: u64,
    /// Whether all its files are there, by their sizes.
    pub whole: bool,
    /// Whether it is kept from eviction ([`Store::pin`]).
    pub pinned: bool,
}

impl Store {
    /// The versions of what `reference` names, wanted as `want`, that are kept, by whatever revision they were asked
    /// for, newest first by when they were recorded first. None if nothing is kept.
    ///
    /// One revision that was asked for in several ways counts once, as it was asked for by its own name if it was.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn kept(&self, reference: &ArtifactRef, want: Want) -> Result<Vec<Kept>> {
        self.kept_of(&self.ledger()?, reference, want)
    }

    /// The digests of the files of `manifest` as its source has them: told, or else as they were when they came, also of
    /// an archive that is gone since it was unpacked. A file of which none is known is left out.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn digests(&self, manifest: &Manifest) -> Result<BTreeMap<String, Digest>> {
        let group = Group::of_resolved(&manifest.reference, &manifest.revision, manifest.want);
        let mut digests = self.digests_by(manifest, |record| record.group() == group)?;
        digests.extend(manifest.files.iter().filter_map(|file| Some((file.path.clone(), file.digest?))));
        Ok(digests)
    }

    /// The digests that the files of `manifest` have by the records at its revision of which `are` says so.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn digests_by(
        &self,
        manifest: &Manifest,
        are: impl Fn(&Record) -> bool,
    ) -> Result<BTreeMap<String, Digest>> {
        let mut digests = BTreeMap::new();
        let ledger = self.ledger()?;
        for record in ledger.records.iter().filter(|record| record.revision == manifest.revision && are(record)) {
            for (path, size, digest) in record.sourced() {
                let is_of = manifest.file(path).is_some_and(|file| file.size == size);
                digests.extend(digest.filter(|_| is_of).map(|digest| (path.clone(), digest)));
            }
        }
        Ok(digests)
    }

    pub(super) fn kept_of(&self, ledger: &Ledger, reference: &ArtifactRef, want: Want) -> Result<Vec<Kept>> {
        let mut revisions = BTreeMap::<_, Vec<&Record>>::new();
        for record in ledger.records.iter().filter(|record| record.is_version_of(reference, want)) {
            revisions.entry(record.revision.as_str()).or_default().push(record);
        }
        let mut kept = revisions.values().filter_map(|records| self.one(records)).collect::<Result<Vec<_>>>()?;
        // Of one moment the last used first: a clock may stand still.
        kept.sort_by_key(|kept| std::cmp::Reverse((kept.created, kept.last_used)));
        Ok(kept)
    }

    /// What the records of one revision say together.
    fn one(&self, records: &[&Record]) -> Option<Result<Kept>> {
        let names_it = |record: &Record| {
            let asked = asked(&record.reference);
            asked.is_some_and(|asked| record.is_at(asked))
        };
        let order = |record: &&&Record| (record.is_whole(self.root()), names_it(record), record.last_used);
        let first = *records.iter().max_by_key(order)?;
        let created = records.iter().map(|record| record.created).min()?;
        let last_used = records.iter().map(|record| record.last_used).max()?;
        Some(first.manifest().map(|manifest| Kept {
            manifest,
            created: from_millis(created),
            last_used: from_millis(last_used),
            bytes: self.bytes_of(first),
            whole: first.is_whole(self.root()),
            pinned: records.iter().any(|record| record.pinned),
        }))
    }

    /// Deletes one version alone, whichever way it was asked for: the one at `revision`, pinned ([`Manifest::revision`])
    /// or by name ([`Manifest::version`]). As [`Store::delete`] otherwise.
    ///
    /// # Errors
    /// As [`Store::delete`]; [`Error::NotFound`] says which are kept.
    pub fn delete_kept(&self, reference: &ArtifactRef, want: Want, revision: &str) -> Result<Deleted> {
        self.delete_named(&Named::Kept { reference, want, revision })
    }
}

impl Ledger {
    /// The records of `group`.
    pub(super) fn of_group<'a>(&'a self, group: &Group<'_>) -> impl Iterator<Item = &'a Record> {
        self.records.iter().filter(move |record| record.group() == *group)
    }

    /// What to say of a version that is not kept.
    pub(super) fn not_kept(&self, reference: &ArtifactRef, want: Want, revision: &str) -> Error {
        let kept = self.kept_text(&Group::of(reference, want));
        Error::not_found(format!("the version `{revision}` of {reference}"), kept)
    }

    /// Says which versions are kept of `group`.
    pub(super) fn kept_text(&self, group: &Group<'_>) -> String {
        let titles: BTreeSet<_> = self.of_group(group).map(|record| format!("`{}`", record.title())).collect();
        match titles.is_empty() {
            true => "no version of it is kept here".into(),
            false => format!("kept here are {}", Vec::from_iter(titles).join(", ")),
        }
    }
}

impl Record {
    /// Whether it is a version of what `reference` names, wanted as `want`, whatever revision that asks for.
    pub(super) fn is_version_of(&self, reference: &ArtifactRef, want: Want) -> bool {
        self.group() == Group::of_resolved(reference, &self.revision, want)
    }

    /// The group that it is a version in.
    pub(super) fn group(&self) -> Group<'_> {
        Group::of_resolved(&self.reference, &self.revision, self.want)
    }

    /// Whether `revision` is its pinned one or the name of that.
    pub(super) fn is_at(&self, revision: &str) -> bool {
        self.revision == revision || self.named.as_deref() == Some(revision)
    }

    /// The revision as people name it.
    pub(super) fn title(&self) -> &str {
        self.named.as_deref().unwrap_or(&self.revision)
    }
}
