//! The bytes of a file.

use std::{
    fmt, fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use super::digest;

/// The block that generated content repeats.
const BLOCK: u64 = 1 << 20;
/// Each page of generated content begins with its own number, so that no two are the same.
const PAGE: u64 = 4096;

/// The bytes of a file that is served. Cloning it is cheap, and its digests are computed once.
#[derive(Clone)]
pub struct Content(Arc<Inner>);

struct Inner {
    kind: Kind,
    sha256: OnceLock<String>,
    git_blob: OnceLock<String>,
}

enum Kind {
    Bytes(Vec<u8>),
    Generated { size: u64, block: Vec<u8> },
    File { path: PathBuf, size: u64 },
    Inverted { content: Content, at: Range<u64> },
    Resized { content: Content, size: u64 },
}

impl Content {
    /// `size` bytes that follow from `seed` and are never in memory as a whole: a block of 1 MiB of pseudo-random bytes
    /// again and again, where each page of 4096 bytes begins with its number (8 bytes, little-endian).
    pub fn generated(size: u64, seed: u64) -> Self {
        let mut state = seed;
        let block = (0..size.min(BLOCK).div_ceil(8)).flat_map(|_| splitmix64(&mut state).to_le_bytes()).collect();
        Self::of(Kind::Generated { size, block })
    }

    /// The file at `path` with the size it has now. It is read when it is served.
    ///
    /// # Errors
    /// If there is no file there that can be asked for its size.
    pub fn file(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_path_buf();
        let size = fs::metadata(&path)?.len();
        Ok(Self::of(Kind::File { path, size }))
    }

    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        match &self.0.kind {
            Kind::Bytes(bytes) => bytes.len() as u64,
            Kind::Generated { size, .. } | Kind::File { size, .. } | Kind::Resized { size, .. } => *size,
            Kind::Inverted { content, .. } => content.size(),
        }
    }

    /// The bytes in `range`.
    ///
    /// # Errors
    /// If `range` does not lie within the content, or a file on the disk cannot be read.
    pub fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        self.read_into(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Its SHA-256 in hex.
    ///
    /// # Panics
    /// If a file on the disk cannot be read.
    pub fn sha256(&self) -> &str {
        self.0.sha256.get_or_init(|| digest::sha256(self).unwrap_or_else(|error| panic!("hashing {self:?}: {error}")))
    }

    /// Its id as a git blob in hex: the SHA-1 of `blob {size}\0` and the bytes.
    ///
    /// # Panics
    /// If a file on the disk cannot be read.
    pub fn git_blob(&self) -> &str {
        self.0
            .git_blob
            .get_or_init(|| digest::git_blob(self).unwrap_or_else(|error| panic!("hashing {self:?}: {error}")))
    }

    /// The same, with the bytes in `at` inverted.
    pub(super) fn inverted(&self, at: Range<u64>) -> Self {
        Self::of(Kind::Inverted { content: self.clone(), at })
    }

    /// The same, cut to `size` or filled up to it with zeros.
    pub(super) fn resized(&self, size: u64) -> Self {
        Self::of(Kind::Resized { content: self.clone(), size })
    }

    /// `length` bytes from `offset`: its own where it holds them, else read into `scratch`.
    pub(super) fn block<'a>(&'a self, offset: u64, length: usize, scratch: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        if let Kind::Bytes(bytes) = &self.0.kind {
            return bytes.get(offset as usize..offset as usize + length).ok_or_else(|| self.beyond(offset, length));
        }
        scratch.resize(length, 0);
        self.read_into(offset, scratch)?;
        Ok(scratch)
    }

    fn read_into(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if offset + into.len() as u64 > self.size() {
            return Err(self.beyond(offset, into.len()));
        }
        match &self.0.kind {
            Kind::Bytes(bytes) => into.copy_from_slice(&bytes[offset as usize..][..into.len()]),
            Kind::Generated { block, .. } => generate(block, offset, into),
            Kind::File { path, .. } => {
                let mut file = fs::File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(into)?;
            }
            Kind::Inverted { content, at } => {
                content.read_into(offset, into)?;
                let end = offset + into.len() as u64;
                for position in at.start.max(offset)..at.end.min(end) {
                    into[(position - offset) as usize] ^= 0xff;
                }
            }
            Kind::Resized { content, .. } => {
                let there = content.size().saturating_sub(offset).min(into.len() as u64) as usize;
                content.read_into(offset, &mut into[..there])?;
                into[there..].fill(0);
            }
        }
        Ok(())
    }

    fn beyond(&self, offset: u64, length: usize) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{length} bytes from {offset} of {} bytes", self.size()))
    }

    fn of(kind: Kind) -> Self {
        Self(Arc::new(Inner { kind, sha256: OnceLock::new(), git_blob: OnceLock::new() }))
    }
}

impl<B: Into<Vec<u8>>> From<B> for Content {
    fn from(bytes: B) -> Self {
        Self::of(Kind::Bytes(bytes.into()))
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0.kind {
            Kind::Bytes(_) => "given".into(),
            Kind::Generated { .. } => "generated".into(),
            Kind::File { path, .. } => path.display().to_string(),
            Kind::Inverted { at, .. } => format!("inverted in {at:?}"),
            Kind::Resized { .. } => "resized".into(),
        };
        write!(f, "Content({} bytes, {kind})", self.size())
    }
}

/// Fills `into` with what generated content has from `offset` on. A block is a whole number of pages, so that only the
/// page numbers depend on which repetition it is.
fn generate(block: &[u8], offset: u64, into: &mut [u8]) {
    let mut done = 0;
    while done < into.len() {
        let from = ((offset + done as u64) % BLOCK) as usize;
        let n = (block.len() - from).min(into.len() - done);
        into[done..done + n].copy_from_slice(&block[from..from + n]);
        done += n;
    }
    let end = offset + into.len() as u64;
    for page in offset / PAGE..end.div_ceil(PAGE) {
        for (position, byte) in (page * PAGE..).zip(page.to_le_bytes()) {
            if (offset..end).contains(&position) {
                into[(position - offset) as usize] = byte;
            }
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
