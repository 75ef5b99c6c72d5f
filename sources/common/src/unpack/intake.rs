//! Entries on their way to disk.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use llm_local_core::{Digest, Error, Result, manifest::check_relative_path};
use tempfile::TempDir;

use super::{
    Unpacked,
    job::Job,
    kind::{Kind, kind},
    limits::Setting,
    names::{Names, wrapping},
    written::{BUFFER, Written},
};

/// What was taken in so far. Files lie under numbers in a folder of their own until all names are known and checked, so
/// that no name of an archive that is refused ever reaches the file system.
pub(super) struct Intake<'a> {
    job: &'a Job<'a>,
    staging: TempDir,
    files: Vec<Staged>,
    names: Names,
    entries: usize,
    total: u64,
    buffer: Vec<u8>,
}

struct Staged {
    path: String,
    at: PathBuf,
    size: u64,
    digest: Digest,
}

impl<'a> Intake<'a> {
    /// For files that go into the folder `into`.
    pub(super) fn new(job: &'a Job<'a>, into: &Path) -> Result<Self> {
        let staging = tempfile::Builder::new().prefix(".llm-local-").suffix(".tmp").tempdir_in(into);
        let staging = staging.map_err(|e| Error::io("create a folder in", into, e))?;
        let (files, names, buffer) = (Vec::new(), Names::default(), vec![0; BUFFER]);
        Ok(Self { job, staging, files, names, entries: 0, total: 0, buffer })
    }

    /// Counts an entry.
    pub(super) fn count(&mut self) -> Result<()> {
        self.job.go_on()?;
        self.entries += 1;
        let most = self.job.limits.entries;
        if self.entries > most {
            let reason = format!("it has more than {most} entries");
            return Err(self.job.too_much(reason, Setting::Limits("with_entries")));
        }
        Ok(())
    }

    /// Takes note of a folder.
    pub(super) fn folder(&mut self, raw: &[u8]) -> Result<()> {
        let path = self.checked(raw)?;
        let path = path.trim_end_matches('/');
        // Archives of a folder's content begin with the folder itself.
        if matches!(path, "" | ".") && !raw.starts_with(b"/") {
            return Ok(());
        }
        check_relative_path(path).map_err(|reason| self.job.bad(reason))?;
        self.names.add_folder(path).map_err(|reason| self.job.bad(reason))
    }

    /// The checked path of a file to keep; none for one to skip.
    ///
    /// # Errors
    /// If it is not a plain relative path, meets another one, or is no file that is read here.
    pub(super) fn file(&mut self, raw: &[u8]) -> Result<Option<String>> {
        let path = self.checked(raw)?;
        check_relative_path(path).map_err(|reason| self.job.bad(reason))?;
        self.names.add_file(path).map_err(|reason| self.job.bad(reason))?;
        match kind(path) {
            Kind::Kept => Ok(Some(path.to_owned())),
            Kind::Skipped => Ok(None),
            Kind::Pickle => Err(self.job.unsupported(format!(
                "`{path}` in it is a pickle, which could run code when read; ask for weights as safetensors or GGUF"
            ))),
            Kind::Unknown => Err(self.job.unsupported(format!(
                "`{path}` in it is no file of a model or adapter; expected are weights (.safetensors, .gguf), configs \
                 and tokenizers (.json, .txt, .model, .jinja), or unpack the archive yourself and use the folder"
            ))),
        }
    }

    /// A name that is text, and neither too long nor too deep, without the `./` in front that tar writes.
    fn checked<'n>(&self, raw: &'n [u8]) -> Result<&'n str> {
        let shown = || String::from_utf8_lossy(&raw[..raw.len().min(80)]).escape_debug().to_string();
        let limits = self.job.limits;
        if raw.len() > limits.path_bytes {
            let most = limits.path_bytes;
            let reason = format!("the name `{}...` in it has more than {most} bytes", shown());
            return Err(self.job.too_much(reason, Setting::Limits("with_path_bytes")));
        }
        let name = std::str::from_utf8(raw).map_err(|_| self.job.bad(format!("the name `{}` is no text", shown())))?;
        let name = name.trim_start_matches("./");
        if name.trim_end_matches('/').split('/').count() > limits.depth {
            let most = limits.depth;
            let reason = format!("the path `{}` in it has more than {most} parts", shown());
            return Err(self.job.too_much(reason, Setting::Limits("with_depth")));
        }
        Ok(name)
    }

    /// Refuses a file that says itself that it is too large, before any of it is read.
    pub(super) fn expect(&self, path: &str, claimed: u64) -> Result<()> {
        self.allow(path, claimed, claimed)
    }

    /// Refuses `size` bytes of one file, `more` of them new.
    fn allow(&self, path: &str, size: u64, more: u64) -> Result<()> {
        let name = path.escape_debug();
        let (most, setting) = self.job.limits.file_bound();
        if size > most {
            let reason = format!("`{name}` in it has more than the {most} bytes allowed for a file");
            return Err(self.job.too_much(reason, setting));
        }
        let (most, setting) = self.job.limits.total_bound();
        if more > most - self.total {
            let reason = format!("with `{name}` it has more than the {most} bytes allowed in all");
            return Err(self.job.too_much(reason, setting));
        }
        Ok(())
    }

    /// Writes a file to keep, to the end of `reader`, and says how large it is.
    pub(super) fn keep(&mut self, path: String, reader: &mut impl Read) -> Result<u64> {
        let at = self.staging.path().join(self.files.len().to_string());
        let mut written = Written::create(&at)?;
        while let Some(read) = self.read(&path, written.size(), reader)? {
            written.append(&self.buffer[..read])?;
        }
        let (size, digest) = written.finish()?;
        self.files.push(Staged { path, at, size, digest });
        Ok(size)
    }

    /// Reads to the end of `reader` without keeping anything, and says how much there was.
    pub(super) fn skip(&mut self, path: &str, reader: &mut impl Read) -> Result<u64> {
        let mut size = 0;
        while let Some(read) = self.read(path, size, reader)? {
            size += read as u64;
        }
        Ok(size)
    }

    /// The next bytes of a file that has `size` by now; none at its end. Counts them, before they are written.
    fn read(&mut self, path: &str, size: u64, reader: &mut impl Read) -> Result<Option<usize>> {
        self.job.go_on()?;
        let read = loop {
            match reader.read(&mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let read = read.map_err(|e| self.job.broken(format!("`{}` in it is broken", path.escape_debug()), e))?;
        self.allow(path, size + read as u64, read as u64)?;
        self.total += read as u64;
        Ok((read > 0).then_some(read))
    }

    /// Gives all files their names in the folder `into`, without folders that are around everything.
    pub(super) fn lay_out(mut self, into: &Path) -> Result<Vec<Unpacked>> {
        if self.files.is_empty() {
            return Err(self.job.bad("it holds no file of a model or adapter"));
        }
        let wrapped = wrapping(self.files.iter().map(|file| file.path.as_str()));
        let mut files = std::mem::take(&mut self.files);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let place = |file: Staged| {
            let path = file.path[wrapped..].to_owned();
            let target = into.join(&path);
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder).map_err(|e| Error::io("create the folder", folder, e))?;
            }
            // A rename would replace what this very file system takes for the same name.
            if target.symlink_metadata().is_ok() {
                return Err(self.job.bad(format!("`{}` and another name in it are one to this system", file.path)));
            }
            fs::rename(&file.at, &target).map_err(|e| Error::io("create", &target, e))?;
            Ok(Unpacked { path, size: file.size, digest: file.digest })
        };
        let unpacked = files.into_iter().map(place).collect::<Result<_>>()?;
        let staging = self.staging.path().to_owned();
        self.staging.close().map_err(|e| Error::io("remove the folder", staging, e))?;
        Ok(unpacked)
    }
}
