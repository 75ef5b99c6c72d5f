//! The source.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use llm_local_core::{
    AdapterSource, ArtifactRef, ArtifactSource, Error, FetchContext, Manifest, ManifestFile, ModelSource, Opened,
    Result, Want, artifact_ref::FILE_SCHEME, async_trait, manifest::check_relative_path,
};

use crate::{adapter, model, path, revision};

/// The source of models and adapters on this machine.
///
/// As a model it takes a Hugging Face folder (safetensors, single or sharded), a GGUF file, or a folder whose only
/// weights are one GGUF file, with the tokenizer and chat template files in it if there are any; as an adapter a folder of PEFT or mlx-lm, or a bare `.safetensors` or `.gguf` file.
/// Pickles are refused. What is wrong with the headers of weights is said by `resolve`, before anything is loaded.
///
/// `resolve` reads listings, headers and configs, of adapters all bytes, in the calling task: it takes as long as reading
/// the adapter once. A model is pinned by sizes and times (`stat-`), an adapter by its content (`sha256-`).
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct LocalSource {}

impl LocalSource {
    /// The source. It has nothing to configure.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl ArtifactSource for LocalSource {
    fn scheme(&self) -> &str {
        FILE_SCHEME
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest> {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let (path, is_folder) = place(reference)?;
        let names = match (want, is_folder) {
            (Want::Model, true) => model::in_folder(&path)?,
            (Want::Model, false) => model::file(&path)?,
            (Want::Adapter, true) => adapter::in_folder(&path, cx.any_adapter)?,
            (Want::Adapter, false) => adapter::file(&path, cx.any_adapter)?,
            (other, _) => {
                return Err(Error::unsupported(format!("{other:?} from a path"), "a path gives a model or an adapter"));
            }
        };
        let root = root(&path, is_folder);
        let (revision, files) = match want {
            Want::Adapter => revision::by_content(root, names, cx)?,
            _ => revision::by_stat(root, names)?,
        };
        Manifest::new(reference.clone(), want, revision, files)
    }

    async fn open(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        _range: Range<u64>,
        cx: &FetchContext,
    ) -> Result<Opened> {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let (path, is_folder) = place(&manifest.reference)?;
        // A manifest may come from anywhere by now: its fields are open, and it can be stored.
        check_relative_path(&file.path)
            .map_err(|reason| Error::invalid_spec(format!("manifest of {}", manifest.reference), reason))?;
        if manifest.file(&file.path).is_none() {
            return Err(Error::not_found(
                format!("`{}`", file.path),
                format!("it is not in the manifest of {}", manifest.reference),
            ));
        }
        let path = root(&path, is_folder).join(&file.path);
        let found = path::metadata(&path, &manifest.reference)?;
        if !found.is_file() || found.len() != file.size {
            return Err(Error::IntegrityFailed {
                what: path.display().to_string(),
                expected: format!("a file of {} bytes", file.size),
                found: if found.is_file() {
                    format!("{} bytes; it has changed since", found.len())
                } else {
                    "no file".into()
                },
            });
        }
        Ok(Opened::Local(path))
    }
}

impl ModelSource for LocalSource {}
impl AdapterSource for LocalSource {}

/// The path that a ref means, and whether a folder is there.
fn place(reference: &ArtifactRef) -> Result<(PathBuf, bool)> {
    let path = path::absolute(reference)?;
    let meta = path::metadata(&path, reference)?;
    if !meta.is_dir() && !meta.is_file() {
        return Err(Error::load(path.display(), "expected a file or a folder, found a device or a pipe"));
    }
    Ok((path, meta.is_dir()))
}

/// The folder that the paths of a manifest are below.
fn root(path: &Path, is_folder: bool) -> &Path {
    if is_folder { path } else { path.parent().unwrap_or(path) }
}
