//! The files of a commit: as the Hub lists them, and as `huggingface_hub` keeps the list in `trees/<commit>.json`.

use std::collections::BTreeMap;

use llm_local_core::{Digest, ManifestFile};
use serde::{Deserialize, Serialize};
use serde_json::ser::{PrettyFormatter, Serializer};

/// The version of the format of `trees/<commit>.json` that is read and written.
const FORMAT_VERSION: u64 = 1;

/// A file of a repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RepoFile {
    /// Its path in the repository, `/`-separated. Not checked yet.
    pub(crate) path: String,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// SHA-256 of what git LFS or xet keeps, git's blob id of anything else; none for a file of a cache that does not
    /// tell.
    pub(crate) digest: Option<Digest>,
}

impl RepoFile {
    /// It as a file of a manifest, at `path`.
    pub(crate) fn at(&self, path: &str) -> ManifestFile {
        let file = ManifestFile::new(path, self.size);
        match self.digest {
            Some(digest) => file.with_digest(digest),
            None => file,
        }
    }
}

/// An entry of `GET /api/models/{id}/tree/{revision}`.
#[derive(Debug, Deserialize)]
pub(crate) struct ApiEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<ApiLfs>,
    #[serde(rename = "xetHash")]
    xet_hash: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ApiLfs {
    oid: String,
    size: u64,
}

/// The list of all files of a commit, by path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tree {
    format_version: u64,
    files: BTreeMap<String, TreeFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TreeFile {
    size: u64,
    blob_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    xet_hash: Option<String>,
}

impl TreeFile {
    fn digest(&self) -> Option<Digest> {
        match &self.lfs_sha256 {
            Some(sha256) => format!("sha256:{sha256}").parse().ok(),
            None => format!("git-sha1:{}", self.blob_id).parse().ok(),
        }
    }
}

impl Tree {
    /// The list that the Hub gave.
    ///
    /// # Errors
    /// What is wrong, for an entry whose digest is none.
    pub(crate) fn from_api(entries: impl IntoIterator<Item = ApiEntry>) -> Result<Self, String> {
        let mut files = BTreeMap::new();
        for entry in entries.into_iter().filter(|e| e.kind == "file") {
            let (lfs_sha256, lfs_size) = entry.lfs.map(|lfs| (lfs.oid, lfs.size)).unzip();
            let file = TreeFile {
                size: lfs_size.unwrap_or(entry.size),
                blob_id: entry.oid,
                lfs_sha256,
                lfs_size,
                xet_hash: entry.xet_hash,
            };
            if file.digest().is_none() {
                return Err(format!("the digest of `{}` is none", entry.path.escape_debug()));
            }
            files.insert(entry.path, file);
        }
        Ok(Self { format_version: FORMAT_VERSION, files })
    }

    /// The list in the text of a `trees/<commit>.json`; `None` if that is of another version or broken.
    pub(crate) fn from_json(text: &str) -> Option<Self> {
        let tree: Self = serde_json::from_str(text).ok()?;
        let whole = tree.format_version == FORMAT_VERSION && tree.files.values().all(|f| f.digest().is_some());
        whole.then_some(tree)
    }

    /// The text of its `trees/<commit>.json`, as `huggingface_hub` would write it.
    ///
    /// # Errors
    /// None that a list can have: serde_json's are those of other types.
    pub(crate) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.serialize(&mut Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b" ")))?;
        Ok(text)
    }

    /// Its files.
    pub(crate) fn files(&self) -> Vec<RepoFile> {
        let file = |(path, file): (&String, &TreeFile)| RepoFile {
            path: path.clone(),
            size: file.size,
            digest: file.digest(),
        };
        self.files.iter().map(file).collect()
    }

    /// The hash by which xet, the Hub's storage by chunks, knows the file at `path`.
    pub(crate) fn xet_hash(&self, path: &str) -> Option<&str> {
        self.files.get(path)?.xet_hash.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA1: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_list_becomes_the_file_that_other_tools_read_and_back() {
        let sha256 = "ab".repeat(32);
        let api = serde_json::json!([
            {"type": "directory", "oid": SHA1, "size": 0, "path": "q"},
            {"type": "file", "oid": SHA1, "size": 7, "path": "config.json"},
            {"type": "file", "oid": SHA1, "size": 9, "path": "q/m.gguf", "xetHash": "cd",
             "lfs": {"oid": sha256, "size": 9, "pointerSize": 130}},
        ]);
        let tree = Tree::from_api(serde_json::from_value::<Vec<ApiEntry>>(api).unwrap()).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&tree.to_json().unwrap()).unwrap();
        let expected = serde_json::json!({"format_version": 1, "files": {
            "config.json": {"size": 7, "blob_id": SHA1},
            "q/m.gguf": {"size": 9, "blob_id": SHA1, "lfs_sha256": sha256, "lfs_size": 9, "xet_hash": "cd"},
        }});
        assert_eq!(json, expected);
        assert_eq!(Tree::from_json(&json.to_string()).unwrap(), tree);
        let digests: Vec<_> = tree.files().into_iter().map(|f| f.digest.unwrap().to_string()).collect();
        assert_eq!(digests, [format!("git-sha1:{SHA1}"), format!("sha256:{sha256}")]);
        assert_eq!((tree.xet_hash("q/m.gguf"), tree.xet_hash("config.json")), (Some("cd"), None));
    }

    #[test]
    fn another_version_and_broken_text_are_no_list() {
        let good = format!(r#"{{"format_version": 1, "files": {{"a": {{"size": 1, "blob_id": "{SHA1}"}}}}}}"#);
        assert!(Tree::from_json(&good).is_some());
        for text in [&good.replace(": 1, \"files", ": 2, \"files"), &good[..40], &good.replace(SHA1, "zz"), "{}", ""] {
            assert_eq!(Tree::from_json(text), None, "{text}");
        }
        let entry = serde_json::json!({"type": "file", "oid": "zz", "size": 7, "path": "a"});
        let error = Tree::from_api([serde_json::from_value::<ApiEntry>(entry).unwrap()]).unwrap_err();
        assert!(error.contains("`a`"), "{error}");
    }
}
