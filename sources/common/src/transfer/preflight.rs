//! Room on the disks for all that is to come.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use llm_local_core::Result;

use super::missing::{Content, Here};
use crate::disk::{check_space, same_volume};

/// Checks that there is room for what is not here of `contents`, in the store at `root` and where they are published, and
/// for `more` bytes in the store. Blocks.
///
/// # Errors
/// [`Error::InsufficientStorage`](llm_local_core::Error::InsufficientStorage).
pub(super) fn check_room<'a>(
    root: &Path,
    contents: impl IntoIterator<Item = (&'a Content, Here)>,
    more: u64,
) -> Result<()> {
    let mut needed = needed(root, contents);
    if more > 0 {
        needed.push((root.to_owned(), more));
    }
    check_space(&needed)
}

/// Bytes that have to be free below folders.
fn needed<'a>(root: &Path, contents: impl IntoIterator<Item = (&'a Content, Here)>) -> Vec<(PathBuf, u64)> {
    let mut needed = BTreeMap::<PathBuf, u64>::new();
    let mut need = |folder: &Path, bytes: u64| {
        let sum = needed.entry(folder.to_owned()).or_default();
        *sum = sum.saturating_add(bytes);
    };
    let (mut same, mut partials) = (BTreeMap::new(), BTreeSet::new());
    for (content, here) in contents {
        if here.blob {
            continue;
        }
        let folder = content.blob().parent().unwrap_or(root);
        // Of two caches that want one content, the second cannot have the partial that the first takes.
        let taken = if partials.insert(&content.key) { here.taken } else { 0 };
        need(root, content.size - taken);
        // On one file system the partial is moved there; to another it is copied.
        if !*same.entry(folder).or_insert_with(|| same_volume(folder, root)) {
            need(folder, content.size);
        }
    }
    needed.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use llm_local_core::{Manifest, ManifestFile, Want};

    use super::*;
    use crate::{
        disk::{FileKey, Target},
        transfer::missing::Wanted,
    };

    fn content(path: &str, blob: &Path) -> Content {
        let file = ManifestFile::new(path, 100);
        let manifest = Manifest::new("test:a".parse().unwrap(), Want::Model, "1", vec![file]).unwrap();
        let target = Target { blob: blob.to_owned(), link: None };
        let key = FileKey::new(&manifest, &manifest.files[0]);
        Content { key, size: 100, spots: vec![Wanted { job: 0, index: 0, target }], twin: None }
    }

    fn here(blob: bool, taken: u64) -> Here {
        Here { blob, bytes: if blob { 100 } else { 0 }, taken }
    }

    #[test]
    fn room_is_needed_for_what_neither_a_blob_nor_a_partial_takes() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let blob = |name: &str| root.join("blobs").join(name);
        let contents = [content("a", &blob("a")), content("b", &blob("b")), content("c", &blob("c"))];
        let sum = |here: [Here; 3]| needed(root, contents.iter().zip(here));
        assert_eq!(sum([here(false, 0), here(false, 0), here(false, 0)]), [(root.to_owned(), 300)]);
        assert_eq!(sum([here(true, 0), here(false, 40), here(false, 0)]), [(root.to_owned(), 160)]);
        assert_eq!(sum([here(true, 0), here(true, 0), here(true, 0)]), []);
    }

    #[test]
    fn a_partial_is_the_beginning_of_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let twice = [content("a", &root.join("one/a")), content("a", &root.join("other/a"))];
        assert_eq!(needed(root, twice.iter().zip([here(false, 40); 2])), [(root.to_owned(), 160)]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn another_file_system_needs_room_for_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = Path::new("/proc/models");
        let contents = [content("a", &elsewhere.join("a"))];
        let expected = [(elsewhere.to_owned(), 100), (folder.path().to_owned(), 60)];
        assert_eq!(needed(folder.path(), contents.iter().zip([here(false, 40)])), expected);
    }
}
