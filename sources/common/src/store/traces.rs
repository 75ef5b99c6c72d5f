//! What a cache says of a revision beside its links.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use llm_local_core::Result;

use super::{
    below::{real, real_inside},
    entry::Place,
    record::Record,
    tree,
};
use crate::disk::SOURCE_NOTES;

/// A name of fewer characters may be the content or the name of anything; a commit has 40.
const TELLING: usize = 40;
/// A file of more bytes is no ref.
const LONGEST_REF: u64 = 256;

/// Removes what names the revision of `record`, if `links`, which are about to go, are all that is left of it: the refs
/// that the record knows, if they still say what it says, and those that other tools made; and what its source noted of
/// it. Where nothing at all is left, what was noted of other revisions goes too, since nobody would ever delete those.
///
/// Gives the paths in whose folders something was.
pub(super) fn remove(record: &Record, links: &BTreeSet<PathBuf>) -> Result<Vec<PathBuf>> {
    let Some(cache) = &record.cache else { return Ok(Vec::new()) };
    let Some(all_links) = real_inside(&cache.root, &cache.links.at(&cache.root))? else { return Ok(Vec::new()) };
    let mut places = Vec::new();
    let trees: BTreeSet<&str> = record.files.iter().filter_map(|file| record.tree(file)).collect();
    for tree in trees {
        if tree::files(&all_links.join(tree))?.iter().any(|path| !links.contains(path)) {
            continue;
        }
        for (path, text) in &cache.refs {
            if let Some(path) = real_inside(&cache.root, &path.at(&cache.root))? {
                if says(&path, text) {
                    tree::remove(&path)?;
                }
                places.push(path);
            }
        }
        if tree.len() >= TELLING {
            for path in named(record, &all_links, tree)? {
                tree::remove(&path)?;
                places.push(path);
            }
        }
    }
    if tree::files(&all_links)?.iter().all(|path| links.contains(path)) {
        for path in notes(&all_links)? {
            tree::remove(&path)?;
            places.push(path);
        }
    }
    Ok(places)
}

/// What sources noted beside `all_links`, but of revisions that have a folder there: somebody is about to fetch them.
fn notes(all_links: &Path) -> Result<Vec<PathBuf>> {
    let Some(home) = all_links.parent() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (path, is_folder) in tree::entries(&home.join(SOURCE_NOTES))? {
        if path.file_stem().is_some_and(|revision| all_links.join(revision).is_dir()) {
            continue;
        }
        if is_folder { found.extend(tree::files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// Files beside the trees of links that name `tree`: by what they say (`refs/main`), by their name
/// (`trees/<commit>.json`), as empty files in a folder of that name (`.no_exist/<commit>/...`), or as anything in such a
/// folder of notes.
fn named(record: &Record, all_links: &Path, tree: &str) -> Result<Vec<PathBuf>> {
    let Some(home) = all_links.parent() else { return Ok(Vec::new()) };
    let content = record.files.iter().filter_map(|file| match &file.place {
        Place::Linked { blob, .. } => real(&blob.at(record.cache_root())).parent().map(Path::to_owned),
        _ => None,
    });
    let mut skipped: BTreeSet<PathBuf> = content.collect();
    skipped.insert(all_links.to_owned());
    let (mut found, mut folders) = (Vec::new(), vec![home.to_owned()]);
    while let Some(folder) = folders.pop() {
        for (path, is_folder) in tree::entries(&folder)? {
            if is_folder {
                if !skipped.contains(&path) {
                    folders.push(path);
                }
                continue;
            }
            let in_its_folder =
                || path.strip_prefix(home).is_ok_and(|p| p.iter().rev().skip(1).any(|part| part == tree));
            let is_noted = || path.starts_with(home.join(SOURCE_NOTES).join(tree));
            let is_named = path.file_stem().is_some_and(|stem| stem == tree);
            let is_empty = || fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && m.len() == 0);
            if is_named || says(&path, tree) || in_its_folder() && is_empty() || is_noted() {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Whether the regular file at `path` says `text` and nothing else.
fn says(path: &Path, text: &str) -> bool {
    let small = fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() <= LONGEST_REF);
    small && fs::read_to_string(path).is_ok_and(|found| found.trim() == text.trim())
}
