//! What may not be deleted, because something else needs it.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use super::{Store, below::real, entry::Place, hold::Held, ledger::Unreadable, record::Record};

/// What the artifacts that stay need.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// Contents and links.
    paths: HashSet<PathBuf>,
    /// Contents, links and folders that somebody uses at this moment or is about to write into.
    held: HashSet<PathBuf>,
    /// Texts that nobody can read: whatever they name is needed.
    texts: Vec<String>,
    /// Whether one of them is that of a hold.
    unknown_hold: bool,
    /// Whether somebody holds nobody knows what.
    all: bool,
}

impl Usage {
    /// What `staying` records, the unreadable ones and the holds need.
    pub(super) fn new<'a>(
        store: &Store,
        staying: impl IntoIterator<Item = &'a Record>,
        unreadable: &[Unreadable],
        held: &[Held],
    ) -> Self {
        let mut usage = Self::default();
        for record in staying {
            usage.paths.extend(places(store, record));
        }
        for needs in held {
            match needs {
                Held::Needs(record) => usage.held.extend(places(store, record)),
                Held::Text(text) => {
                    usage.texts.push(text.clone());
                    usage.unknown_hold = true;
                }
                Held::Unknown { .. } => (usage.unknown_hold, usage.all) = (true, true),
            }
        }
        usage.texts.extend(unreadable.iter().filter_map(|u| u.text.clone()));
        usage
    }

    /// Whether content named `name` at `path` is needed.
    pub(super) fn has_content(&self, path: &Path, name: &str) -> bool {
        self.has(path) || self.is_named(name)
    }

    /// Whether the link at `path`, of an artifact at `revision`, is needed.
    pub(super) fn has_link(&self, path: &Path, revision: &str) -> bool {
        self.has(path) || self.is_named(revision)
    }

    /// Whether a text that nobody can read names `name`.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.texts.iter().any(|text| text.contains(name))
    }

    /// Whether somebody may be about to write into the folder at `path`.
    pub(super) fn is_held_below(&self, path: &Path) -> bool {
        self.unknown_hold || self.held.iter().any(|held| held.starts_with(path))
    }

    fn has(&self, path: &Path) -> bool {
        self.all || self.paths.contains(path) || self.held.contains(path)
    }
}

/// Where the contents and links of `record` lie.
fn places(store: &Store, record: &Record) -> Vec<PathBuf> {
    let root = record.cache_root();
    let of = |place: &Place| match place {
        Place::Blob(blob) => vec![real(&blob.at(store.root()))],
        Place::Linked { blob, link } => vec![real(&blob.at(root)), real(&link.at(root))],
        Place::Elsewhere(_) => Vec::new(),
    };
    record.files.iter().flat_map(|file| of(&file.place)).collect()
}
