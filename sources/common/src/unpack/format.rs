//! Which archives there are.

use std::io::{Read, Seek, SeekFrom};

use llm_local_core::Result;

use super::job::{Job, Source};

/// A format of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ArchiveFormat {
    /// `.zip`, its entries stored or deflated.
    Zip,
    /// `.tar`: ustar, with the extensions of GNU and pax for long names.
    Tar,
    /// `.tar.gz` or `.tgz`.
    TarGz,
    /// `.tar.zst` or `.tzst`.
    TarZst,
}

/// Where a tar says that it is one, and what.
const USTAR: (usize, &[u8]) = (257, b"ustar");

impl ArchiveFormat {
    /// How names of archives end, for messages.
    pub(super) const ENDINGS: &str = "`.zip`, `.tar.gz`, `.tgz`, `.tar.zst` or `.tar`";

    /// The format that `name` ends in, if it is an archive's.
    pub fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let ends_in = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        match () {
            () if ends_in(&[".zip"]) => Some(Self::Zip),
            () if ends_in(&[".tar.gz", ".tgz"]) => Some(Self::TarGz),
            () if ends_in(&[".tar.zst", ".tzst"]) => Some(Self::TarZst),
            () if ends_in(&[".tar"]) => Some(Self::Tar),
            () => None,
        }
    }

    /// What the first bytes of a file say that it is.
    fn of_bytes(start: &[u8]) -> Option<Self> {
        let at = |(offset, magic): (usize, &[u8])| start.get(offset..).is_some_and(|rest| rest.starts_with(magic));
        match start {
            // The second is that of a zip without entries.
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some(Self::Zip),
            [0x1f, 0x8b, ..] => Some(Self::TarGz),
            // The second is a frame to skip, which parallel compressors write first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::TarZst),
            _ if at(USTAR) => Some(Self::Tar),
            _ => None,
        }
    }

    /// What its bytes are, in words.
    fn bytes(self) -> &'static str {
        match self {
            Self::Zip => "a zip",
            Self::Tar => "a tar",
            Self::TarGz => "a gzip file",
            Self::TarZst => "a zstd file",
        }
    }

    /// Refuses a file whose first bytes are not those of this format, and goes back to its start.
    pub(super) fn check(self, job: &Job<'_>, source: &mut Source<'_>) -> Result<()> {
        let mut start = Vec::new();
        source
            .by_ref()
            .take((USTAR.0 + USTAR.1.len()) as u64)
            .read_to_end(&mut start)
            .and_then(|_| source.seek(SeekFrom::Start(0)))
            .map_err(|e| job.broken("it cannot be read", e))?;
        let found = match Self::of_bytes(&start) {
            Some(found) if found == self => return Ok(()),
            Some(found) => found.bytes().to_owned(),
            None if start.is_empty() => "an empty file".to_owned(),
            None => format!("no archive that is read here (they begin with {:02x?})", &start[..start.len().min(8)]),
        };
        Err(job.unsupported(format!("its name is that of {}, but its bytes are those of {found}", self.bytes())))
    }
}
