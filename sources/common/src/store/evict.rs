//! A bound on what this store brings to a machine.

use std::{
    collections::{BTreeSet, HashSet},
    path::PathBuf,
};

use llm_local_core::{Error, Result};

use super::{
    Deleted, Store, below::real, delete::is_held, entry::Place, ledger::Ledger, list::Content, removal::Taking, tree,
    usage::Usage,
};

impl Store {
    /// Makes room for `needed` more bytes within `quota`, which bounds the bytes of all that was brought here, each
    /// content counted once and partials apart. First goes what came of artifacts that are not whole, then artifacts, the
    /// least recently used first. One that would free nothing, because others share its content, is passed over.
    ///
    /// What is pinned or held ([`Store::hold`]) stays, and so does the version that is kept selected
    /// ([`HoldKind`](super::HoldKind)). The one before it does not: it is used less and less, and a bound that cannot be
    /// kept would be worse than a way back that leads over a download; [`Store::pin`] keeps it, too. Of an artifact of
    /// which some files were found in the cache of another tool those stay, and so does content that a link of another
    /// tool leads to.
    ///
    /// # Errors
    /// [`Error::InsufficientStorage`] with `needed` and what the quota leaves beside all that must stay, and then
    /// nothing was evicted; [`Error::Io`]; [`Error::InvalidSpec`] and [`Error::Cancelled`] as [`Store::delete`].
    pub fn evict(&self, quota: u64, needed: u64) -> Result<Deleted> {
        let _changing = self.change()?;
        let (ledger, held) = (self.ledger()?, self.held()?);
        let usage = Usage::new(self, [], &ledger.unreadable, &held);
        // What nobody can read may name any content without a record.
        let unknown = ledger.has_unknown();
        let linked = self.linked_by_others(&ledger)?;
        let mut contents = Vec::new();
        for (path, content) in self.contents(&ledger)? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            // Found content is not ours to count; content that nobody records is.
            if content.fetched || content.users.is_empty() {
                let stays =
                    usage.has_content(&path, &name) || linked.contains(&path) || unknown && content.users.is_empty();
                contents.push((path, content, stays));
            }
        }
        let selected = self.selected_and_held(&ledger)?;
        let mut order: Vec<usize> = (0..ledger.records.len())
            .filter(|i| {
                let record = &ledger.records[*i];
                record.has_ours(self.root())
                    && !record.pinned
                    && !selected.contains(i)
                    && !is_held(record, &held)
                    && !usage.is_named(&record.revision)
            })
            .collect();
        order.sort_by_key(|i| (ledger.records[*i].last_used, *i));
        let all = order.iter().copied().collect();
        let least = left(&contents, &all);
        let room = quota.saturating_sub(needed);
        if needed > quota || least > room {
            return Err(Error::insufficient_storage(needed, quota.saturating_sub(least)));
        }
        let total: u64 = contents.iter().map(|(_, content, _)| content.bytes).sum();
        if total <= room {
            return Ok(Deleted::default());
        }
        let unfinished: Vec<_> =
            (0..ledger.unfinished.len()).filter(|i| !is_held(&ledger.unfinished[*i], &held)).collect();
        let mut deleted = self.remove(&ledger, &[], &unfinished, Taking::Ours, &held)?;
        let blobs = real(&self.blobs().join("_"));
        let unrecorded = contents.iter().filter(|(_, content, stays)| content.users.is_empty() && !stays);
        for (path, ..) in unrecorded.filter(|(path, ..)| path.parent() == blobs.parent()) {
            if let Some(bytes) = tree::remove(path)? {
                deleted.bytes += bytes;
                deleted.files += 1;
            }
        }
        let going = choose(&contents, &order, room);
        let removed = self.remove(&ledger, &going, &[], Taking::Ours, &held)?;
        deleted.artifacts = removed.artifacts;
        deleted.files += removed.files;
        deleted.bytes += removed.bytes;
        Ok(deleted)
    }

    /// Content to which a link leads that we did not make.
    fn linked_by_others(&self, ledger: &Ledger) -> Result<HashSet<PathBuf>> {
        let (mut trees, mut known) = (BTreeSet::new(), HashSet::new());
        let records = || ledger.records.iter().chain(&ledger.unfinished);
        for record in records() {
            let Some(cache) = &record.cache else { continue };
            trees.insert(real(&cache.links.at(&cache.root)));
        }
        for record in records() {
            for file in record.files.iter().filter(|file| record.is_ours(self.root(), file)) {
                if let Place::Linked { link, .. } = &file.place {
                    known.insert(real(&link.at(record.cache_root())));
                }
            }
        }
        let mut linked = HashSet::new();
        for tree in trees {
            let others = tree::files(&tree)?.into_iter().filter(|path| !known.contains(path));
            linked.extend(others.filter_map(|path| tree::target(&path)));
        }
        Ok(linked)
    }
}

/// Bytes that are left once the records `going` are gone, and content without a record.
fn left(contents: &[(PathBuf, Content, bool)], going: &HashSet<usize>) -> u64 {
    let stays =
        |(_, content, stays): &&(PathBuf, Content, bool)| *stays || !content.users.iter().all(|u| going.contains(u));
    contents.iter().filter(stays).map(|(_, content, _)| content.bytes).sum()
}

/// The fewest records, from the front of `order`, without which no more than `room` bytes are left.
fn choose(contents: &[(PathBuf, Content, bool)], order: &[usize], room: u64) -> Vec<usize> {
    let mut going = HashSet::new();
    let mut chosen = Vec::new();
    for number in order {
        if left(contents, &going) <= room {
            break;
        }
        going.insert(*number);
        chosen.push(*number);
    }
    // Some freed nothing, or what the later ones freed was enough: the last used of these come back first.
    for number in chosen.iter().rev() {
        going.remove(number);
        if left(contents, &going) > room {
            going.insert(*number);
        }
    }
    chosen.retain(|number| going.contains(number));
    chosen
}
