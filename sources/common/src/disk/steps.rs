//! The steps by which a file gets to its name so that a power loss leaves the old one or the new; in tests, each is put
//! down, since no test can cut the power.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Waits until the disk has all of `file`, which is at `path`.
///
/// # Errors
/// The system's.
pub(super) fn sync_file(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    note("sync", path, path);
    Ok(())
}

/// Moves `from` to `to` in one step.
///
/// # Errors
/// The system's.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    note("rename", from, to);
    Ok(())
}

/// Notes a step, `what` was done, where no test looks.
#[cfg(not(test))]
pub(super) fn note(_: &'static str, _: &Path, _: &Path) {}

#[cfg(test)]
pub(super) use notes::note;
#[cfg(test)]
pub(crate) use notes::{Step, steps_below};

#[cfg(test)]
mod notes {
    use std::{
        path::{Path, PathBuf},
        sync::Mutex,
    };

    /// `sync`, `sync folder`, `rename` or `link`, of what, and to where.
    #[derive(Debug, Clone)]
    pub(crate) struct Step {
        pub(crate) what: &'static str,
        pub(crate) from: PathBuf,
        pub(crate) to: PathBuf,
    }

    static STEPS: Mutex<Vec<Step>> = Mutex::new(Vec::new());

    /// Notes a step that was done.
    pub(in super::super) fn note(what: &'static str, from: &Path, to: &Path) {
        STEPS.lock().unwrap().push(Step { what, from: from.to_owned(), to: to.to_owned() });
    }

    /// What was done below `folder`, in its order.
    pub(crate) fn steps_below(folder: &Path) -> Vec<Step> {
        STEPS.lock().unwrap().iter().filter(|step| step.to.starts_with(folder)).cloned().collect()
    }
}
