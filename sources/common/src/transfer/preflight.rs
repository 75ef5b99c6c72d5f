//! Room on the disks for all that is to come.

use std::path::Path;

use llm_local_core::Result;

use super::file::Item;
use crate::disk::{Partial, check_space};

/// Checks that there is room for what `items` lack, in the store at `root` and where they are published. Blocks.
///
/// # Errors
/// [`Error::InsufficientStorage`](llm_local_core::Error::InsufficientStorage).
pub(super) fn check_room(root: &Path, items: &[Item]) -> Result<()> {
    let mut needed = Vec::new();
    for item in items {
        let size = item.spots[0].file.entry().size;
        needed.push((root.to_owned(), size.saturating_sub(Partial::peek(root, &item.key, size))));
        let blob = &item.spots[0].target.blob;
        // On one file system the partial is moved there; to another it is copied.
        if volume(blob) != volume(root) {
            needed.push((blob.clone(), size));
        }
    }
    check_space(&needed)
}

/// Counts what is there of `items` from an earlier run. Blocks.
pub(super) fn count_present(root: &Path, items: &[Item]) {
    for item in items {
        let file = &item.spots[0].file;
        file.recount(Partial::peek(root, &item.key, file.entry().size));
    }
}

/// What is one for all paths on one file system; `None` if that is not known.
fn volume(path: &Path) -> Option<impl PartialEq + use<>> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|p| p.exists())?;
    #[cfg(unix)]
    let volume = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(there).ok()?);
    #[cfg(not(unix))]
    let volume = there.canonicalize().ok()?.components().next().map(|c| c.as_os_str().to_owned());
    Some(volume)
}
