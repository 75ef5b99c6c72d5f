//! Deletion on demand.

use std::io;

use llm_local_core::{ArtifactRef, Error, Result};

use super::{
    Store,
    hold::Held,
    ledger::Ledger,
    record::Record,
    removal::{Removal, Taking},
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
    /// Deletes what `which` names: all its revisions, unless it names one, and what came of those that are not whole; that it was found in the cache of another
    /// tool does not save it.
    ///
    /// Content stays that another artifact needs, or to which a link below the placement's `links` points, whoever made
    /// it. With the last link of a revision go the texts that name it; folders that are empty go. Nothing outside of
    /// this store and the roots of its placements is touched. A crash leaves the record, so that the same call goes on
    /// where it was.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none; [`Error::Io`], of kind `ResourceBusy` where [`Store::hold`] has it;
    /// [`Error::InvalidSpec`] where a link would lead the deletion elsewhere.
    pub fn delete(&self, which: &ArtifactRef) -> Result<Deleted> {
        // So that asking for what is not there makes no folder.
        self.ledger()?.find_with_unfinished(which)?;
        let _changing = self.change()?;
        let (ledger, held) = (self.ledger()?, self.held()?);
        let (found, unfinished) = ledger.find_with_unfinished(which)?;
        if let Some(Held::Unknown { path, reason }) = held.iter().find(|held| matches!(held, Held::Unknown { .. })) {
            let reason = format!(
                "it marks something as loaded or being fetched, and what cannot be told ({reason}); give yourself access \
                 to it, or remove it if nothing runs"
            );
            return Err(Error::io("delete beside", path, io::Error::new(io::ErrorKind::ResourceBusy, reason)));
        }
        let recorded = found.iter().map(|i| &ledger.records[*i]);
        let noted = unfinished.iter().map(|i| &ledger.unfinished[*i]);
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
        self.remove(&ledger, &found, &unfinished, Taking::All, &held)
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
        let (going, staying): (Vec<_>, Vec<_>) = (0..ledger.records.len()).partition(|i| numbers.contains(i));
        let records = |numbers: Vec<usize>| numbers.into_iter().map(|i| &ledger.records[i]).collect::<Vec<&Record>>();
        let (mut going, staying) = (records(going), records(staying));
        going.extend(unfinished.iter().map(|i| &ledger.unfinished[*i]));
        Removal::plan(self, &going, &staying, taking, &ledger.unreadable, held)?.execute()
    }
}

/// Whether somebody holds the artifact of `record`.
pub(super) fn is_held(record: &Record, held: &[Held]) -> bool {
    held.iter().any(|needs| match needs {
        Held::Needs(needs) => needs.key() == record.key(),
        Held::Text(text) => text.contains(&record.revision),
        Held::Unknown { .. } => true,
    })
}
