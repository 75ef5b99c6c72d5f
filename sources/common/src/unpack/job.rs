//! One unpacking: what it is called in messages, when it ends, and the file it reads.

use std::{
    cell::RefCell,
    error, fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

use llm_local_core::{Error, Result};
use tokio_util::sync::CancellationToken;

use super::limits::{Limits, Setting};

/// What everything that takes part in one unpacking has to know.
pub(super) struct Job<'a> {
    archive: &'a Path,
    name: &'a str,
    pub(super) limits: &'a Limits,
    cancel: &'a CancellationToken,
    /// The system's error, if reading the archive failed. Decoders report one as if the bytes were wrong.
    unreadable: RefCell<Option<io::Error>>,
}

impl<'a> Job<'a> {
    pub(super) fn new(archive: &'a Path, name: &'a str, limits: &'a Limits, cancel: &'a CancellationToken) -> Self {
        Self { archive, name, limits, cancel, unreadable: RefCell::new(None) }
    }

    /// The archive's bytes.
    pub(super) fn open(&self) -> Result<Source<'_>> {
        let file = File::open(self.archive).map_err(|e| Error::io("open", self.archive, e))?;
        Ok(Source { file, job: self })
    }

    /// Whether the caller still wants it.
    pub(super) fn go_on(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// The error for an archive that is broken or hostile.
    pub(super) fn bad(&self, reason: impl fmt::Display) -> Error {
        Error::load(self.name, format!("{reason}; the archive was not unpacked, ask its author for a plain one"))
    }

    /// The error for an archive that holds more than `setting` allows.
    pub(super) fn too_much(&self, reason: impl fmt::Display, setting: Setting<'_>) -> Error {
        let reason = format!("{reason}; the archive was not unpacked");
        setting.exceeded(self.name, reason, "unpack it yourself and use the folder")
    }

    /// The error for an archive, or something in it, of a kind that is not read.
    pub(super) fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::unsupported_format(self.name, reason)
    }

    /// The error for what a decoder said. It is told apart here whether the bytes are wrong, could not be read, or were
    /// no longer wanted.
    pub(super) fn broken(&self, what: impl fmt::Display, error: impl error::Error + Send + Sync + 'static) -> Error {
        if self.cancel.is_cancelled() {
            return Error::Cancelled;
        }
        match self.unreadable.take() {
            Some(unreadable) => Error::io("read", self.archive, unreadable),
            None => {
                let reason = format!("{what}: {error}; download it again, or ask its author for a whole one");
                Error::LoadFailed { model: self.name.to_owned(), reason, source: Some(Arc::new(error)) }
            }
        }
    }
}

/// The bytes of the archive. Reading ends with an error when the job is cancelled.
pub(super) struct Source<'a> {
    file: File,
    job: &'a Job<'a>,
}

impl Source<'_> {
    /// Notes an error of the system, and passes it on.
    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|e| {
            if e.kind() == io::ErrorKind::Interrupted {
                return e;
            }
            let copy = io::Error::new(e.kind(), e.to_string());
            self.job.unreadable.replace(Some(e));
            copy
        })
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.job.go_on().map_err(io::Error::other)?;
        let read = self.file.read(buffer);
        self.noted(read)
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        // An offset that a header claims may be none: that is the header's fault, and no error of the system.
        self.file.seek(to)
    }
}
