//! How much may come out of an archive.

/// Bounds on what is unpacked, held against the bytes that come and not against what a header claims.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Entries, those that are skipped and folders too.
    pub entries: usize,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of all files together; in a tar also of those that are skipped, for they are read.
    pub total_bytes: u64,
    /// Bytes of a path, as it stands in the archive.
    pub path_bytes: usize,
    /// Parts of a path: folders and the file.
    pub depth: usize,
}

impl Default for Limits {
    /// 1000 entries, 8 GiB a file and 16 GiB in all, paths of 512 bytes and eight parts.
    fn default() -> Self {
        Self { entries: 1000, file_bytes: 8 << 30, total_bytes: 16 << 30, path_bytes: 512, depth: 8 }
    }
}

impl Limits {
    /// Sets the number of entries.
    pub fn with_entries(mut self, entries: usize) -> Self {
        self.entries = entries;
        self
    }

    /// Sets the bytes of one file.
    pub fn with_file_bytes(mut self, bytes: u64) -> Self {
        self.file_bytes = bytes;
        self
    }

    /// Sets the bytes of all files together.
    pub fn with_total_bytes(mut self, bytes: u64) -> Self {
        self.total_bytes = bytes;
        self
    }

    /// Sets the bytes of a path.
    pub fn with_path_bytes(mut self, bytes: usize) -> Self {
        self.path_bytes = bytes;
        self
    }

    /// Sets the parts of a path.
    pub fn with_depth(mut self, parts: usize) -> Self {
        self.depth = parts;
        self
    }
}
