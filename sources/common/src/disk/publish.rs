//! A whole file, moved to its place in one step.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result};
use tempfile::{NamedTempFile, TempPath};

use super::{
    FileKey, FileLock, Folders, Partial,
    folder::{common_folder, no_links_here, parent, relative, replace_with_symlink},
    steps,
    temporary::{incomplete, temporary, temporary_in},
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

/// Moves `partial`, which the caller has verified, to `targets`, which have one blob, and removes what was kept of it.
/// Content of that size that is there already stays and `partial` goes. A crash at any point leaves either what was there
/// or a file that is whole, and a link only to such a one; that the links outlast a power loss is for [`Folders::sync`].
/// Blocks until the disk has all of the content.
///
/// # Errors
/// [`Error::Io`] that names the file or folder; also if bytes are missing, or the partial was deleted or replaced by
/// somebody else. The partial stays.
pub(crate) fn publish(partial: Partial, targets: &[Target], folders: &Folders) -> Result<()> {
    publish_by(partial, targets, folders, &System)
}

/// Publishes `bytes`, all of a small file, which the caller has verified, at `targets`, which have one blob. Whoever
/// calls it has the file's lock. What it leaves is as [`publish`] says, but that the blob too outlasts a power loss only
/// after [`Folders::sync`]; no file is there under its name before the disk has it.
///
/// # Errors
/// [`Error::Io`] that names the file or folder.
pub(crate) fn publish_bytes(bytes: &[u8], root: &Path, targets: &[Target], folders: &Folders) -> Result<()> {
    publish_bytes_by(bytes, root, targets, folders, &System)
}

/// Moves `file`, which is whole and may lie on another file system, to `blob`, in the place of what is there. Blocks until
/// the disk has it, and knows it by that name.
///
/// # Errors
/// [`Error::Io`] that names the file or folder.
pub(crate) fn publish_temporary(file: NamedTempFile, blob: &Path, folders: &Folders) -> Result<()> {
    publish_temporary_by(file, blob, folders, &System)
}

/// Makes the links of `targets`, which have one blob, to content of `size` bytes that is there: as the blob, or at one
/// of the targets or at `twin`, where links are not to be had; then they become copies. Whether it is there.
///
/// # Errors
/// [`Error::Io`] that names the link.
pub(crate) fn link(targets: &[Target], size: u64, twin: Option<&Path>, folders: &Folders) -> Result<bool> {
    link_by(targets, size, twin, folders, &System)
}

/// What not every file system can do, apart, so that tests can go without.
trait FileSystem {
    /// Fails with [`io::ErrorKind::CrossesDevices`] if the two are on different file systems.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        steps::rename(from, to)
    }

    /// Puts a symbolic link in place of what is at `link`.
    fn symlink(&self, target: &Path, link: &Path, staging: &Path) -> io::Result<()> {
        replace_with_symlink(target, link, staging)?;
        steps::note("link", target, link);
        Ok(())
    }
}

struct System;

impl FileSystem for System {}

fn publish_by(partial: Partial, targets: &[Target], folders: &Folders, system: &impl FileSystem) -> Result<()> {
    let failed = |action, why: &str| {
        let kind = io::ErrorKind::InvalidData;
        Err(Error::io(action, partial.path(), io::Error::new(kind, why)))
    };
    let size = partial.size();
    if !partial.is_complete() {
        return failed("publish", &format!("only {} of {size} bytes are there", partial.done_bytes()));
    }
    let blob = &targets[0].blob;
    let fresh = !targets[0].has_blob(size);
    if fresh {
        partial.sync()?;
        if !partial.is_in_place() {
            return failed("publish", "somebody deleted or replaced it meanwhile; start the download again");
        }
        folders.make(parent(blob))?;
        match system.rename(partial.path(), blob) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => copy_beside(&partial, blob)?,
            other => other.map_err(|e| Error::io("move the download to", blob, e))?,
        }
        folders.changed(parent(blob));
    }
    Links { blob, fresh, folders, system }.make(targets)?;
    // At once, since the partial goes now.
    folders.sync()?;
    // The file is published; what is left over does no harm, and the next download of it clears it away.
    if let Err(error) = partial.remove() {
        tracing::warn!(%error, "a finished download leaves something behind");
    }
    Ok(())
}

fn publish_bytes_by(
    bytes: &[u8],
    root: &Path,
    targets: &[Target],
    folders: &Folders,
    system: &impl FileSystem,
) -> Result<()> {
    let Target { blob, link } = &targets[0];
    let fresh = !targets[0].has_blob(bytes.len() as u64);
    if fresh {
        folders.make(parent(blob))?;
        // Where other tools do not take it for a file of the artifact, and on the file system of the blob.
        let staging = match link.as_deref().and_then(|link| common_folder(blob, link)) {
            Some(folder) => folder.to_owned(),
            None => root.join("partials"),
        };
        folders.make(&staging)?;
        let mut path = write(temporary_in(&staging)?, bytes)?;
        match system.rename(&path, blob) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                path = write(temporary_in(parent(blob))?, bytes)?;
                steps::rename(&path, blob).map_err(|e| Error::io("move the download to", blob, e))?;
            }
            Err(e) => return Err(Error::io("move the download to", blob, e)),
        }
        // Nothing is left there to remove.
        let _ = path.keep();
        folders.changed(parent(blob));
    }
    Links { blob, fresh, folders, system }.make(targets)
}

fn publish_temporary_by(file: NamedTempFile, blob: &Path, folders: &Folders, system: &impl FileSystem) -> Result<()> {
    steps::sync_file(file.as_file(), file.path()).map_err(|e| Error::io("write", file.path(), e))?;
    folders.make(parent(blob))?;
    let mut path = file.into_temp_path();
    match system.rename(&path, blob) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let mut copy = temporary_in(parent(blob))?;
            let copied = File::open(&path).and_then(|mut from| io::copy(&mut from, copy.as_file_mut()));
            let copied = copied.and_then(|_| steps::sync_file(copy.as_file(), copy.path()));
            copied.map_err(|e| Error::io("write", copy.path(), e))?;
            path = copy.into_temp_path();
            steps::rename(&path, blob)
        }
        other => other,
    }
    .map_err(|e| Error::io("move a file to", blob, e))?;
    // Nothing is left there to remove.
    let _ = path.keep();
    folders.changed(parent(blob));
    folders.sync()
}

/// Writes all of the file, until the disk has it.
fn write(mut file: NamedTempFile, bytes: &[u8]) -> Result<TempPath> {
    let written = file.write_all(bytes).and_then(|()| steps::sync_file(file.as_file(), file.path()));
    written.map_err(|e| Error::io("write", file.path(), e))?;
    Ok(file.into_temp_path())
}

fn link_by(
    targets: &[Target],
    size: u64,
    twin: Option<&Path>,
    folders: &Folders,
    system: &impl FileSystem,
) -> Result<bool> {
    let (there, missing): (Vec<_>, Vec<_>) = targets.iter().partition(|target| target.is_published(size));
    if missing.is_empty() {
        return Ok(true);
    }
    if targets[0].has_blob(size) {
        Links { blob: &targets[0].blob, fresh: false, folders, system }.make(targets)?;
        return Ok(true);
    }
    // Where there are no links, the content went to the first path that wanted it.
    let there = there.first().map(|target| target.path()).or(twin.filter(|twin| is_whole(twin, size)));
    let Some(there) = there else { return Ok(false) };
    for target in missing {
        folders.make(parent(target.path()))?;
        copy(there, target.path(), parent(&targets[0].blob), folders)?;
    }
    Ok(true)
}

/// Links to content that is there.
struct Links<'a, S> {
    blob: &'a Path,
    /// Nobody else uses the blob yet: where there are no links, it may be moved.
    fresh: bool,
    folders: &'a Folders,
    system: &'a S,
}

impl<S: FileSystem> Links<'_, S> {
    /// Makes the links of `targets` that have one and lack it.
    fn make(&self, targets: &[Target]) -> Result<()> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Error::io("find", path, e));
        let blob = absolute(self.blob)?;
        let mut moved: Option<PathBuf> = None;
        for link in targets.iter().filter_map(|target| target.link.as_deref()) {
            let link = absolute(link)?;
            let staging = common_folder(&blob, &link).unwrap_or(parent(&link));
            match &moved {
                Some(there) => copy(there, &link, staging, self.folders)?,
                None if self.make_one(&blob, &link, staging)? => moved = Some(link),
                None => {}
            }
        }
        Ok(())
    }

    /// Whether the blob was moved.
    fn make_one(&self, blob: &Path, link: &Path, staging: &Path) -> Result<bool> {
        let folders = self.folders;
        folders.make(parent(link))?;
        let way = if folders.is_way(parent(link), parent(blob))? { relative(blob, link) } else { blob.to_owned() };
        if fs::read_link(link).is_ok_and(|there| there == way) {
            return Ok(false);
        }
        // Not beside the link: other tools take whatever is there for a file of the artifact.
        match self.system.symlink(&way, link, staging) {
            Ok(()) => {}
            Err(e) if no_links_here(&e) => {
                folders.has_no_links(link, &e);
                if !self.fresh {
                    copy(blob, link, staging, folders)?;
                    return Ok(false);
                }
                steps::rename(blob, link).map_err(|e| Error::io("move the download to", link, e))?;
                folders.changed(parent(blob));
                folders.changed(parent(link));
                return Ok(true);
            }
            Err(e) => return Err(Error::io("make the link", link, e)),
        }
        folders.changed(parent(link));
        Ok(false)
    }
}

/// Makes `link`, whose folder is there, a copy of the file at `there`, by way of one in the folder `staging`.
fn copy(there: &Path, link: &Path, staging: &Path, folders: &Folders) -> Result<()> {
    let copy = temporary(staging)?;
    File::open(there)
        .and_then(|mut from| io::copy(&mut from, &mut copy.as_file()))
        .and_then(|_| steps::sync_file(copy.as_file(), copy.path()))
        .map_err(|e| Error::io("copy the content to", copy.path(), e))?;
    let from = copy.path().to_owned();
    copy.persist(link).map_err(|e| Error::io("move the copy to", link, e.error))?;
    steps::note("rename", &from, link);
    folders.changed(parent(link));
    Ok(())
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
            steps::sync_file(&to, &copy)
        })
        .map_err(failed)
        .and_then(|()| steps::rename(&copy, blob).map_err(|e| Error::io("move the copy to", blob, e)));
    if copied.is_err() {
        // On a full disk above all.
        let _ = fs::remove_file(&copy);
    }
    copied
}

#[cfg(test)]
mod tests;
