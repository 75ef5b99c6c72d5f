//! What is missing, once for each content, and how much of it is here already.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use super::{
    Call,
    plan::{Place, Plan},
};
use crate::disk::{FileKey, Partial, Target};

/// Content that files of a call lack, each at its place.
pub(super) struct Content {
    pub(super) key: FileKey,
    pub(super) size: u64,
    /// At least one. All have one blob.
    pub(super) spots: Vec<Wanted>,
    /// Where a file of the call has it.
    pub(super) twin: Option<PathBuf>,
}

/// A file that lacks its content, or at least its link.
pub(super) struct Wanted {
    pub(super) job: usize,
    pub(super) index: usize,
    pub(super) target: Target,
}

/// What of some [`Content`] is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Here {
    /// All of it is: only links are missing.
    pub(super) blob: bool,
    /// Bytes that need not come.
    pub(super) bytes: u64,
    /// Bytes of the disk that its partial takes.
    pub(super) taken: u64,
}

/// What the files without a path in `paths` lack.
pub(super) fn contents(call: &Call, plan: &Plan, paths: &[Vec<Option<PathBuf>>]) -> Vec<Content> {
    let stored = plan.places.iter().enumerate().flat_map(|(job, places)| {
        places.iter().enumerate().filter_map(move |(index, place)| match place {
            Place::Stored { key, target } => Some((job, index, key, target)),
            Place::Local(_) => None,
        })
    });
    let (mut contents, mut known, mut there) = (Vec::<Content>::new(), HashMap::new(), HashMap::new());
    for (job, index, key, target) in stored {
        // Of one key are also files in two caches, each of which has its own blob.
        let content = (key, &target.blob);
        if let Some(path) = &paths[job][index] {
            there.insert(content, path);
            continue;
        }
        let size = call.jobs[job].manifest.files[index].size;
        let at = *known.entry(content).or_insert_with(|| {
            contents.push(Content { key: key.clone(), size, spots: Vec::new(), twin: None });
            contents.len() - 1
        });
        contents[at].spots.push(Wanted { job, index, target: target.clone() });
    }
    for (content, at) in known {
        contents[at].twin = there.get(&content).map(|path| (*path).clone());
    }
    contents
}

impl Content {
    pub(super) fn blob(&self) -> &Path {
        &self.spots[0].target.blob
    }

    /// Blocks.
    pub(super) fn here(&self, root: &Path) -> Here {
        if self.twin.is_some() || self.spots[0].target.has_blob(self.size) {
            return Here { blob: true, bytes: self.size, taken: 0 };
        }
        let (bytes, taken) = Partial::peek_room(root, &self.key, self.size);
        Here { blob: false, bytes, taken }
    }
}

/// Bytes that are still to come of all `contents` together. Blocks.
pub(super) fn bytes(root: &Path, contents: &[Content]) -> u64 {
    // One partial is the beginning of one file, also where two caches want its content.
    let mut partials = HashSet::new();
    let missing = contents.iter().map(|content| {
        let here = content.here(root);
        let counts = here.blob || partials.insert(&content.key);
        content.size - if counts { here.bytes } else { 0 }
    });
    // Sizes come from remote listings: together they may be more than any number.
    missing.fold(0, u64::saturating_add)
}

/// Bytes that are not published of all `contents` together. Blocks.
pub(super) fn unpublished(root: &Path, contents: &[Content]) -> u64 {
    let missing = contents.iter().filter(|content| !content.here(root).blob).map(|content| content.size);
    missing.fold(0, u64::saturating_add)
}
