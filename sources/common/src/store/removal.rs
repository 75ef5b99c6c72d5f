//! What a deletion takes, and in which order: what names an artifact, its links, its content, empty folders, its record.
//! Wherever it is cut off, no link is left without content, and the record is there to go on from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use llm_local_core::Result;

use super::{
    Deleted, Store,
    below::{Below, real_inside},
    entry::Place,
    hold::Held,
    ledger::Unreadable,
    record::{Cache, Record},
    traces, tree,
    usage::Usage,
};

/// Which files of the artifacts that go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taking {
    /// All but those that are their owner's.
    All,
    /// Those that we brought.
    Ours,
}

/// A deletion that was looked through and found to stay inside.
pub(super) struct Removal<'a> {
    store: &'a Store,
    going: Vec<&'a Record>,
    usage: Usage,
    /// The caches they are in, by the real path of their trees of links.
    caches: BTreeMap<PathBuf, &'a Cache>,
    links: BTreeSet<PathBuf>,
    contents: BTreeSet<PathBuf>,
    /// What named them.
    traces: Vec<PathBuf>,
    deleted: Deleted,
}

impl<'a> Removal<'a> {
    /// Collects what `going` need and nothing else does, and refuses if any of it is outside of its root.
    pub(super) fn plan(
        store: &'a Store,
        going: &[&'a Record],
        staying: &[&'a Record],
        taking: Taking,
        unreadable: &[Unreadable],
        held: &[Held],
    ) -> Result<Self> {
        let usage = Usage::new(store, staying.iter().copied(), unreadable, held);
        let mut removal = Self {
            store,
            going: going.to_vec(),
            usage,
            caches: BTreeMap::new(),
            links: BTreeSet::new(),
            contents: BTreeSet::new(),
            traces: Vec::new(),
            deleted: Deleted::default(),
        };
        for record in going {
            if let Some(cache) = &record.cache
                && let Some(links) = real_inside(&cache.root, &cache.links.at(&cache.root))?
            {
                removal.caches.insert(links, cache);
            }
            let taken = record.files.iter().filter(|file| taking == Taking::All || record.is_ours(store.root(), file));
            for file in taken {
                match &file.place {
                    Place::Blob(blob) => removal.take_content(store.real_blob(blob)?, blob),
                    Place::Linked { blob, link } => {
                        let root = record.cache_root();
                        if let Some(link) = real_inside(root, &link.at(root))?
                            && !removal.usage.has_link(&link, &record.revision)
                        {
                            removal.links.insert(link);
                        }
                        removal.take_content(real_inside(root, &blob.at(root))?, blob);
                    }
                    Place::Elsewhere(_) => {}
                }
            }
        }
        Ok(removal)
    }

    /// Takes the content `blob`, which is at `path`, unless something else needs it.
    fn take_content(&mut self, path: Option<PathBuf>, blob: &Below) {
        self.contents.extend(path.filter(|path| !self.usage.has_content(path, blob.name())));
    }

    /// Removes it all.
    pub(super) fn execute(mut self) -> Result<Deleted> {
        for record in &self.going {
            self.traces.extend(traces::remove(record, &self.links)?);
        }
        for link in &self.links {
            remove(link, &mut self.deleted)?;
        }
        self.remove_contents()?;
        self.remove_empty_folders()?;
        for record in &self.going {
            tree::remove(&self.store.note_path(record))?;
            let was_recorded = tree::remove(&self.store.record_path(record))?.is_some();
            self.deleted.artifacts += usize::from(was_recorded);
        }
        Ok(self.deleted)
    }

    fn remove_contents(&mut self) -> Result<()> {
        let mut linked = BTreeSet::new();
        for links in self.caches.keys() {
            linked.extend(tree::files(links)?.iter().filter_map(|path| tree::target(path)));
        }
        self.contents.retain(|content| !linked.contains(content));
        for content in &self.contents {
            remove(content, &mut self.deleted)?;
        }
        // Another tool, which knows nothing of our locks, may have made a link to what it saw there before.
        for links in self.caches.keys() {
            for path in tree::files(links)? {
                if tree::target(&path).is_some_and(|target| self.contents.contains(&target)) && !path.exists() {
                    tree::remove(&path)?;
                    self.links.insert(path);
                }
            }
        }
        Ok(())
    }

    fn remove_empty_folders(&self) -> Result<()> {
        for (links, cache) in &self.caches {
            let root = fs::canonicalize(&cache.root).unwrap_or_else(|_| cache.root.clone());
            // Where the cache keeps what belongs to these links, beside them.
            let home = links.parent().unwrap_or(&root);
            for path in self.links.iter().filter(|path| path.starts_with(links)) {
                self.remove_upwards(path, links);
            }
            for path in self.contents.iter().chain(&self.traces).filter(|path| path.starts_with(home)) {
                self.remove_upwards(path, home);
            }
            // Tools take a cache without its folder of links for a broken one: it goes with all the rest or not at all.
            let alone = tree::entries(home)?.iter().all(|(path, _)| path == links);
            if alone && tree::entries(links)?.is_empty() && !self.usage.is_held_below(links) {
                self.remove_upwards(&links.join("_"), &root);
                if !self.usage.is_held_below(&root) {
                    // Refused unless it is empty.
                    let _ = fs::remove_dir(&root);
                }
            }
        }
        Ok(())
    }

    /// Removes the folder of `path`, and those above it, while they are empty and below `end`.
    fn remove_upwards(&self, path: &Path, end: &Path) {
        let above = path.ancestors().skip(1).take_while(|folder| *folder != end && folder.starts_with(end));
        for folder in above {
            // A folder that is not empty refuses, which is where this ends.
            if self.usage.is_held_below(folder) || (fs::remove_dir(folder).is_err() && folder.exists()) {
                break;
            }
        }
    }
}

/// Removes a file or link and counts it.
fn remove(path: &Path, deleted: &mut Deleted) -> Result<()> {
    let was_link = fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
    if let Some(bytes) = tree::remove(path)? {
        deleted.bytes += bytes;
        deleted.files += usize::from(!was_link);
    }
    Ok(())
}
