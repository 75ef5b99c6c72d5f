//! Deletion on demand.

use std::{io, path::PathBuf};

use llm_local_core::{ArtifactRef, Error, Result, Want};

use super::{
    Store,
    group::Group,
    hold::Held,
    ledger::Ledger,
    record::Record,
    removal::{Removal, Taking},
    trust::Trusted,
};

/// What a deletion took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deleted {
    /// Artifacts that are listed no more.
    pub artifacts: usize,
    /// Files that are gone, links apart.
    pub files: usize,
    /// Bytes on disk that are free now.
    pub bytes: u64,
}

impl Store {
    /// Deletes what `which` names: all its revisions, unless it names one, and what came of those that are not whole; that
    /// it was found in the cache of another tool does not save it. What was selected of them is so no more
    /// ([`Store::selection`]), and what was remembered of the files of a version is forgotten, unless another artifact
    /// has them: a fetch then takes them as they are, even if all that was left of the version was what is remembered.
    ///
    /// Content stays that another artifact needs, or to which a link below the placement's `links` points, whoever made
    /// it. With the last link of a revision go the texts that name it; folders that are empty go. Nothing outside of
    /// this store and the roots of its placements is touched. A crash leaves the record, so that the same call goes on
    /// where it was.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none; [`Error::Io`], of kind `ResourceBusy` where [`Store::hold`] has it, or where
    /// it is the version that is kept selected ([`HoldKind`](super::HoldKind)) and others would stay;
    /// [`Error::InvalidSpec`] where a link would lead the deletion elsewhere; [`Error::Cancelled`] as
    /// [`Store::with_cancel`].
    pub fn delete(&self, which: &ArtifactRef) -> Result<Deleted> {
        self.delete_named(&Named::Ref(which))
    }

    /// Deletes what `named` names.
    pub(super) fn delete_named(&self, named: &Named<'_>) -> Result<Deleted> {
        // So that asking for what is not there makes no folder.
        self.find_named(named)?;
        let _changing = self.change()?;
        let held = self.held()?;
        let (ledger, found) = self.find_named(named)?;
        if let Some(Held::Unknown { path, reason }) = held.iter().find(|held| matches!(held, Held::Unknown { .. })) {
            let reason = format!(
                "it marks something as loaded or being fetched, and what cannot be told ({reason}); give yourself access \
                 to it, or remove it if nothing runs"
            );
            return Err(Error::io("delete beside", path, io::Error::new(io::ErrorKind::ResourceBusy, reason)));
        }
        let recorded = found.records.iter().map(|i| &ledger.records[*i]);
        let noted = found.unfinished.iter().map(|i| &ledger.unfinished[*i]);
        if let Some(busy) = recorded.chain(noted).find(|r| is_held(r, &held)) {
            let reason = format!(
                "{} at {} is loaded or being fetched, in this process or another; unload it or wait, then delete it again",
                busy.reference, busy.revision
            );
            return Err(Error::io(
                "delete",
                self.record_path(busy),
                io::Error::new(io::ErrorKind::ResourceBusy, reason),
            ));
        }
        let selections = self.selections_without(&ledger, &found.records)?;
        let removal = self.removal(&ledger, &found.records, &found.unfinished, Taking::All, &held)?;
        // The records go last: without them a call after a crash would not know what is still selected of them.
        selections.iter().try_for_each(|left| self.leave(left))?;
        let deleted = removal.execute()?;
        self.forget(&ledger, &found.records, found.trusted)?;
        Ok(deleted)
    }

    /// What `named` names, at this moment.
    fn find_named(&self, named: &Named<'_>) -> Result<(Ledger, Found)> {
        let ledger = self.ledger()?;
        let of = |records: &[Record]| (0..records.len()).filter(|i| named.is(&records[*i])).collect::<Vec<_>>();
        let mut trusted = self.all_trusted()?;
        trusted.retain(|(_, trusted)| named.is_trusted(trusted));
        let found = Found { records: of(&ledger.records), unfinished: of(&ledger.unfinished), trusted };
        if found.records.is_empty() && found.unfinished.is_empty() && found.trusted.is_empty() {
            return Err(match named {
                Named::Ref(which) => ledger.none(which),
                Named::Kept { reference, want, revision } => ledger.not_kept(reference, *want, revision),
            });
        }
        Ok((ledger, found))
    }

    /// Removes the records and the unfinished ones of these numbers, and what only they need. Only for those who have the
    /// right to change the store.
    pub(super) fn remove(
        &self,
        ledger: &Ledger,
        numbers: &[usize],
        unfinished: &[usize],
        taking: Taking,
        held: &[Held],
    ) -> Result<Deleted> {
        self.removal(ledger, numbers, unfinished, taking, held)?.execute()
    }

    /// What [`Store::remove`] does, before anything of it is done.
    fn removal<'a>(
        &'a self,
        ledger: &'a Ledger,
        numbers: &[usize],
        unfinished: &[usize],
        taking: Taking,
        held: &[Held],
    ) -> Result<Removal<'a>> {
        let (going, staying): (Vec<_>, Vec<_>) = (0..ledger.records.len()).partition(|i| numbers.contains(i));
        let records = |numbers: Vec<usize>| numbers.into_iter().map(|i| &ledger.records[i]).collect::<Vec<&Record>>();
        let (mut going, staying) = (records(going), records(staying));
        going.extend(unfinished.iter().map(|i| &ledger.unfinished[*i]));
        Removal::plan(self, &going, &staying, taking, &ledger.unreadable, held)
    }
}

/// What is to be deleted.
pub(super) enum Named<'a> {
    /// Whatever a ref names.
    Ref(&'a ArtifactRef),
    /// One version of what it names.
    Kept { reference: &'a ArtifactRef, want: Want, revision: &'a str },
}

impl Named<'_> {
    fn is(&self, record: &Record) -> bool {
        match self {
            Self::Ref(which) => record.is(which),
            Self::Kept { reference, want, revision } => {
                record.is_version_of(reference, *want) && record.is_at(revision)
            }
        }
    }

    fn is_trusted(&self, trusted: &Trusted) -> bool {
        match self {
            Self::Ref(which) => trusted.is(which),
            Self::Kept { reference, want, revision } => {
                trusted.group() == Group::of(reference, *want) && trusted.is_at(revision)
            }
        }
    }
}

/// What that is: the numbers of the records and of the unfinished ones, and what is remembered of its files.
struct Found {
    records: Vec<usize>,
    unfinished: Vec<usize>,
    trusted: Vec<(PathBuf, Trusted)>,
}

/// Whether somebody holds the artifact of `record`.
pub(super) fn is_held(record: &Record, held: &[Held]) -> bool {
    held.iter().any(|needs| match needs {
        Held::Needs(needs) => needs.key() == record.key(),
        Held::Text(text) => text.contains(&record.revision),
        Held::Unknown { .. } => true,
    })
}
