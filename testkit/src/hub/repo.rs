//! What is in a repository.

use std::collections::BTreeMap;

use crate::server::{Content, digest};

/// A repository of models. Its files are put into a commit, the newest one of `main`; more commits can follow.
#[derive(Debug, Clone)]
pub struct Repo {
    pub(super) id: String,
    pub(super) commits: Vec<BTreeMap<String, File>>,
    pub(super) branches: BTreeMap<String, usize>,
    pub(super) tags: BTreeMap<String, usize>,
    pub(super) gated: Option<Gated>,
    pub(super) private: bool,
    pub(super) disabled: bool,
    pub(super) license: Option<String>,
    pub(super) labels: Vec<String>,
    pub(super) former_ids: Vec<String>,
}

/// How access to a gated repository is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Gated {
    /// To everyone who accepts the terms.
    Auto,
    /// By the owner, one by one.
    Manual,
}

/// A file of a commit.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) content: Content,
    pub(super) kept: Kept,
}

/// Where the Hub keeps a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kept {
    Plain,
    Lfs { xet_hash: Option<String> },
}

impl Repo {
    /// An empty repository. `id` is `org/name`, or a name alone as the oldest ones have it.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            commits: vec![BTreeMap::new()],
            branches: BTreeMap::new(),
            tags: BTreeMap::new(),
            gated: None,
            private: false,
            disabled: false,
            license: None,
            labels: Vec::new(),
            former_ids: Vec::new(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Puts a plain file at `path`: its ETag is its id as a git blob, and the Hub serves it itself. Any path is taken,
    /// also one that a careful client refuses.
    pub fn with_file(self, path: impl Into<String>, content: impl Into<Content>) -> Self {
        self.put(path.into(), content.into(), Kept::Plain)
    }

    /// Puts a file in LFS at `path`: it is known by its SHA-256, and the Hub redirects to the second host for it.
    pub fn with_lfs(self, path: impl Into<String>, content: impl Into<Content>) -> Self {
        self.put(path.into(), content.into(), Kept::Lfs { xet_hash: None })
    }

    /// Puts a file at `path` that is in xet as well as in LFS, under this hash. Only the plain way is served.
    pub fn with_xet(self, path: impl Into<String>, content: impl Into<Content>, xet_hash: impl Into<String>) -> Self {
        self.put(path.into(), content.into(), Kept::Lfs { xet_hash: Some(xet_hash.into()) })
    }

    /// Takes the file at `path` out of the newest commit.
    pub fn without_file(mut self, path: &str) -> Self {
        self.newest().remove(path);
        self
    }

    /// Begins another commit, which has all the files of the one before until they are changed.
    pub fn with_commit(mut self) -> Self {
        let files = self.newest().clone();
        self.commits.push(files);
        self
    }

    /// Lets a branch besides `main` point to the newest commit: it stays there when more commits follow. One called
    /// `refs/pr/1` is a pull request.
    pub fn with_branch(mut self, name: impl Into<String>) -> Self {
        self.branches.insert(name.into(), self.commits.len() - 1);
        self
    }

    /// Lets a tag point to the newest commit.
    pub fn with_tag(mut self, name: impl Into<String>) -> Self {
        self.tags.insert(name.into(), self.commits.len() - 1);
        self
    }

    /// Makes it gated: all see what is in it, and only tokens with access get its files.
    pub fn gated(mut self, gated: Gated) -> Self {
        self.gated = Some(gated);
        self
    }

    /// Makes it private: without access it looks as if it were not there.
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Makes it one that the Hub has closed: every request is refused.
    pub fn disabled(mut self) -> Self {
        self.disabled = true;
        self
    }

    /// Sets the licence that its card names.
    pub fn with_license(mut self, license: impl Into<String>) -> Self {
        self.license = Some(license.into());
        self
    }

    /// Adds one of the words that the Hub lists as tags of a model: `transformers`, `gguf`, `base_model:org/name`.
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.labels.push(label.into());
        self
    }

    /// Lets requests for this former id be redirected.
    pub fn renamed_from(mut self, id: impl Into<String>) -> Self {
        self.former_ids.push(id.into());
        self
    }

    fn put(mut self, path: String, content: Content, kept: Kept) -> Self {
        self.newest().insert(path, File { content, kept });
        self
    }

    fn newest(&mut self) -> &mut BTreeMap<String, File> {
        self.commits.last_mut().expect("a repository has a commit from the start")
    }
}

impl File {
    /// The id of what git holds: the file itself, or the pointer to it.
    pub(super) fn git_id(&self) -> String {
        match self.kept {
            Kept::Plain => self.content.git_blob().to_owned(),
            Kept::Lfs { .. } => Content::from(self.pointer()).git_blob().to_owned(),
        }
    }

    /// The text that git holds in place of a file in LFS (version 1 of the pointer's specification).
    pub(super) fn pointer(&self) -> String {
        let (sha256, size) = (self.content.sha256(), self.content.size());
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
    }
}

/// A repository with the ids of its commits.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) repo: Repo,
    pub(super) commit_ids: Vec<String>,
    git_ids: Vec<BTreeMap<String, String>>,
}

/// A commit of a [`Published`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Commit<'a> {
    pub(super) id: &'a str,
    pub(super) files: &'a BTreeMap<String, File>,
    /// The git ids of the files.
    pub(super) git_ids: &'a BTreeMap<String, String>,
}

impl Published {
    pub(super) fn new(repo: Repo) -> Self {
        let ids = |files: &BTreeMap<String, File>| files.iter().map(|(path, f)| (path.clone(), f.git_id())).collect();
        let git_ids: Vec<BTreeMap<String, String>> = repo.commits.iter().map(ids).collect();
        let mut commit_ids: Vec<String> = Vec::new();
        for files in &git_ids {
            let parent = commit_ids.last().map_or("", String::as_str);
            let entries = files.iter().flat_map(|(path, id)| [path.as_str(), id.as_str()]);
            commit_ids.push(digest::sha1_of([repo.id.as_str(), parent].into_iter().chain(entries)));
        }
        Self { repo, commit_ids, git_ids }
    }

    /// The commit that `revision` names: `main`, another branch, a tag, or a commit's whole id.
    pub(super) fn commit(&self, revision: &str) -> Option<Commit<'_>> {
        let named = |names: &BTreeMap<String, usize>| names.get(revision).copied();
        let index = named(&self.repo.branches)
            .or_else(|| named(&self.repo.tags))
            .or_else(|| (revision == "main").then(|| self.commit_ids.len() - 1))
            .or_else(|| self.commit_ids.iter().position(|id| id == revision))?;
        Some(Commit { id: &self.commit_ids[index], files: &self.repo.commits[index], git_ids: &self.git_ids[index] })
    }
}
