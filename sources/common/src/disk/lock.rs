//! Locks across processes, and across the threads of one.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use llm_local_core::{Error, Result};
use tokio_util::sync::CancellationToken;

use super::{
    folder::create_folders,
    positioned::{read_at, write_all_at},
};
use crate::network::{Timer, Wait};

/// How long the first wait for a lock is; each is twice the one before.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// No wait is longer.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// A lock on a file, until it is dropped or the process ends, however it ends. It belongs to the open file: two threads
/// that open it each shut each other out as two processes do.
#[derive(Debug)]
pub(crate) struct FileLock {
    // Closing the file gives the lock back.
    _file: File,
    path: PathBuf,
}

impl FileLock {
    /// The lock at `path`, if nobody has it. The file and its folders are made if they are not there.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file, also where the file system knows no locks.
    pub(crate) fn try_acquire(path: &Path) -> Result<Option<Self>> {
        let Some(file) = locked(path, File::try_lock)? else { return Ok(None) };
        // For the eyes of whoever waits. Always of one length, so that no old number shows behind a shorter new one. The
        // lock is as good without, on a full disk for one.
        let _ = write_all_at(&file, format!("{:<10}\n", std::process::id()).as_bytes(), 0);
        Ok(Some(Self { _file: file, path: path.to_owned() }))
    }

    /// The lock at `path`, shared with others who share it, if nobody has it for himself.
    ///
    /// # Errors
    /// As [`FileLock::try_acquire`].
    pub(crate) fn try_share(path: &Path) -> Result<Option<Self>> {
        let file = locked(path, File::try_lock_shared)?;
        Ok(file.map(|file| Self { _file: file, path: path.to_owned() }))
    }

    /// The lock at `path`, once whoever has it gives it back. `on_wait` hears who that is before the first wait, and
    /// again when it is another. Each look at the lock blocks the thread that polls this.
    ///
    /// # Errors
    /// As [`FileLock::try_acquire`], and [`Error::Cancelled`].
    pub(crate) async fn acquire(
        path: &Path,
        timer: &dyn Timer,
        cancel: &CancellationToken,
        on_wait: impl FnMut(String),
    ) -> Result<Self> {
        Self::acquire_by(path, timer, cancel, on_wait, |path| std::future::ready(look(&path))).await
    }

    /// As [`FileLock::acquire`], within Tokio, with each look on a thread for blocking work: many may wait at a time, and a
    /// folder on a network may be slow.
    ///
    /// # Errors
    /// As [`FileLock::acquire`].
    pub(crate) async fn acquire_apart(
        path: &Path,
        timer: &dyn Timer,
        cancel: &CancellationToken,
        on_wait: impl FnMut(String),
    ) -> Result<Self> {
        let apart = |path: PathBuf| async move {
            match tokio::task::spawn_blocking(move || look(&path)).await {
                Ok(looked) => looked,
                Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                // The runtime ends.
                Err(_) => Err(Error::Cancelled),
            }
        };
        Self::acquire_by(path, timer, cancel, on_wait, apart).await
    }

    async fn acquire_by<F: Future<Output = Result<Looked>>>(
        path: &Path,
        timer: &dyn Timer,
        cancel: &CancellationToken,
        mut on_wait: impl FnMut(String),
        look: impl Fn(PathBuf) -> F,
    ) -> Result<Self> {
        let (mut wait, mut told) = (FIRST_WAIT, None);
        loop {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let reason = match look(path.to_owned()).await? {
                Ok(lock) => return Ok(lock),
                Err(reason) => reason,
            };
            if told.as_ref() != Some(&reason) {
                on_wait(reason.clone());
                told = Some(reason);
            }
            if cancel.run_until_cancelled(timer.sleep(wait, Wait::Lock)).await.is_none() {
                return Err(Error::Cancelled);
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// The locked file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The lock, or who has it.
type Looked = std::result::Result<FileLock, String>;

fn look(path: &Path) -> Result<Looked> {
    Ok(FileLock::try_acquire(path)?.ok_or_else(|| who_has(path)))
}

/// How often a lock's file may vanish while it is being locked.
const MOST_TRIES: usize = 16;

/// Opens the file at `path` and locks it. `None` if somebody has it.
fn locked(path: &Path, lock: impl Fn(&File) -> std::result::Result<(), TryLockError>) -> Result<Option<File>> {
    for _ in 0..MOST_TRIES {
        if let Some(folder) = path.parent() {
            create_folders(folder)?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = match file {
            // The folder went away in between.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| Error::io("open", path, e))?,
        };
        match lock(&file) {
            // A lock on a file that somebody deleted shuts nobody out: the next to come makes a new file.
            Ok(()) if !is_at(&file, path) => {}
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", path, e)),
        }
    }
    let vanished = io::Error::new(io::ErrorKind::NotFound, "the file vanishes as soon as it is made");
    Err(Error::io("lock", path, vanished))
}

/// Whether `file` is the one that `path` leads to. Where the system does not say, nobody can have replaced an open file.
#[cfg(unix)]
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(there)) => identity(open) == identity(there),
        _ => false,
    }
}

/// Whether `path` leads to a file at all: an open one keeps its name to itself here.
#[cfg(not(unix))]
pub(super) fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Says who has the lock at `path`. Some systems let nobody read a locked file.
fn who_has(path: &Path) -> String {
    let mut text = [0; 16];
    let read = File::open(path).and_then(|file| read_at(&file, &mut text, 0)).unwrap_or_default();
    let pid = std::str::from_utf8(&text[..read]).ok().and_then(|t| t.lines().next()?.trim().parse::<u32>().ok());
    let who = match pid {
        Some(pid) if pid == std::process::id() => format!("another task of this process ({pid})"),
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    };
    format!("{who} holds {}", path.display())
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use super::*;
    use crate::network::testing::FakeTimer;

    #[test]
    fn a_look_apart_does_not_hold_up_the_thread_that_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks/a.lock");
        let held = FileLock::try_acquire(&path).unwrap().unwrap();
        let (timer, cancel, mut held) = (FakeTimer::new(), CancellationToken::new(), Some(held));
        // One thread for blocking work, which is taken: a look would not wait for it if it were not there.
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let (go, told) = std::sync::mpsc::channel::<()>();
        let got = runtime.block_on(async {
            let busy = tokio::task::spawn_blocking(move || told.recv());
            let mut acquiring = std::pin::pin!(FileLock::acquire_apart(&path, &timer, &cancel, |_| drop(held.take())));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            for _ in 0..100 {
                assert!(acquiring.as_mut().poll(&mut context).is_pending());
                tokio::task::yield_now().await;
            }
            assert!(timer.sleeps(Wait::Lock).is_empty(), "it has not looked yet");
            go.send(()).unwrap();
            busy.await.unwrap().unwrap();
            acquiring.await
        });
        assert_eq!((got.unwrap().path(), timer.sleeps(Wait::Lock)), (&*path, vec![FIRST_WAIT]));
    }

    #[test]
    fn two_open_handles_shut_each_other_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks/a.lock");
        let first = FileLock::try_acquire(&path).unwrap().unwrap();
        assert_eq!(first.path(), path);
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        assert!(FileLock::try_share(&path).unwrap().is_none());
        drop(first);
        let shared = [FileLock::try_share(&path).unwrap().unwrap(), FileLock::try_share(&path).unwrap().unwrap()];
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        drop(shared);
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
    }

    // Where a locked file cannot be read or written by others, nobody is named.
    #[cfg(unix)]
    #[test]
    fn who_waits_hears_the_pid_of_who_has_it_and_gets_it_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        fs::write(&path, "4294967295999\n").unwrap();
        let mut held = FileLock::try_acquire(&path).unwrap();
        let (timer, cancel) = (FakeTimer::new(), CancellationToken::new());
        let mut reasons = Vec::new();
        let got = pollster::block_on(FileLock::acquire(&path, &timer, &cancel, |reason| {
            reasons.push(reason);
            match reasons.len() {
                // Another process's number, as it would be read.
                1 => fs::write(&path, "77        \n").unwrap(),
                _ => drop(held.take()),
            }
        }));
        assert!(got.is_ok());
        let own = std::process::id();
        let expected = [
            format!("another task of this process ({own}) holds {}", path.display()),
            format!("process 77 holds {}", path.display()),
        ];
        assert_eq!(reasons, expected);
        assert_eq!(timer.sleeps(Wait::Lock), [50, 100].map(Duration::from_millis));
    }

    #[test]
    fn waits_grow_to_half_a_second_and_end_with_a_cancel() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let _held = FileLock::try_acquire(&path).unwrap().unwrap();
        let cancel = CancellationToken::new();
        /// Cancels with the sixth sleep, which then never ends.
        struct Cancelling(FakeTimer, CancellationToken);
        impl Timer for Cancelling {
            fn now(&self) -> Duration {
                self.0.now()
            }

            fn wall(&self) -> std::time::SystemTime {
                self.0.wall()
            }

            fn sleep(&self, duration: Duration, wait: Wait) -> futures_util::future::BoxFuture<'static, ()> {
                let sleep = self.0.sleep(duration, wait);
                if self.0.sleeps(Wait::Lock).len() < 6 {
                    return sleep;
                }
                self.1.cancel();
                Box::pin(std::future::pending())
            }
        }
        let timer = Arc::new(Cancelling(FakeTimer::new(), cancel.clone()));
        let got = pollster::block_on(FileLock::acquire(&path, &*timer, &cancel, |_| {}));
        assert!(matches!(got, Err(Error::Cancelled)));
        assert_eq!(timer.0.sleeps(Wait::Lock), [50, 100, 200, 400, 500, 500].map(Duration::from_millis));
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_on_a_deleted_file_is_not_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks/a.lock");
        let old = FileLock::try_acquire(&path).unwrap().unwrap();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let new = FileLock::try_acquire(&path).unwrap().unwrap();
        assert!(!is_at(&old._file, &path) && is_at(&new._file, &path));
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        // Deleted between open and lock.
        let deleted = std::cell::Cell::new(false);
        let other = folder.path().join("b.lock");
        let file = locked(&other, |file| {
            if !deleted.replace(true) {
                fs::remove_file(&other).unwrap();
            }
            file.try_lock()
        });
        assert!(is_at(&file.unwrap().unwrap(), &other));
    }

    #[test]
    fn a_file_where_its_folder_should_be_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("locks"), "").unwrap();
        let error = FileLock::try_acquire(&folder.path().join("locks/a.lock")).unwrap_err();
        assert!(error.to_string().contains(&folder.path().join("locks").display().to_string()), "{error}");
    }
}
