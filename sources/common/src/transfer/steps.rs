//! The steps from the files of a source to those of an artifact, one after the other, in a folder.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use llm_local_core::{Digest, Error, Manifest, ManifestFile, Result, Unpack};
use tokio_util::sync::CancellationToken;

use super::{Call, Files};
use crate::{
    store::Output,
    unpack::{join, unpack},
};

/// A file on its way from the source's to the artifact's.
pub(super) enum File {
    /// One of the source's.
    Came { path: PathBuf, size: u64 },
    /// One that was made.
    Made { path: PathBuf, size: u64, digest: Digest },
}

impl File {
    fn path(&self) -> &Path {
        match self {
            Self::Came { path, .. } | Self::Made { path, .. } => path,
        }
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Came { size, .. } | Self::Made { size, .. } => *size,
        }
    }

    /// What it is to the store.
    pub(super) fn output(&self) -> Output {
        match self {
            Self::Came { path, .. } => Output::Same(path.clone()),
            Self::Made { size, digest, .. } => Output::Content(*size, *digest),
        }
    }

    /// Frees the disk of what was made on the way.
    fn taken(&self) -> Result<()> {
        match self {
            Self::Came { .. } => Ok(()),
            Self::Made { path, .. } => fs::remove_file(path).map_err(|e| Error::io("delete", path, e)),
        }
    }
}

/// The steps of a manifest.
pub(super) struct Steps<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) folder: &'a Path,
    pub(super) call: &'a Call,
    pub(super) cancel: &'a CancellationToken,
}

impl Steps<'_> {
    /// The files that the artifact has in the end.
    ///
    /// # Errors
    /// Those of [`unpack`] and [`join`], which name the file and the ref.
    pub(super) fn take(&self, files: &Files) -> Result<BTreeMap<String, File>> {
        let came = |file: &ManifestFile| {
            let path = files.get(&file.path)?.clone();
            Some((file.path.clone(), File::Came { path, size: file.size }))
        };
        let mut there: BTreeMap<_, _> = self.manifest.files.iter().filter_map(came).collect();
        let limits = self.call.config.unpack_of(self.manifest.want);
        for (number, step) in self.manifest.unpack.iter().enumerate() {
            let taken = step.takes().map(|name| there.remove(name).ok_or_else(|| self.gone(name)));
            let taken = taken.collect::<Result<Vec<_>>>()?;
            let at = self.folder.join(number.to_string());
            match step {
                Unpack::Join { into, .. } => {
                    let made = self.join(&taken, into, at)?;
                    there.insert(into.clone(), made);
                }
                Unpack::Archive { file } => {
                    fs::create_dir(&at).map_err(|e| Error::io("create the folder", &at, e))?;
                    let archive = name(self.manifest, file);
                    for one in &taken {
                        for unpacked in unpack(one.path(), &archive, &at, limits, self.cancel)? {
                            let made = File::Made {
                                path: at.join(&unpacked.path),
                                size: unpacked.size,
                                digest: unpacked.digest,
                            };
                            if there.insert(unpacked.path.clone(), made).is_some() {
                                let reason = format!("`{}` is in it and beside it, too", unpacked.path);
                                return Err(Error::load(archive, reason));
                            }
                        }
                    }
                }
                _ => {
                    return Err(Error::unsupported(
                        format!("unpacking {}", self.manifest.reference),
                        "a step of it is of a kind that is not known here",
                    ));
                }
            }
            taken.iter().try_for_each(File::taken)?;
        }
        Ok(there)
    }

    fn join(&self, parts: &[File], into: &str, at: PathBuf) -> Result<File> {
        let bytes = parts.iter().map(File::size).fold(0, u64::saturating_add);
        let parts: Vec<_> = parts.iter().map(|part| part.path().to_owned()).collect();
        // Where it is to be is nothing to its user.
        let name = name(self.manifest, into);
        let (size, digest) = join(&parts, &name, &at, bytes, self.cancel)?;
        Ok(File::Made { path: at, size, digest })
    }

    fn gone(&self, name: &str) -> Error {
        let reason = format!("`{name}` is to be unpacked, but is not among the files, or was taken already");
        Error::invalid_spec(format!("manifest of {}", self.manifest.reference), reason)
    }
}

/// What a file of `manifest` is called in messages; it ends as the file does.
pub(super) fn name(manifest: &Manifest, path: &str) -> String {
    let reference = &manifest.reference;
    let is_it = reference.fragment() == Some(path) || reference.is_file() && reference.locator().ends_with(path);
    if is_it { reference.to_string() } else { format!("{reference}: {path}") }
}
