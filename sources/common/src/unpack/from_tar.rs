//! The way through a tar.

use std::{
    cell::Cell,
    io::{self, Read},
};

use llm_local_core::Result;
use tar::{Archive, Entry, EntryType};

use super::{intake::Intake, job::Job};

/// Bytes that the headers of one entry may have. Long names and extended attributes are read into memory.
const HEADER_BYTES: u64 = 256 << 10;

/// Bytes that may follow the end mark: zeros, up to what a tape drive wrote at once.
const PADDING_BYTES: u64 = 1 << 20;

/// Takes in every entry of the tar that `stream` is, to the end of the stream.
pub(super) fn read(stream: impl Read, job: &Job<'_>, intake: &mut Intake<'_>) -> Result<()> {
    let meter = Meter::default();
    let mut archive = Archive::new(Metered { stream, meter: &meter });
    let mut entries = archive.entries().map_err(|e| job.broken("it is no tar", e))?;
    loop {
        meter.headers_left.set(Some(HEADER_BYTES));
        let Some(entry) = entries.next() else { break };
        meter.headers_left.set(None);
        let entry = entry.map_err(|e| job.broken("a header in it is broken", e))?;
        intake.count()?;
        take_in(entry, job, intake)?;
    }
    meter.headers_left.set(None);
    if meter.ended.get() {
        // The tar program takes this for the end. But then files may be missing, and nobody would know.
        return Err(job.bad("it has no end mark, so it was cut off; download it again"));
    }
    check_padding(archive.into_inner(), job)
}

/// Reads what is after the end mark, which also verifies the end of a compressed stream.
fn check_padding(mut rest: impl Read, job: &Job<'_>) -> Result<()> {
    let mut padding = Vec::new();
    let read = rest.by_ref().take(PADDING_BYTES + 1).read_to_end(&mut padding);
    read.map_err(|e| job.broken("it does not end as it should", e))?;
    if padding.len() as u64 > PADDING_BYTES || padding.iter().any(|byte| *byte != 0) {
        return Err(job.bad("something follows its end mark"));
    }
    Ok(())
}

fn take_in(mut entry: Entry<'_, impl Read>, job: &Job<'_>, intake: &mut Intake<'_>) -> Result<()> {
    let raw = entry.path_bytes().into_owned();
    let name = String::from_utf8_lossy(&raw[..raw.len().min(120)]).escape_debug().to_string();
    check_extensions(&mut entry, &name, job)?;
    let claimed = entry.size();
    let found = match entry.header().entry_type() {
        EntryType::Directory => {
            intake.folder(&raw)?;
            intake.expect(&name, claimed)?;
            intake.skip(&name, &mut entry)?
        }
        // Git writes the commit there. It is about the whole archive, and nothing in it is used.
        EntryType::XGlobalHeader => intake.skip(&name, &mut entry)?,
        EntryType::Regular => {
            let path = intake.file(&raw)?;
            intake.expect(&name, claimed)?;
            match path {
                Some(path) => intake.keep(path, &mut entry)?,
                None => intake.skip(&name, &mut entry)?,
            }
        }
        other => return Err(job.bad(format!("`{name}` in it is {}, and only plain files are taken", kind(other)))),
    };
    if found != claimed {
        return Err(job.bad(format!("`{name}` in it should have {claimed} bytes and ends after {found}")));
    }
    Ok(())
}

/// Refuses the extended attributes that change what a file is.
fn check_extensions(entry: &mut Entry<'_, impl Read>, name: &str, job: &Job<'_>) -> Result<()> {
    if entry.header().entry_type() == EntryType::XGlobalHeader {
        return Ok(());
    }
    let Some(extensions) = entry.pax_extensions().map_err(|e| job.broken("a header in it is broken", e))? else {
        return Ok(());
    };
    let mut names = 0;
    for extension in extensions {
        let extension = extension.map_err(|e| job.broken(format!("the header of `{name}` in it is broken"), e))?;
        if extension.key_bytes().starts_with(b"GNU.sparse") {
            return Err(job.bad(format!("`{name}` in it is {}", kind(EntryType::GNUSparse))));
        }
        names += usize::from(extension.key_bytes() == b"path");
    }
    if names > 1 { Err(job.bad(format!("`{name}` in it has two names"))) } else { Ok(()) }
}

/// What an entry is that is not a plain file, in words.
fn kind(entry: EntryType) -> String {
    match entry {
        EntryType::Symlink => "a symbolic link".into(),
        EntryType::Link => "a hard link".into(),
        EntryType::Char | EntryType::Block => "a device".into(),
        EntryType::Fifo => "a pipe".into(),
        EntryType::GNUSparse => "a sparse file, whose size is not what it holds".into(),
        other => format!("of the kind {:#04x}", other.as_byte()),
    }
}

/// What is known of a stream besides its bytes.
#[derive(Default)]
struct Meter {
    /// Bytes that may still be read, while headers are.
    headers_left: Cell<Option<u64>>,
    /// Whether its end was seen.
    ended: Cell<bool>,
}

/// A stream with a bound on what is read as headers.
struct Metered<'a, R> {
    stream: R,
    meter: &'a Meter,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.meter.headers_left.get();
        let most = left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX)).min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!("the headers of an entry have more than {HEADER_BYTES} bytes")));
        }
        let read = self.stream.read(&mut buffer[..most])?;
        self.meter.headers_left.set(left.map(|left| left - read as u64));
        self.meter.ended.set(self.meter.ended.get() || (read == 0 && !buffer.is_empty()));
        Ok(read)
    }
}
