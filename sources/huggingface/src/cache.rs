//! The Hub's cache: a folder for each repository, which other tools read and write too.
//!
//! ```text
//! models--org--name/
//!   blobs/<digest in hex>         content: SHA-256, or git's blob id
//!   snapshots/<commit>/<path>     link to ../../blobs/<digest>; the file itself where there are no links
//!   refs/<revision>               the commit that a branch or tag stood for
//!   trees/<commit>.json           the list of its files, as huggingface_hub writes it
//!   .llm-local/<commit>.json      the same, as it is written here
//!   .llm-local/<commit>/<path>    an index of shards, which is asked for before all else
//! ```
//!
//! Where there is a list in `trees`, `huggingface_hub` takes a snapshot that lacks any file for incomplete, and offline
//! gives none of it. Only the files that a model needs are fetched here, so the list has a folder of its own.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use llm_local_core::{
    Digest, Error, Manifest, ManifestFile, PlacedFile, Placement, Result, manifest::check_relative_path,
};
use llm_local_source_common::disk::{SOURCE_NOTES as OURS, digest_bytes, write_staged};
use llm_local_weights::{ADAPTER_CONFIG, MODEL_CONFIG, ShardIndex, is_adapter_file};

use crate::{
    choose::{holds_weights, promised_shards},
    reference::HubRef,
    tree::{RepoFile, Tree},
};

/// Folders in folders that a snapshot is searched to.
const DEPTH: usize = 16;
/// The files of which a model has one, or both.
const TOKENIZERS: [&str; 2] = ["tokenizer.json", "tokenizer.model"];
/// What keeps the folder out of backups, by <https://bford.info/cachedir/>; its first line is the signature that counts.
const CACHEDIR_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
                            # This file is a cache directory tag.\n";

/// Whether `text` is the whole id of a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The folder of one repository in the Hub's cache.
#[derive(Debug, Clone)]
pub(crate) struct RepoCache {
    folder: PathBuf,
}

impl RepoCache {
    /// The folder of `repo` in `cache`.
    pub(crate) fn new(cache: &Path, repo: &str) -> Self {
        Self { folder: cache.join(format!("models--{}", repo.replace('/', "--"))) }
    }

    /// The commit that `revision` is, or stood for when it was last asked for.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The list of the files of `commit`, if it is there: ours, or that of `huggingface_hub`.
    pub(crate) fn tree(&self, commit: &str) -> Option<Tree> {
        [OURS, "trees"].into_iter().find_map(|folder| {
            let path = self.tree_path(folder, commit);
            let text = fs::read_to_string(&path).ok()?;
            let tree = Tree::from_json(&text);
            if tree.is_none() {
                tracing::warn!(path = %path.display(), "the list of files is broken or of another version, and is left out");
            }
            tree
        })
    }

    /// Writes the list of the files of `commit`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write_tree(&self, commit: &str, tree: &Tree) -> Result<()> {
        let (path, snapshots) = (self.tree_path(OURS, commit), self.folder.join("snapshots"));
        // Without it, `huggingface_hub` calls the cache broken.
        fs::create_dir_all(&snapshots).map_err(|e| Error::io("create the folder", &snapshots, e))?;
        if let Some(cache) = self.folder.parent() {
            // Never over one that is there, and not worth an error.
            let tag = fs::File::create_new(cache.join("CACHEDIR.TAG"));
            let _ = tag.and_then(|mut tag| tag.write_all(CACHEDIR_TAG.as_bytes()));
        }
        let text = tree.to_json().map_err(|e| Error::io("write", &path, e.into()))?;
        self.write(&path, &text)
    }

    /// Where the index `file` of `commit` is and what it says, if it is there and as it should be: kept by
    /// [`RepoCache::write_index`], or published for this or another commit.
    pub(crate) fn index(&self, commit: &str, at: &HubRef, file: &ManifestFile) -> Option<(PathBuf, Vec<u8>)> {
        let blob = file.digest.map(|digest| self.blob(digest));
        let paths = [self.index_path(commit, at, file), self.snapshot(commit).join(at.in_repo(&file.path))];
        paths.into_iter().chain(blob).find_map(|path| {
            if file.size > ShardIndex::LARGEST || !is_whole(&path, file.size) {
                return None;
            }
            let content = fs::read(&path).ok()?;
            // What a crash or a disk made of it is asked for again.
            let is_right = |digest| digest_bytes(&content, Some(&digest)).is_ok_and(|found| found == digest);
            file.digest.is_none_or(is_right).then_some((path, content))
        })
    }

    /// Keeps the index `file` of `commit`, whose `content` was verified, and says where.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write_index(
        &self,
        commit: &str,
        at: &HubRef,
        file: &ManifestFile,
        content: &[u8],
    ) -> Result<PathBuf> {
        let path = self.index_path(commit, at, file);
        self.write(&path, content)?;
        Ok(path)
    }

    /// Writes `content` to `path`, whole or not at all. What a crash leaves lies where it is looked for.
    fn write(&self, path: &Path, content: &[u8]) -> Result<()> {
        write_staged(path, content, &self.folder)
    }

    fn index_path(&self, commit: &str, at: &HubRef, file: &ManifestFile) -> PathBuf {
        self.folder.join(OURS).join(commit).join(at.in_repo(&file.path))
    }

    fn tree_path(&self, folder: &str, commit: &str) -> PathBuf {
        self.folder.join(folder).join(format!("{commit}.json"))
    }

    fn blob(&self, digest: Digest) -> PathBuf {
        self.folder.join("blobs").join(hex(digest))
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Whether anything of `commit` is there.
    pub(crate) fn has_snapshot(&self, commit: &str) -> bool {
        self.snapshot(commit).is_dir()
    }

    /// Those of `files` that are not there whole: their paths in the repository.
    pub(crate) fn missing(&self, commit: &str, at: &HubRef, files: &[ManifestFile]) -> Vec<String> {
        let snapshot = self.snapshot(commit);
        let is_there = |path: &str, size: u64| {
            // What was found in the snapshot and not in a list has no other size than the one it has; a name that was
            // only promised has no file.
            check_relative_path(path).is_ok() && is_whole(&snapshot.join(path), size)
        };
        files
            .iter()
            .map(|f| (at.in_repo(&f.path), f.size))
            .filter(|(p, size)| !is_there(p, *size))
            .map(|(p, _)| p)
            .collect()
    }

    /// The files that a snapshot without a list shows: those that are there, and those of which a file that is there
    /// says that they should be: shards by their numbers or by the index, config and tokenizer of weights. Of the latter
    /// the size is 0, and [`RepoCache::missing`] names them.
    pub(crate) fn found(&self, commit: &str) -> Vec<RepoFile> {
        let snapshot = self.snapshot(commit);
        let mut files = Vec::new();
        walk(&snapshot, "", DEPTH, &mut files);
        let mut promised = promised_shards(&files);
        for file in &files {
            let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
            let beside = |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            if name == ShardIndex::FILE
                && let Ok(index) = ShardIndex::read(&snapshot.join(&file.path))
            {
                promised.extend(index.shards().map(beside));
            }
            if !name.ends_with(".safetensors") {
                continue;
            }
            if is_adapter_file(name) {
                promised.push(beside(ADAPTER_CONFIG));
                continue;
            }
            promised.push(beside(MODEL_CONFIG));
            let has = |name: &str| files.iter().any(|f| f.path == beside(name));
            // Other tools note what they asked for in vain.
            let has_none = |name: &str| self.folder.join(".no_exist").join(commit).join(beside(name)).exists();
            if !TOKENIZERS.iter().any(|name| has(name)) && !has_none(TOKENIZERS[0]) {
                promised.push(beside(TOKENIZERS[0]));
            }
        }
        promised.sort_unstable();
        promised.dedup();
        promised.retain(|path| !files.iter().any(|f| f.path == *path));
        files.extend(promised.into_iter().map(|path| RepoFile { path, size: 0, digest: None }));
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// Whether a snapshot without a list has weights of any kind below the folder of `at`.
    pub(crate) fn has_weights(files: &[RepoFile], at: &HubRef) -> bool {
        files.iter().any(|f| at.below(&f.path).is_some_and(holds_weights))
    }

    /// Where the cache has the files of `manifest`.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a manifest whose revision is no commit, or with a name that could leave the folder.
    pub(crate) fn placement(&self, at: &HubRef, manifest: &Manifest) -> Result<Placement> {
        let commit = &manifest.revision;
        let bad = |reason: String| Error::invalid_spec(format!("manifest of {}", manifest.reference), reason);
        if !is_commit(commit) {
            return Err(bad(format!("its revision `{}` is not the id of a commit", commit.escape_debug())));
        }
        let snapshot = self.snapshot(commit);
        let place = |file: &ManifestFile| {
            let path = at.in_repo(&file.path);
            check_relative_path(&path).map_err(bad)?;
            let link = snapshot.join(path);
            let blob = match file.digest {
                // Without links, the snapshot has the file itself and there is no blob.
                Some(digest) if !is_plain_file(&link) => self.blob(digest),
                _ => link.clone(),
            };
            Ok(PlacedFile::new(blob, link))
        };
        let files = manifest.files.iter().map(place).collect::<Result<_>>()?;
        let placement = Placement::new(&self.folder, self.folder.join("snapshots"), files);
        Ok(if at.revision == *commit {
            placement
        } else {
            placement.with_ref(self.folder.join("refs").join(&at.revision), commit)
        })
    }
}

/// Whether a file of this size is at `path`.
fn is_whole(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == size)
}

fn is_plain_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file())
}

/// The name of a blob.
fn hex(digest: Digest) -> String {
    let text = digest.to_string();
    text.split_once(':').map_or(text.clone(), |(_, hex)| hex.to_owned())
}

/// The digest that the name of a blob is.
fn digest_of_name(name: &str) -> Option<Digest> {
    match name.len() {
        64 => format!("sha256:{name}").parse().ok(),
        40 => format!("git-sha1:{name}").parse().ok(),
        _ => None,
    }
}

/// Adds the files in `folder` and below it, whose path in the repository is `prefix`.
fn walk(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<RepoFile>) {
    // What cannot be listed is not there.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        if check_relative_path(&path).is_err() {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth > 0 {
                walk(&entry.path(), &format!("{path}/"), depth - 1, files);
            }
        } else if let Ok(meta) = fs::metadata(entry.path())
            && meta.is_file()
        {
            // One hop: a blob can be a link itself, to a store that several repositories share.
            let digest = fs::read_link(entry.path())
                .ok()
                .filter(|to| to.parent().and_then(Path::file_name).is_some_and(|parent| parent == "blobs"))
                .and_then(|to| digest_of_name(to.file_name()?.to_str()?));
            files.push(RepoFile { path, size: meta.len(), digest });
        }
    }
}
