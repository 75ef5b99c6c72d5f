//! How much is moved at a time, and what may be made of it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use llm_local_core::{Manifest, Result, Want};

use crate::unpack::Limits;

/// Who judges what was made, see [`Transfer::with_check`](super::Transfer::with_check).
#[derive(Clone)]
pub(super) struct Check(pub(super) Arc<Judge>);

type Judge = dyn Fn(&Manifest, &BTreeMap<String, u64>) -> Result<()> + Send + Sync;

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
}

/// How much is moved at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransferConfig {
    /// Files at a time: 4. Of files up to 512 KiB, which come in one request each, there are more, since the disk has
    /// some while others come: four for each connection, but no more than 32, or so many if that is more. 1 means one
    /// file at a time, whatever its size.
    pub files_at_once: usize,
    /// Ranges of one file at a time: 4. Files smaller than a segment come in one.
    pub ranges_per_file: usize,
    /// Requests at a time, over all files of a call: 8.
    pub connections: usize,
    /// Bytes of a segment, the part of a file that one request asks for; by default a 64th of the file, and at least
    /// 64 MiB.
    pub segment_bytes: Option<u64>,
    /// How much may come out of an archive, unless it is said for what is wanted so
    /// ([`TransferConfig::with_unpack_of`]).
    pub unpack: Limits,
    unpack_of: HashMap<Want, Limits>,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            files_at_once: 4,
            ranges_per_file: 4,
            connections: 8,
            segment_bytes: None,
            unpack: Limits::default(),
            unpack_of: HashMap::new(),
        }
    }
}

impl TransferConfig {
    /// The defaults that each field names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many files come at a time, see [`TransferConfig::files_at_once`]; 0 counts as 1.
    pub fn with_files_at_once(mut self, files: usize) -> Self {
        self.files_at_once = files.max(1);
        self
    }

    /// Sets how many ranges of one file come at a time; 0 counts as 1.
    pub fn with_ranges_per_file(mut self, ranges: usize) -> Self {
        self.ranges_per_file = ranges.max(1);
        self
    }

    /// Sets how many requests there are at a time, over all files of a call; 0 counts as 1.
    pub fn with_connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// Sets the bytes that one request asks for.
    pub fn with_segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = Some(bytes);
        self
    }

    /// Sets how much may come out of an archive.
    pub fn with_unpack(mut self, limits: Limits) -> Self {
        self.unpack = limits;
        self
    }

    /// Sets how much may come out of an archive of what is wanted as `want`, whatever [`TransferConfig::with_unpack`] sets
    /// for the others.
    pub fn with_unpack_of(mut self, want: Want, limits: Limits) -> Self {
        self.unpack_of.insert(want, limits);
        self
    }

    /// How much may come out of an archive of what is wanted as `want`.
    pub fn unpack_of(&self, want: Want) -> &Limits {
        self.unpack_of.get(&want).unwrap_or(&self.unpack)
    }
}
