//! The end of a zip, which says where its directory is.
//!
//! Read before the zip crate is asked: that one looks for any record that fits, also before other bytes, and reserves
//! memory by the number of entries that one claims. Layouts: APPNOTE.TXT, 4.3.14 to 4.3.16.

use std::io::{Read, Seek, SeekFrom};

use llm_local_core::Result;

use super::{Job, Setting, read_at};

/// The record at the end, without its comment, which has at most as many bytes as its length can say.
const END: usize = 22;
const END_MAGIC: [u8; 4] = *b"PK\x05\x06";
const LONGEST_COMMENT: u64 = u16::MAX as u64;

/// The record of zip64, and the one before the end that says where it is.
const END64: usize = 56;
const END64_MAGIC: [u8; 4] = *b"PK\x06\x06";
const LOCATOR: usize = 20;
const LOCATOR_MAGIC: [u8; 4] = *b"PK\x06\x07";

/// Bytes of a directory, which is read into memory.
const DIRECTORY_BYTES: u64 = 16 << 20;

/// Where the directory of a zip is.
#[derive(Debug)]
struct Directory {
    entries: u64,
    start: u64,
    size: u64,
    /// The byte after it.
    end: u64,
}

/// Finds the directory, and refuses one that is not right before the end, that is too large, or that lies in another file
/// of several.
pub(super) fn check(source: &mut (impl Read + Seek), job: &Job<'_>) -> Result<()> {
    let broken = |e| job.broken("its end cannot be read", e);
    let length = source.seek(SeekFrom::End(0)).map_err(broken)?;
    let tail_start = length.saturating_sub(END as u64 + LONGEST_COMMENT);
    let mut tail = Vec::new();
    source.seek(SeekFrom::Start(tail_start)).and_then(|_| source.read_to_end(&mut tail)).map_err(broken)?;
    let mut found = (0..tail.len()).filter(|at| tail[*at..].starts_with(&END_MAGIC));
    // One that reads from the front and one that reads from the back must find the same.
    let (Some(at), None) = (found.next(), found.next()) else {
        return Err(job.bad("it does not end as a zip does, exactly one time: it was cut off, or put together"));
    };
    let end = &tail[at..];
    if end.len() < END || end.len() - END != usize::from(u16_at(end, 20)) {
        return Err(job.bad("bytes follow its end, or are missing there"));
    }
    let end_start = tail_start + at as u64;
    let directory = match in_zip64(source, end, end_start, job)? {
        Some(directory) => directory,
        None => {
            one_disk(u16_at(end, 4).into(), u16_at(end, 8).into(), u16_at(end, 10).into(), job)?;
            let (entries, size, start) = (u16_at(end, 10).into(), u32_at(end, 12).into(), u32_at(end, 16).into());
            Directory { entries, size, start, end: end_start }
        }
    };
    let most = job.limits.entries as u64;
    if directory.entries > most {
        let reason = format!("it has {} entries, and {most} are allowed", directory.entries);
        return Err(job.too_much(reason, Setting::Limits("with_entries")));
    }
    if directory.size > DIRECTORY_BYTES {
        let reason = format!("its directory has {} bytes, and {DIRECTORY_BYTES} are read", directory.size);
        return Err(job.too_much(reason, Setting::Fixed));
    }
    if directory.start.checked_add(directory.size) != Some(directory.end) {
        return Err(job.bad("its directory is not where it says"));
    }
    Ok(())
}

/// The directory as zip64 has it, if one of the fields of the short record is too small for it.
fn in_zip64(source: &mut (impl Read + Seek), end: &[u8], end_start: u64, job: &Job<'_>) -> Result<Option<Directory>> {
    let is_full = u16_at(end, 10) == u16::MAX || u32_at(end, 12) == u32::MAX || u32_at(end, 16) == u32::MAX;
    let mut locator = [0; LOCATOR];
    let locator_start = end_start.checked_sub(LOCATOR as u64);
    let has_locator = match locator_start {
        Some(start) => {
            read_at(source, start, &mut locator).map_err(|e| job.broken("its end cannot be read", e))?;
            locator.starts_with(&LOCATOR_MAGIC)
        }
        None => false,
    };
    let (true, true, Some(locator_start)) = (is_full, has_locator, locator_start) else {
        if is_full {
            return Err(job.bad("its end says that it has a zip64 record, and there is none"));
        }
        return Ok(None);
    };
    let start = u64_at(&locator, 8);
    if locator_start.checked_sub(END64 as u64).is_none_or(|last| start > last) {
        return Err(job.bad("its zip64 record is not where it says"));
    }
    let mut record = [0; END64];
    read_at(source, start, &mut record).map_err(|e| job.broken("its zip64 record cannot be read", e))?;
    if !record.starts_with(&END64_MAGIC) {
        return Err(job.bad("its zip64 record is not where it says"));
    }
    one_disk(u32_at(&record, 16).into(), u64_at(&record, 24), u64_at(&record, 32), job)?;
    let (entries, size, directory) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
    Ok(Some(Directory { entries, size, start: directory, end: start }))
}

fn one_disk(disk: u64, entries_here: u64, entries: u64, job: &Job<'_>) -> Result<()> {
    if disk == 0 && entries_here == entries {
        return Ok(());
    }
    let reason = "it is one volume of a zip in several (`.z01`, `.z02`, ...), which are not read; ask for one file";
    Err(job.unsupported(reason))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
