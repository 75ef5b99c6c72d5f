//! A file that is not all there yet.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use llm_local_core::{Error, Result};
use sha2::{Digest as _, Sha256};

use super::{
    FileKey, FileLock,
    folder::{create_folders, prepare_root, sync_folder},
    lock::is_at,
    positioned::{read_at, write_all_at},
    state::{MOST_BYTES, Segments, State},
    steps::sync_file,
};

/// A file on its way: its bytes as far as they came, and which those are, in a folder of its own. A process that is
/// killed at any point leaves there what was written, and no byte counts as done that was not.
///
/// Bytes that are done stay as they are until [`Partial::restart`] forgets all of them. Clones are of one partial; the
/// lock that keeps other processes away is given back with the last of them and of their [`Writer`]s, so that no late
/// write meets somebody else's partial. Every call blocks on the disk.
#[derive(Debug, Clone)]
pub(crate) struct Partial {
    disk: Arc<Disk>,
    // Dropping it gives it back.
    _lock: Arc<FileLock>,
}

/// The open files. What a hasher needs: it may outlive the lock, since it only reads.
pub(super) struct Disk {
    folder: PathBuf,
    pub(super) path: PathBuf,
    pub(super) data: File,
    pub(super) size: u64,
    /// Whether bytes are made to outlast a power loss before they count: no digest would tell.
    durable: bool,
    /// Each write holds it for reading, and whatever replaces the state for writing.
    recorded: RwLock<Recorded>,
    progress: Mutex<Progress>,
    grown: Condvar,
}

/// The state file.
struct Recorded {
    file: File,
    counts_at: u64,
    segments: Segments,
    validator: Option<String>,
    epoch: u64,
    /// One write at a time to each segment.
    writing: Vec<Mutex<()>>,
}

/// What the state file says, in memory.
pub(super) struct Progress {
    /// How often everything was forgotten.
    pub(super) epoch: u64,
    /// Bytes that are there without a gap from the start of the file.
    pub(super) prefix: u64,
    total: u64,
    done: Vec<u64>,
    /// The first segment with a gap.
    gap: usize,
}

impl Partial {
    /// Opens the partial of the content `key`, `size` bytes long, in the store at `root`, or begins one: also where what
    /// is there is of another size or was not written by this. `lock` is the one at [`FileKey::lock`]. A new partial is
    /// kept track of in segments of `segment_bytes`; one that is there already keeps its own.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file or folder.
    pub(crate) fn open(
        root: &Path,
        key: &FileKey,
        size: u64,
        lock: FileLock,
        segment_bytes: Option<u64>,
    ) -> Result<Self> {
        debug_assert_eq!(lock.path(), key.lock(root), "the lock of another file");
        prepare_root(root)?;
        let folder = key.partial(root);
        create_folders(&folder)?;
        let path = folder.join("data");
        // A link would be published as one.
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink()) {
            fs::remove_file(&path).map_err(|e| Error::io("remove the link", &path, e))?;
        }
        let data = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let data = data.map_err(|e| Error::io("open", &path, e))?;
        let length = data.metadata().map_err(|e| Error::io("read the length of", &path, e))?.len();
        let state_path = folder.join("state");
        let known = if length == size { read_state(&state_path, size)? } else { None };
        let (state, file, counts_at) = match known {
            Some((state, counts_at)) => {
                let file = OpenOptions::new().write(true).open(&state_path);
                (state, file.map_err(|e| Error::io("open", &state_path, e))?, counts_at)
            }
            None => {
                let state = State::new(Segments::new(size, segment_bytes), None);
                // First what counts as done, then the bytes themselves: old counts never stand beside new bytes.
                let (file, counts_at) = write_state(&folder, &state, !key.has_digest())?;
                empty(&data, size).map_err(|e| Error::io("set the length of", &path, e))?;
                (state, file, counts_at)
            }
        };
        let mut progress = Progress { epoch: 0, prefix: 0, total: state.done.iter().sum(), done: state.done, gap: 0 };
        progress.close_gap(&state.segments);
        let recorded = Recorded {
            file,
            counts_at,
            segments: state.segments,
            validator: state.validator,
            epoch: 0,
            writing: (0..state.segments.count()).map(|_| Mutex::new(())).collect(),
        };
        let disk = Disk {
            folder,
            path,
            data,
            size,
            durable: !key.has_digest(),
            recorded: RwLock::new(recorded),
            progress: Mutex::new(progress),
            grown: Condvar::new(),
        };
        Ok(Self { disk: Arc::new(disk), _lock: Arc::new(lock) })
    }

    /// How many bytes of the content `key` are there, for whoever only wants to know: without a lock, and nothing is
    /// made, changed or complained of.
    pub(crate) fn peek(root: &Path, key: &FileKey, size: u64) -> u64 {
        let folder = key.partial(root);
        if !fs::metadata(folder.join("data")).is_ok_and(|m| m.is_file() && m.len() == size) {
            return 0;
        }
        let state = read_state(&folder.join("state"), size).ok().flatten();
        state.map_or(0, |(state, _)| state.done.iter().sum())
    }

    /// As [`Partial::peek`], and how many bytes of the disk its data takes: it is made with its whole length, but takes
    /// room only as bytes come, also such that do not count as done.
    pub(crate) fn peek_room(root: &Path, key: &FileKey, size: u64) -> (u64, u64) {
        let Ok(data) = fs::metadata(key.partial(root).join("data")) else { return (0, 0) };
        let done = Self::peek(root, key, size);
        (done, allocated(&data).max(done).min(size))
    }

    /// The file's size in bytes, once it is whole.
    pub(crate) fn size(&self) -> u64 {
        self.disk.size
    }

    /// The file that the bytes are in.
    pub(crate) fn path(&self) -> &Path {
        &self.disk.path
    }

    /// Bytes that are there.
    pub(crate) fn done_bytes(&self) -> u64 {
        self.disk.progress().total
    }

    /// Whether all bytes are there.
    pub(crate) fn is_complete(&self) -> bool {
        self.done_bytes() == self.disk.size
    }

    /// The ETag that the bytes came under.
    pub(crate) fn validator(&self) -> Option<String> {
        self.disk.recorded().validator.clone()
    }

    /// Whether bytes that come under the ETag `validator` go with those that are there. It is recorded if none was and
    /// nothing is there yet, or a digest will tell whether they did.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file.
    pub(crate) fn adopt(&self, validator: &str) -> Result<bool> {
        if let Some(known) = &self.disk.recorded().validator {
            return Ok(known == validator);
        }
        let mut recorded = self.disk.recorded_mut();
        // Another thread may have been here in between.
        if let Some(known) = &recorded.validator {
            return Ok(known == validator);
        }
        let done = self.disk.progress().done.clone();
        if self.disk.durable && done.iter().any(|&d| d > 0) {
            return Ok(false);
        }
        let state = State { segments: recorded.segments, validator: Some(validator.to_owned()), done };
        (recorded.file, recorded.counts_at) = write_state(&self.disk.folder, &state, self.disk.durable)?;
        recorded.validator = state.validator;
        Ok(true)
    }

    /// Forgets all bytes; those to come are under the ETag `validator`. [`Writer`]s made before write nothing more, and
    /// a [`Hasher`](super::Hasher) begins again. Waits for writes that are on their way.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file.
    pub(crate) fn restart(&self, validator: Option<&str>) -> Result<()> {
        let disk = &*self.disk;
        let mut recorded = disk.recorded_mut();
        let state = State::new(recorded.segments, validator.map(str::to_owned));
        // On disk for good before the first byte of other content is.
        (recorded.file, recorded.counts_at) = write_state(&disk.folder, &state, true)?;
        recorded.validator = state.validator;
        recorded.epoch += 1;
        let mut progress = disk.progress();
        *progress = Progress { epoch: recorded.epoch, prefix: 0, total: 0, done: state.done, gap: 0 };
        drop(progress);
        disk.grown.notify_all();
        empty(&disk.data, disk.size).map_err(|e| Error::io("set the length of", &disk.path, e))
    }

    /// Writes bytes of what is being fetched now, until the next [`Partial::restart`].
    pub(crate) fn writer(&self) -> Writer {
        Writer { partial: self.clone(), epoch: self.disk.recorded().epoch }
    }

    /// Deletes what is there.
    ///
    /// # Errors
    /// [`Error::Io`] that names the folder.
    pub(crate) fn remove(self) -> Result<()> {
        match fs::remove_dir_all(&self.disk.folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &self.disk.folder, e)),
            _ => Ok(()),
        }
    }

    /// Whether the file at [`Partial::path`] is the one that was written: somebody may have deleted the folder, and
    /// somebody else begun anew.
    pub(super) fn is_in_place(&self) -> bool {
        is_at(&self.disk.data, &self.disk.path)
    }

    /// Makes what was written outlast a power loss.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file.
    pub(super) fn sync(&self) -> Result<()> {
        sync_file(&self.disk.data, &self.disk.path).map_err(|e| Error::io("sync", &self.disk.path, e))
    }

    /// Eight hex digits that differ from those of partials in other stores.
    pub(super) fn tag(&self) -> String {
        let hash = Sha256::digest(self.disk.folder.as_os_str().as_encoded_bytes());
        hash[..4].iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The bytes, for reading.
    pub(super) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }
}

/// Writes to a [`Partial`] what came from one and the same version of a file. Clones may write from several threads.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    partial: Partial,
    epoch: u64,
}

impl Writer {
    /// The ranges that are missing, lowest first: at most one for each segment, up to its end.
    pub(crate) fn missing(&self) -> Vec<Range<u64>> {
        let recorded = self.partial.disk.recorded();
        let progress = self.partial.disk.progress();
        let gaps = progress.done.iter().enumerate().map(|(index, done)| {
            let range = recorded.segments.range(index);
            range.start + done..range.end
        });
        gaps.filter(|gap| !gap.is_empty()).collect()
    }

    /// Writes `bytes` at `offset`, which is where a missing range begins or a byte that is there already; those stay as
    /// they are. Blocks until the bytes, and then that they are done, are written. Returns how many are newly done.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file: the disk is full, the bytes lie beyond the end of the file or leave a gap before
    /// them, or [`Partial::restart`] was called since. What is done remains so.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<u64> {
        let disk = &*self.partial.disk;
        let refused = |why: &str| {
            let why = format!("{} bytes at {offset} of {}: {why}", bytes.len(), disk.size);
            Err(Error::io("write", &disk.path, io::Error::new(io::ErrorKind::InvalidInput, why)))
        };
        let recorded = disk.recorded();
        if recorded.epoch != self.epoch {
            return refused("the download of this file began again");
        }
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > disk.size) {
            return refused("they lie beyond its end");
        }
        let (mut at, mut rest, mut fresh) = (offset, bytes, 0);
        while !rest.is_empty() {
            let index = recorded.segments.index(at);
            let range = recorded.segments.range(index);
            let (mine, later) = rest.split_at(rest.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX)));
            let end = at + mine.len() as u64;
            let _writing = recorded.writing[index].lock().unwrap_or_else(PoisonError::into_inner);
            let done = range.start + disk.progress().done[index];
            if at > done {
                return refused("bytes before them are missing");
            }
            if end > done {
                disk.put(&recorded, index, done, &mine[(done - at) as usize..])?;
                fresh += end - done;
            }
            (at, rest) = (end, later);
        }
        Ok(fresh)
    }
}

impl Disk {
    /// Writes `bytes` at `offset`, where the bytes done of the segment `index` end, then that they are done.
    fn put(&self, recorded: &Recorded, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(&self.data, bytes, offset).map_err(|e| Error::io("write", &self.path, e))?;
        if self.durable {
            self.data.sync_data().map_err(|e| Error::io("sync", &self.path, e))?;
        }
        let done = offset + bytes.len() as u64 - recorded.segments.range(index).start;
        let count_at = recorded.counts_at + 8 * index as u64;
        write_all_at(&recorded.file, &done.to_le_bytes(), count_at)
            .map_err(|e| Error::io("write", self.folder.join("state"), e))?;
        let mut progress = self.progress();
        progress.done[index] = done;
        progress.total += bytes.len() as u64;
        if index == progress.gap {
            progress.close_gap(&recorded.segments);
            self.grown.notify_all();
        }
        Ok(())
    }

    /// Reads bytes that are done, some of them.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        read_at(&self.data, buffer, offset).map_err(|e| Error::io("read", &self.path, e))
    }

    // A panic while one of these is held leaves nothing half done that the next holder would trip over.
    fn recorded(&self) -> RwLockReadGuard<'_, Recorded> {
        self.recorded.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn recorded_mut(&self) -> RwLockWriteGuard<'_, Recorded> {
        self.recorded.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks while `waiting` says so, asking anew whenever more is there.
    pub(super) fn wait_while(&self, waiting: impl FnMut(&mut Progress) -> bool) -> MutexGuard<'_, Progress> {
        self.grown.wait_while(self.progress(), waiting).unwrap_or_else(PoisonError::into_inner)
    }

    /// Has everybody who waits ask again.
    pub(super) fn wake(&self) {
        // Whoever is between asking and waiting holds this.
        drop(self.progress());
        self.grown.notify_all();
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("path", &self.path).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Progress {
    /// Moves on to the first segment with a gap.
    fn close_gap(&mut self, segments: &Segments) {
        while let Some(done) = self.done.get(self.gap) {
            let range = segments.range(self.gap);
            self.prefix = range.start + done;
            if self.prefix < range.end {
                break;
            }
            self.gap += 1;
        }
    }
}

/// Bytes of the disk that a file takes, of which its holes take none.
#[cfg(unix)]
fn allocated(metadata: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    // The unit is 512 bytes, whatever the block size of the file system (POSIX's `st_blocks`, on all that Rust knows).
    metadata.blocks().saturating_mul(512)
}

/// Where files have no holes unless they ask for them, the length is there from the start.
#[cfg(not(unix))]
fn allocated(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}

/// Makes the file `size` bytes of nothing.
fn empty(data: &File, size: u64) -> io::Result<()> {
    // Some file systems flush a file when it is closed that was cut to nothing.
    if data.metadata()?.len() > 0 {
        data.set_len(0)?;
    }
    data.set_len(size)
}

/// The state at `path` of a file of `size` bytes. `None` where there is none that could be used.
fn read_state(path: &Path, size: u64) -> Result<Option<(State, u64)>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
        Ok(_) if bytes.len() as u64 > MOST_BYTES => Ok(None),
        Ok(_) => Ok(State::decode(&bytes, size)),
    }
}

/// Writes the state into `folder` in one step, `durable`ly if asked. Returns its file and where the first count stands.
fn write_state(folder: &Path, state: &State, durable: bool) -> Result<(File, u64)> {
    let (path, new) = (folder.join("state"), folder.join("state.new"));
    let (bytes, counts_at) = state.encode().map_err(|e| Error::io("write", &new, e.into()))?;
    // One name will do: the lock shuts others out, and what a crash leaves is overwritten.
    let mut file = File::create(&new).map_err(|e| Error::io("create", &new, e))?;
    file.write_all(&bytes).map_err(|e| Error::io("write", &new, e))?;
    if durable {
        file.sync_all().map_err(|e| Error::io("sync", &new, e))?;
    }
    fs::rename(&new, &path).map_err(|e| Error::io("replace", &path, e))?;
    if durable {
        sync_folder(folder)?;
    }
    Ok((file, counts_at))
}

#[cfg(test)]
mod tests;
