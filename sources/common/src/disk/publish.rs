//! A whole file, moved to its place in one step.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result};

use super::{
    FileKey, FileLock, Partial,
    folder::{
        common_folder, create_lasting_folders, no_links_here, parent, relative, replace_with_symlink, sync_folder,
    },
    temporary::{incomplete, temporary},
};

/// Where a file is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The content.
    pub(crate) blob: PathBuf,
    /// A relative symbolic link to it; the file itself where links are not to be had.
    pub(crate) link: Option<PathBuf>,
}

impl Target {
    /// The path that is used.
    pub(crate) fn path(&self) -> &Path {
        self.link.as_deref().unwrap_or(&self.blob)
    }

    /// Whether the file is there for use, all `size` bytes of it.
    pub(crate) fn is_published(&self, size: u64) -> bool {
        is_whole(self.path(), size)
    }

    /// Whether the content is there, all `size` bytes of it; perhaps without its link.
    pub(crate) fn has_blob(&self, size: u64) -> bool {
        is_whole(&self.blob, size)
    }
}

/// Removes what a process left of the partial of `key` that was killed between publishing the file and that: its state,
/// and, where it was copied to another file system, the copy's origin. A partial that still has bytes to get stays.
///
/// # Errors
/// [`Error::Io`] that names the folder.
pub(crate) fn sweep(root: &Path, key: &FileKey, size: u64) -> Result<()> {
    let folder = key.partial(root);
    let is_left = || folder.exists() && (!folder.join("data").exists() || Partial::peek(root, key, size) == size);
    if !is_left() {
        return Ok(());
    }
    // Whoever has it is at work.
    let Some(_lock) = FileLock::try_acquire(&key.lock(root))? else { return Ok(()) };
    match fs::remove_dir_all(&folder) {
        Err(e) if is_left() => Err(Error::io("remove", &folder, e)),
        _ => Ok(()),
    }
}

/// Whether `path` leads to a file of `size` bytes.
fn is_whole(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == size)
}

/// Moves `partial`, which the caller has verified, to `target`, and removes what was kept of it. Content of that size
/// that is there already stays and `partial` goes. A crash at any point leaves either what was there or a file that is
/// whole, and a link only to such a one. Blocks until the disk has all of it.
///
/// # Errors
/// [`Error::Io`] that names the file or folder; also if bytes are missing, or the partial was deleted or replaced by
/// somebody else. The partial stays.
pub(crate) fn publish(partial: Partial, target: &Target) -> Result<()> {
    publish_by(partial, target, &System)
}

/// Makes the link to content that is there. Where links are not permitted it becomes a copy.
///
/// # Errors
/// [`Error::Io`] that names the link.
pub(crate) fn link(target: &Target) -> Result<()> {
    link_by(target, false, &System)
}

/// What not every file system can do, apart, so that tests can go without.
trait FileSystem {
    /// Fails with [`io::ErrorKind::CrossesDevices`] if the two are on different file systems.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Puts a symbolic link in place of what is at `link`.
    fn symlink(&self, target: &Path, link: &Path, staging: &Path) -> io::Result<()> {
        replace_with_symlink(target, link, staging)
    }
}

struct System;

impl FileSystem for System {}

fn publish_by(partial: Partial, target: &Target, system: &impl FileSystem) -> Result<()> {
    let failed = |action, why: &str| {
        let kind = io::ErrorKind::InvalidData;
        Err(Error::io(action, partial.path(), io::Error::new(kind, why)))
    };
    let size = partial.size();
    if !partial.is_complete() {
        return failed("publish", &format!("only {} of {size} bytes are there", partial.done_bytes()));
    }
    let fresh = !target.has_blob(size);
    if fresh {
        partial.sync()?;
        if !partial.is_in_place() {
            return failed("publish", "somebody deleted or replaced it meanwhile; start the download again");
        }
        create_lasting_folders(parent(&target.blob))?;
        match system.rename(partial.path(), &target.blob) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => copy_beside(&partial, &target.blob)?,
            other => other.map_err(|e| Error::io("move the download to", &target.blob, e))?,
        }
        sync_folder(parent(&target.blob))?;
    }
    link_by(target, fresh, system)?;
    // The file is published; what is left over does no harm, and the next download of it clears it away.
    if let Err(error) = partial.remove() {
        tracing::warn!(%error, "a finished download leaves something behind");
    }
    Ok(())
}

/// Makes the link of `target`, if it has one and it is not there. The blob may be moved there if it is `fresh`, so that
/// nobody else uses it yet.
fn link_by(target: &Target, fresh: bool, system: &impl FileSystem) -> Result<()> {
    let Some(link) = &target.link else { return Ok(()) };
    let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Error::io("find", path, e));
    let (link, blob) = (&absolute(link)?, &absolute(&target.blob)?);
    create_lasting_folders(parent(link))?;
    let mut way = relative(blob, link);
    // `..` leads out of where the folder really is, which may be elsewhere.
    let folder = parent(link).canonicalize().map_err(|e| Error::io("find", parent(link), e))?;
    if !folder.join(&way).exists() {
        way.clone_from(blob);
    }
    if fs::read_link(link).is_ok_and(|there| there == way) {
        return Ok(());
    }
    // Not beside the link: other tools take whatever is there for a file of the artifact.
    let staging = common_folder(blob, link).unwrap_or(parent(link));
    match system.symlink(&way, link, staging) {
        Err(e) if no_links_here(&e) && fresh => {
            fs::rename(blob, link).map_err(|e| Error::io("move the download to", link, e))?;
            sync_folder(parent(blob))?;
        }
        Err(e) if no_links_here(&e) => {
            let copy = temporary(staging)?;
            File::open(blob)
                .and_then(|mut from| io::copy(&mut from, &mut copy.as_file()))
                .and_then(|_| copy.as_file().sync_all())
                .map_err(|e| Error::io("copy the blob to", copy.path(), e))?;
            copy.persist(link).map_err(|e| Error::io("move the copy to", link, e.error))?;
        }
        other => other.map_err(|e| Error::io("make the link", link, e))?,
    }
    sync_folder(parent(link))
}

/// Copies `partial` to `blob`, on another file system, by way of a file beside it.
fn copy_beside(partial: &Partial, blob: &Path) -> Result<()> {
    // One name for each partial, which is locked: what a crash leaves is overwritten, not added to.
    let copy = incomplete(blob, &partial.tag());
    let failed = |e| Error::io("copy the download to", &copy, e);
    let copied = File::create(&copy)
        .and_then(|mut to| {
            let copied = io::copy(&mut File::open(partial.path())?, &mut to)?;
            if copied != partial.size() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("only {copied} bytes were copied")));
            }
            to.sync_all()
        })
        .map_err(failed)
        .and_then(|()| fs::rename(&copy, blob).map_err(|e| Error::io("move the copy to", blob, e)));
    if copied.is_err() {
        // On a full disk above all.
        let _ = fs::remove_file(&copy);
    }
    copied
}

#[cfg(test)]
mod tests;
