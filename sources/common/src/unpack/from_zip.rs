//! The way through a zip.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use llm_local_core::Result;
use zip::{
    CompressionMethod, ZipArchive,
    read::{ArchiveOffset, Config, ZipFileEntry},
};

use super::{
    intake::Intake,
    job::{Job, Source},
    limits::Setting,
};

mod directory;

/// Takes in every entry of a zip.
pub(super) fn read(source: Source<'_>, job: &Job<'_>, intake: &mut Intake<'_>) -> Result<()> {
    let mut source = BufReader::new(source);
    // Before the reader is asked, which keeps all of it in memory.
    directory::check(&mut source, job)?;
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut zip = ZipArchive::with_config(config, source).map_err(|e| job.broken("it is no whole zip", e))?;
    let mut kept = Vec::new();
    for index in 0..zip.len() {
        intake.count()?;
        let entry = zip.by_index_data(index).map_err(|e| job.broken("its directory is broken", e))?;
        if let Some(path) = examine(&entry, job, intake)? {
            kept.push((index, path));
        }
    }
    // Overlapping entries, names that are there twice, and headers that say one thing here and another there: bytes that
    // count once in the archive must come out once.
    zip.validate_header_consistency().map_err(|e| job.broken("its entries contradict its directory", e))?;
    for (index, path) in kept {
        let mut file = zip.by_index(index).map_err(|e| job.broken(format!("`{path}` in it is broken"), e))?;
        let claimed = file.size();
        let name = path.clone();
        let found = intake.keep(path, &mut file)?;
        if found != claimed {
            return Err(job.bad(format!("`{name}` in it should have {claimed} bytes and ends after {found}")));
        }
    }
    Ok(())
}

/// Checks an entry by its header alone. The path of a file to keep.
fn examine(entry: &ZipFileEntry<'_>, job: &Job<'_>, intake: &mut Intake<'_>) -> Result<Option<String>> {
    const FILE_TYPE: u32 = 0o170_000;
    const FOLDER: u32 = 0o040_000;
    const FILE: u32 = 0o100_000;
    const LINK: u32 = 0o120_000;
    let name = entry.name().map_err(|e| job.broken("a name in it is no text", e))?;
    let shown = name.chars().take(120).collect::<String>().escape_debug().to_string();
    let is_folder = entry.name_raw().ends_with(b"/");
    // Systems without modes leave this half of the attributes empty. Whoever fills it says a kind of file by it.
    match ((entry.external_attributes() >> 16) & FILE_TYPE, is_folder) {
        (0, _) | (FOLDER, true) | (FILE, false) => {}
        (LINK, _) => {
            return Err(job.bad(format!("`{shown}` in it is a symbolic link, and only plain files are taken")));
        }
        (other, _) => return Err(job.bad(format!("`{shown}` in it is no plain file (its mode is {other:o})"))),
    }
    if is_folder {
        intake.folder(name.as_bytes())?;
        return Ok(None);
    }
    let Some(path) = intake.file(name.as_bytes())? else { return Ok(None) };
    if entry.encrypted() {
        return Err(job.unsupported(format!("`{path}` in it is encrypted; ask for an archive without a password")));
    }
    if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
        let method = entry.compression();
        return Err(job.unsupported(format!(
            "`{path}` in it is compressed by {method}; expected stored or deflated files, as most programs write them"
        )));
    }
    intake.expect(&path, entry.size())?;
    Ok(Some(path))
}

/// Fills `buffer` from `offset` of `source`.
fn read_at(source: &mut (impl Read + Seek), offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    source.seek(SeekFrom::Start(offset))?;
    source.read_exact(buffer)
}
