//! Files of this machine as something to keep.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::stream;
use llm_local_core::{
    ArtifactRef, ArtifactSource, Error, FetchContext, Manifest, ManifestFile, Opened, Result, Want, async_trait,
};

/// Bytes that are read at once.
const CHUNK: u64 = 256 << 10;

/// A source of files of this machine that gives them to be copied, not to be used where they lie: what is copied is
/// verified by its digest and kept like what comes from elsewhere.
pub(crate) struct Copies(pub(crate) Arc<dyn ArtifactSource>);

#[async_trait]
impl ArtifactSource for Copies {
    fn scheme(&self) -> &str {
        self.0.scheme()
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest> {
        self.0.resolve(reference, want, cx).await
    }

    async fn open(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        range: Range<u64>,
        cx: &FetchContext,
    ) -> Result<Opened> {
        match self.0.open(manifest, file, range.clone(), cx).await? {
            Opened::Local(path) => Ok(Opened::Stream(Box::pin(stream::iter(Chunks::open(path, range)?)))),
            other => Ok(other),
        }
    }
}

/// A range of a file, in chunks.
struct Chunks {
    file: File,
    path: PathBuf,
    left: u64,
}

impl Chunks {
    fn open(path: PathBuf, range: Range<u64>) -> Result<Self> {
        let opened = File::open(&path).and_then(|mut file| file.seek(SeekFrom::Start(range.start)).map(|_| file));
        let file = opened.map_err(|e| Error::io("open", &path, e))?;
        Ok(Self { file, path, left: range.end.saturating_sub(range.start) })
    }
}

impl Iterator for Chunks {
    type Item = Result<bytes::Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut chunk = vec![0; self.left.min(CHUNK) as usize];
        if chunk.is_empty() {
            return None;
        }
        let read = self.file.read_exact(&mut chunk).map_err(|e| Error::io("read", &self.path, e));
        self.left = if read.is_ok() { self.left - chunk.len() as u64 } else { 0 };
        Some(read.map(|()| chunk.into()))
    }
}

/// `reference`, a path as the whole path: what is kept of it must not depend on the current folder.
///
/// # Errors
/// [`Error::NotFound`] if there is no home folder for `~`; [`Error::Io`].
pub(crate) fn absolute(reference: &ArtifactRef) -> Result<ArtifactRef> {
    if !reference.is_file() {
        return Ok(reference.clone());
    }
    let locator = reference.locator();
    let path = match locator.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with(std::path::is_separator) => etcetera::home_dir()
            .map_err(|e| Error::not_found(reference, format!("{e}; write the whole path instead of `~`")))?
            .join(rest.trim_start_matches(std::path::is_separator)),
        _ => PathBuf::from(locator),
    };
    let whole = std::path::absolute(Path::new(&path)).map_err(|e| Error::io("find", &path, e))?;
    // Without a separator at its end, which would make it another text.
    ArtifactRef::file(whole.components().collect::<PathBuf>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_a_file_comes_in_chunks_and_a_file_that_shrank_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let bytes: Vec<u8> = (0..CHUNK as usize + 10).map(|i| i as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let read = |range: Range<u64>| Chunks::open(path.clone(), range).unwrap().collect::<Result<Vec<_>>>();
        assert_eq!(read(3..CHUNK + 7).unwrap().concat(), bytes[3..CHUNK as usize + 7]);
        assert_eq!(read(3..CHUNK + 7).unwrap().len(), 2);
        assert!(read(5..5).unwrap().is_empty());
        assert_eq!(read(3..CHUNK + 11).unwrap_err().code(), "io");
    }

    #[test]
    fn a_path_is_the_whole_path_and_other_refs_stay() {
        let text = |text: &str| absolute(&text.parse().unwrap()).unwrap().to_string();
        let here = std::env::current_dir().unwrap();
        assert_eq!(text("a/b"), format!("file:{}", here.join("a/b").display()));
        assert_eq!(text("./a/b"), text("a/b"));
        assert_eq!(text("./a/b/"), text("a/b"));
        assert_eq!(text("~/x/"), text("~/x"));
        assert_eq!(text("github:o/r@v1"), "github:o/r@v1");
        assert!(!text("~/x").contains('~'));
    }
}
