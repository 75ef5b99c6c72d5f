//! Damaged files out of the way, so that the next fetch brings them anew.

use std::{collections::BTreeSet, io, path::PathBuf};

use llm_local_core::{Error, Result};

use super::{
    Deleted, Outcome, Store, Verified,
    below::{real, real_inside},
    entry::{Place, RecordFile},
    record::Record,
    tree,
    usage::Usage,
    verify::seen,
};

impl Store {
    /// Removes the files that [`Store::verify`] found to have another size or digest, with every link to them, and links
    /// that lead nowhere. Their records stay: the artifacts are listed as damaged, and the next fetch brings what is
    /// missing. A file that changed since it was verified stays, and so does one that is its owner's.
    ///
    /// # Errors
    /// [`Error::Io`], of kind `ResourceBusy` where somebody holds an artifact that uses one; [`Error::InvalidSpec`]
    /// where a link would lead the removal elsewhere; [`Error::Cancelled`] as [`Store::with_cancel`]. What was removed
    /// before that stays removed.
    pub fn remove_damaged(&self, verified: &[Verified]) -> Result<Deleted> {
        let mut deleted = Deleted::default();
        let damaged: Vec<_> = verified.iter().filter(|v| v.outcome.is_damage()).collect();
        if damaged.is_empty() {
            return Ok(deleted);
        }
        let _changing = self.change()?;
        let ledger = self.ledger()?;
        let usage = Usage::new(self, [], &[], &self.held()?);
        for verified in damaged {
            // The record says where things are; what was handed in may be from anywhere.
            let records = ledger.records.iter();
            let same = |r: &&Record| r.reference == verified.reference && r.revision == verified.revision;
            for record in records.filter(same) {
                let files = record.files.iter().filter(|f| f.path == verified.path);
                for file in files {
                    self.remove_file(record, file, verified, &usage, &mut deleted)?;
                }
            }
        }
        Ok(deleted)
    }

    fn remove_file(
        &self,
        record: &Record,
        file: &RecordFile,
        verified: &Verified,
        usage: &Usage,
        deleted: &mut Deleted,
    ) -> Result<()> {
        let used = record.used_path(self.root(), file);
        let unchanged = match (&verified.outcome, seen(&used)) {
            (Outcome::Missing, Err(Outcome::Missing)) => true,
            (Outcome::WrongSize { .. } | Outcome::WrongDigest { .. }, Ok(now)) => verified.seen == Some(now),
            _ => false,
        };
        if !unchanged || used != verified.file {
            return Ok(());
        }
        let (mut links, mut contents) = (BTreeSet::new(), BTreeSet::new());
        match &file.place {
            Place::Blob(blob) => contents.extend(self.real_blob(blob)?),
            Place::Linked { blob, link } => {
                let root = record.cache_root();
                let (blob, link) = (real_inside(root, &blob.at(root))?, real_inside(root, &link.at(root))?);
                // A file in place of the link is what is used; content beside it is another matter.
                if let Some(target) = link.as_deref().and_then(tree::target)
                    && Some(&target) == blob.as_ref()
                {
                    let all = record.cache.as_ref().map(|cache| real(&cache.links.at(root)));
                    let all = all.map(|links| tree::files(&links)).transpose()?.unwrap_or_default();
                    links.extend(all.into_iter().filter(|path| tree::target(path).as_ref() == Some(&target)));
                    contents.insert(target);
                }
                links.extend(link);
            }
            Place::Elsewhere(_) => {}
        }
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let is_held = |path: &&PathBuf| usage.has_content(path, &name(path).unwrap_or_default());
        if let Some(busy) = links.iter().chain(&contents).find(is_held) {
            let reason = format!(
                "an artifact that uses it is loaded or being fetched, as is {} of {}; unload it or wait, then repair again",
                file.path, record.reference
            );
            return Err(Error::io("delete", busy, io::Error::new(io::ErrorKind::ResourceBusy, reason)));
        }
        for path in links.iter().chain(&contents) {
            let bytes = tree::own_bytes(path);
            if tree::remove(path)?.is_some() && bytes > 0 {
                deleted.files += 1;
                deleted.bytes += bytes;
            }
        }
        Ok(())
    }
}
