//! What a host may do with a file before it is given up, and the words for it.

use llm_local_core::Result;

use super::context::FileContext;
use crate::network::{Failure, Retry};

/// So many answers have to bring [`ENOUGH`] bytes: a host that brings a byte at a time is not asked for ever.
const MOST_ANSWERS: u32 = 256;
/// A small file or read is bounded by the number of answers alone; a large one is not where its connection is bad.
const ENOUGH: u64 = 1 << 20;
/// How often a file may become another one while it is fetched.
const MOST_CHANGES: u32 = 2;

/// The answers to requests for one file, or for one part of it.
#[derive(Debug, Default)]
pub(super) struct Answers {
    count: u32,
    bytes: u64,
}

impl Answers {
    /// Counts an answer that brought so many bytes, however it ended.
    ///
    /// # Errors
    /// [`Error::DownloadFailed`](llm_local_core::Error::DownloadFailed) if too many have brought too little.
    pub(super) fn count(&mut self, file: &FileContext, bytes: u64) -> Result<()> {
        self.count += 1;
        self.bytes += bytes;
        if self.bytes >= ENOUGH {
            *self = Self::default();
        }
        if self.count < MOST_ANSWERS {
            return Ok(());
        }
        let reason =
            format!("{MOST_ANSWERS} answers brought {} bytes; its host sends too little at a time", self.bytes);
        Err(Failure::passing(&file.what, reason).error)
    }
}

/// How often a file became another one, and whether a part of it was said to lie beyond its end.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    changes: u32,
    was_beyond: bool,
}

impl Restarts {
    /// It became another one.
    ///
    /// # Errors
    /// A [`Failure`] that is not to be tried again, if it did so too often.
    pub(super) fn changed(&mut self, file: &FileContext) -> Result<(), Failure> {
        self.changes += 1;
        if self.changes <= MOST_CHANGES {
            return Ok(());
        }
        let reason = format!("it changed {} times while it was fetched; try again later", self.changes);
        Err(Failure { retry: Retry::Never, ..Failure::passing(&file.what, reason) })
    }

    /// Its host says that a part lies beyond its end, which may be so of another version.
    ///
    /// # Errors
    /// A [`Failure`] that is not to be tried again, if it said so before.
    pub(super) fn beyond(&mut self, file: &FileContext) -> Result<(), Failure> {
        if std::mem::replace(&mut self.was_beyond, true) { Err(file.beyond()) } else { Ok(()) }
    }
}

impl FileContext {
    /// The host says that a part which was asked for lies beyond the end of the file.
    pub(super) fn beyond(&self) -> Failure {
        let reason = "its host says that bytes of it lie beyond its end, but not what its size is";
        Failure::permanent(&self.what, reason)
    }

    /// An answer that was to end at `end` goes on.
    pub(super) fn too_long(&self, end: u64) -> Failure {
        let more = if end == self.entry().size { "more" } else { "more than were asked for" };
        self.wrong_size(more.to_owned()).into()
    }

    /// An answer that promised so many bytes ended after `came`.
    pub(super) fn too_short(&self, came: u64, promised: u64) -> Failure {
        Failure::passing(&self.what, format!("the answer ended after {came} of {promised} bytes"))
    }

    /// An answer is a part of the file that cannot be joined with another.
    pub(super) fn only_a_part(&self) -> Failure {
        Failure::passing(&self.what, "the host answers with a part where the whole was asked for")
    }
}
