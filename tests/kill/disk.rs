//! What is published, and what is on its way.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use llm_local_source_common::store::Store;

use crate::world::{WEIGHTS, World};

/// What a process left, found to be right as far as it goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// The names of the files that are published.
    pub(crate) published: BTreeSet<String>,
    pub(crate) recorded: bool,
    /// Whether the ref names the commit.
    pub(crate) has_ref: bool,
}

/// Bytes of the weights that are done: of each segment, where it begins, how many, and where it ends.
pub(crate) struct Done(pub(crate) Vec<(u64, u64, u64)>);

impl World {
    fn repo(&self, folder: &Path) -> PathBuf {
        folder.join("hub/models--org--tiny")
    }

    fn digest(&self, name: &str) -> &str {
        let content = &self.files[name];
        if name == WEIGHTS { content.sha256() } else { content.git_blob() }
    }

    /// Where the content of the file `name` is published.
    pub(crate) fn blob(&self, folder: &Path, name: &str) -> PathBuf {
        self.repo(folder).join("blobs").join(self.digest(name))
    }

    /// Where the file `name` is published.
    pub(crate) fn link(&self, folder: &Path, name: &str) -> PathBuf {
        self.repo(folder).join("snapshots").join(self.hub.commit("org/tiny", "main").unwrap()).join(name)
    }

    /// The ref.
    pub(crate) fn ref_path(&self, folder: &Path) -> PathBuf {
        self.repo(folder).join("refs/main")
    }

    /// The folder of the weights' partial.
    pub(crate) fn partial(&self, folder: &Path) -> PathBuf {
        folder.join("store/partials").join(format!("sha256-{}", self.digest(WEIGHTS)))
    }

    /// Reads what is published in `folder`. Every byte of it is compared with the hub's; that nothing else is there, and
    /// that nothing is there too soon, is asserted too.
    pub(crate) fn left(&self, folder: &Path) -> Left {
        let is = |path: &Path, name: &str| fs::read(path).unwrap() == bytes(self, name);
        for blob in names(&self.repo(folder).join("blobs")) {
            let name = self.files.keys().find(|name| self.digest(name) == blob);
            let name = name.unwrap_or_else(|| panic!("{blob} is no content of the model"));
            assert!(is(&self.blob(folder, name), name), "the blob of {name} is not what its name says");
        }
        let commits = names(&self.repo(folder).join("snapshots"));
        assert!(commits.iter().all(|commit| Some(commit) == self.hub.commit("org/tiny", "main").as_ref()));
        let snapshot = self.link(folder, WEIGHTS).parent().unwrap().to_owned();
        let published: BTreeSet<String> = names(&snapshot).into_iter().collect();
        for name in &published {
            assert!(self.files.contains_key(name), "{name} is no file of the model");
            assert!(is(&self.link(folder, name), name), "{name} is published and not what it should be");
        }
        let refs = names(&self.repo(folder).join("refs"));
        assert!(refs.iter().all(|name| name == "main"), "{refs:?}");
        if !refs.is_empty() {
            assert_eq!(fs::read_to_string(self.ref_path(folder)).ok(), self.hub.commit("org/tiny", "main"));
        }
        let left = Left { recorded: self.is_recorded(folder), has_ref: !refs.is_empty(), published };
        let whole = left.published.iter().eq(self.files.keys());
        assert!(whole || !left.recorded && !left.has_ref, "{left:?}");
        assert!(left.recorded || !left.has_ref, "the ref comes last: {left:?}");
        assert!(names(&folder.join("store/blobs")).is_empty());
        self.assert_partials(folder);
        left
    }

    /// Asserts that only the weights have a partial, and once they are published nothing of it but how far it was.
    fn assert_partials(&self, folder: &Path) {
        let weights = self.partial(folder);
        let partials = names(&folder.join("store/partials"));
        let expected = weights.file_name().unwrap().to_str().unwrap();
        assert!(partials.iter().all(|name| name == expected), "{partials:?}");
        let of_weights = names(&weights);
        let has_data = of_weights.iter().any(|name| name == "data");
        assert!(!(has_data && self.blob(folder, WEIGHTS).exists()), "what is published has a partial: {of_weights:?}");
    }

    /// Whether the store has a record.
    pub(crate) fn is_recorded(&self, folder: &Path) -> bool {
        names(&folder.join("store/artifacts")).iter().any(|name| name.ends_with(".json") && !name.starts_with('.'))
    }

    /// Asserts that all is as a download leaves it. What processes that were killed left of files that they were writing
    /// goes with the next cleaning.
    pub(crate) fn assert_whole(&self, folder: &Path) {
        let published = self.files.keys().cloned().collect();
        let whole = Left { published, recorded: true, has_ref: true };
        assert_eq!(self.left(folder), whole);
        assert!(names(&folder.join("store/partials")).is_empty());
        let hours = Duration::from_secs(2 * 60 * 60);
        Store::new(folder.join("store")).clean(Duration::ZERO, SystemTime::now() + hours).unwrap();
        let all = files(folder);
        assert!(!all.is_empty() && !all.iter().any(|path| is_temporary(path)), "{all:?}");
        assert_eq!(self.left(folder), whole);
    }

    /// How far the weights are. That the bytes which count as done are the hub's is asserted.
    pub(crate) fn done(&self, folder: &Path) -> Done {
        let (size, segment) = (self.size(), self.segment_bytes());
        let starts = || (0..size).step_by(segment as usize);
        if self.blob(folder, WEIGHTS).exists() {
            return Done(starts().map(|at| (at, segment.min(size - at), size.min(at + segment))).collect());
        }
        // The form is the one that `disk::state` of the sources' common part describes.
        let state = fs::read(self.partial(folder).join("state")).unwrap_or_default();
        let counts = state.iter().position(|&byte| byte == b'\n').map_or(&[][..], |end| &state[end + 1..]);
        let counts: Vec<_> = counts.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
        assert!(counts.is_empty() || counts.len() == starts().count(), "{} counts", counts.len());
        let data = fs::read(self.partial(folder).join("data")).unwrap_or_default();
        let counts = counts.into_iter().chain(std::iter::repeat(0));
        let done = starts().zip(counts).map(|(at, done)| (at, done, size.min(at + segment))).collect::<Vec<_>>();
        let content = bytes(self, WEIGHTS);
        for &(at, done, _) in &done {
            let range = at as usize..(at + done) as usize;
            assert!(
                done == 0 || data.get(range.clone()) == content.get(range),
                "{done} bytes from {at} are not the hub's"
            );
        }
        Done(done)
    }
}

impl Done {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, done, _)| done).sum()
    }

    /// Where the next requests begin.
    pub(crate) fn next(&self) -> Vec<u64> {
        self.0.iter().filter(|(at, done, end)| at + done < *end).map(|(at, done, _)| at + done).collect()
    }
}

fn bytes(world: &World, name: &str) -> Vec<u8> {
    let content = &world.files[name];
    content.read(0..content.size()).unwrap()
}

/// Whether it is a file on its way to another name.
fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name.ends_with(".tmp") || name.ends_with(".incomplete")
}

/// All files and links below the folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let below = |name: String| {
        let path = folder.join(name);
        let is_folder = fs::symlink_metadata(&path).unwrap().is_dir();
        if is_folder { files(&path) } else { vec![path] }
    };
    names(folder).into_iter().flat_map(below).collect()
}

/// What is in the folder; nothing if it is not there.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
