//! Archives unpacked, and numbered parts joined: files that were verified, turned into those that an artifact is.
//!
//! What is in an archive is whatever its author put there, so nothing of it is believed: names are checked before they
//! reach a file system, bytes are counted as they come and not as a header claims, only files of a known kind are kept,
//! and whatever is wrong with one entry refuses all of them.
//!
//! | module | what it holds |
//! |---|---|
//! | `format` | [`ArchiveFormat`]: which archives there are, by name and by first bytes |
//! | `limits` | [`Limits`]: how much may come out of one, and who says so |
//! | `job` | one unpacking: its name in messages, its cancellation, and the file it reads |
//! | `from_zip` | the way through a zip |
//! | `from_tar` | the way through a tar, with a bound on its headers |
//! | `frames` | the frames of a zstd file as one stream |
//! | `intake` | entries on their way to disk: counted, checked, staged, and laid out together |
//! | `names` | names that meet on some file system, and folders that wrap everything |
//! | `kind` | which files are kept, skipped or refused |
//! | `written` | a file and its SHA-256, written at once |
//! | `join` | [`join`]: parts, one after the other |
//! | `parts` | [`split_parts`]: which names are parts of one file |

mod format;
mod frames;
mod from_tar;
mod from_zip;
mod intake;
mod job;
mod join;
mod kind;
mod limits;
mod names;
mod parts;
mod written;

use std::{fs, io, path::Path};

use llm_local_core::{Digest, Error, Result};
use tokio_util::sync::CancellationToken;

pub use format::ArchiveFormat;
pub use join::join;
pub use limits::Limits;
pub use parts::{Parts, split_parts};

use intake::Intake;
use job::Job;

/// A file that came out of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unpacked {
    /// Its path below the folder, `/`-separated.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// The SHA-256 of what was written.
    pub digest: Digest,
}

/// Unpacks `archive` into the empty folder `into`, and says what it wrote, sorted by path. Blocks.
///
/// `name` is what the archive is called in messages, and ends as its file does at its source
/// (`github:owner/repo@v1#pirate.tar.gz`): format and bytes have to agree.
///
/// Kept are weights, configs and text files; what archivers, systems and trainers leave beside them is skipped. Folders
/// that wrap everything are left out of the paths. Modes and times are not taken over. Each file is on disk (synced) when
/// this returns; their folders are not: whoever publishes `into` by a rename syncs those.
///
/// # Errors
/// After each, `into` is empty again; one that was not empty before is as it was. What the system does not let go stays there,
/// which is logged.
/// - [`Error::UnsupportedModelFormat`] for a name or bytes of no archive that is read here, encryption, a compression or a
///   kind of file that is not, and a pickle.
/// - [`Error::LoadFailed`] for an archive that is broken, or that is no plain collection of files: names that leave the
///   folder or meet, links, more than `limits` allow. It names the entry, and the setting that allows more.
/// - [`Error::NotAllowed`] for more than a policy allows ([`Limits::with_policy`]). It names the entry and the rule.
/// - [`Error::Io`] if a file cannot be read or written, and if `into` is not an empty folder.
/// - [`Error::Cancelled`].
pub fn unpack(
    archive: &Path,
    name: &str,
    into: &Path,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<Vec<Unpacked>> {
    let format = ArchiveFormat::of_name(name).ok_or_else(|| {
        Error::unsupported_format(name, format!("expected an archive, whose name ends in {}", ArchiveFormat::ENDINGS))
    })?;
    let empty = fs::read_dir(into).map_err(|e| Error::io("read the folder", into, e))?.next().is_none();
    if !empty {
        let full = io::Error::from(io::ErrorKind::DirectoryNotEmpty);
        return Err(Error::io("unpack into", into, full));
    }
    let cleared = Cleared(Some(into));
    let job = Job::new(archive, name, limits, cancel);
    let mut source = job.open()?;
    format.check(&job, &mut source)?;
    let mut intake = Intake::new(&job, into)?;
    match format {
        ArchiveFormat::Zip => from_zip::read(source, &job, &mut intake)?,
        ArchiveFormat::Tar => from_tar::read(io::BufReader::new(source), &job, &mut intake)?,
        ArchiveFormat::TarGz => {
            let stream = flate2::bufread::MultiGzDecoder::new(io::BufReader::new(source));
            from_tar::read(stream, &job, &mut intake)?;
        }
        ArchiveFormat::TarZst => from_tar::read(frames::Frames::new(io::BufReader::new(source)), &job, &mut intake)?,
    }
    let unpacked = intake.lay_out(into)?;
    cleared.keep();
    Ok(unpacked)
}

/// Empties the folder when dropped, also by a panic of a decoder.
struct Cleared<'a>(Option<&'a Path>);

impl Cleared<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        let Some(entries) = self.0.and_then(|folder| fs::read_dir(folder).ok()) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "cannot remove what was unpacked");
            }
        }
    }
}

#[cfg(test)]
mod tests;
