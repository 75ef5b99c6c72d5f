//! Which files of a repository are the model or the adapter.
//!
//! The rules are those of the local source, by name: nothing has been downloaded yet but the index of shards, where names
//! leave a doubt.

mod gguf;
mod indexed;
mod names;
mod weights;

#[cfg(test)]
mod tests;

pub(crate) use indexed::Indexed;
pub(crate) use names::{holds_weights, promised_shards};

use llm_local_core::{ArtifactRef, Error, ManifestFile, Result, Want};
use llm_local_weights::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_CONFIG, MODEL_TEXT_FILES, is_adapter_checkpoint, is_adapter_file, is_pickle,
    is_safetensors, is_trainer_state,
};

use weights::Safetensors;

use crate::{reference::HubRef, tree::RepoFile};

/// How many names a message lists.
const LISTED: usize = 40;

/// What the names of files tell.
#[derive(Debug)]
pub(crate) enum Choice {
    /// These, sorted by path.
    Files(Vec<ManifestFile>),
    /// An index must be read first.
    Indexed(Indexed),
}

/// The files that `want` needs of those in the repository, with their paths below the folder of `at`, sorted. Where there is
/// no adapter that is known by its names, and no model, all files of the folder but pickles, and checkpoints of a training
/// that is done, are one if `any` may be.
///
/// # Errors
/// [`Error::NotFound`] where nothing of what is wanted is there, [`Error::LoadFailed`] where it is not complete or one of
/// several must be meant, [`Error::UnsupportedModelFormat`] for pickles, split GGUF files, and an adapter for a model or
/// the other way around.
pub(crate) fn choose(
    reference: &ArtifactRef,
    at: &HubRef,
    want: Want,
    any: bool,
    repository: &[RepoFile],
) -> Result<Choice> {
    let folder = Folder::new(reference, at, repository)?;
    let paths = match (want, &at.gguf) {
        (Want::Model, Some(asked)) => folder.with_texts(folder.asked_gguf(asked)?),
        (Want::Adapter, Some(asked)) => vec![folder.asked_gguf(asked)?],
        (Want::Model, None) => return folder.model(),
        (Want::Adapter, None) if any => folder.adapter().or_else(|error| folder.any_adapter().ok_or(error))?,
        (Want::Adapter, None) => folder.adapter()?,
        (other, _) => {
            return Err(Error::unsupported(
                format!("{other:?} from the Hugging Face Hub"),
                "it gives a model or an adapter",
            ));
        }
    };
    Ok(Choice::Files(folder.manifest(&paths)))
}

/// The folder of a repository that a ref names.
struct Folder<'a> {
    reference: &'a ArtifactRef,
    at: &'a HubRef,
    repository: &'a [RepoFile],
    /// Those below the folder, by their path there.
    files: Vec<(&'a str, &'a RepoFile)>,
}

impl<'a> Folder<'a> {
    fn new(reference: &'a ArtifactRef, at: &'a HubRef, repository: &'a [RepoFile]) -> Result<Self> {
        let files: Vec<_> = repository.iter().filter_map(|f| Some((at.below(&f.path)?, f))).collect();
        let folder = Self { reference, at, repository, files };
        if folder.files.is_empty() { Err(folder.no_folder()) } else { Ok(folder) }
    }

    fn get(&self, path: &str) -> Option<&'a RepoFile> {
        self.files.iter().find(|(p, _)| *p == path).map(|(_, file)| *file)
    }

    fn has(&self, path: &str) -> bool {
        self.get(path).is_some()
    }

    /// The files at `paths`, sorted, each once.
    fn manifest(&self, paths: &[&str]) -> Vec<ManifestFile> {
        let mut paths = paths.to_vec();
        paths.sort_unstable();
        paths.dedup();
        paths.into_iter().filter_map(|path| self.get(path).map(|file| file.at(path))).collect()
    }

    /// The files in the folder itself, not below.
    fn names(&self) -> impl Iterator<Item = &'a str> {
        self.files.iter().map(|(path, _)| *path).filter(|path| !path.contains('/'))
    }

    fn model(&self) -> Result<Choice> {
        let safetensors = self.safetensors()?;
        let ggufs = self.ggufs();
        if let Some(weights) = safetensors {
            if self.has(MODEL_CONFIG) {
                let texts = self.names().filter(|n| *n == MODEL_CONFIG || MODEL_TEXT_FILES.contains(n));
                return Ok(match weights {
                    Safetensors::Named(names) => Choice::Files(self.manifest(&texts.chain(names).collect::<Vec<_>>())),
                    Safetensors::Indexed(index) => {
                        Choice::Indexed(Indexed::new(self, index, &texts.collect::<Vec<_>>()))
                    }
                });
            }
            if ggufs.is_empty() {
                return Err(Error::load(
                    self.reference,
                    format!("it has safetensors weights but no {MODEL_CONFIG}, which says what model they are of"),
                ));
            }
        }
        if self.has(ADAPTER_CONFIG) || self.names().any(is_adapter_file) {
            return Err(Error::unsupported_format(
                self.reference,
                "it is an adapter, not a model; pass it as adapter, with its base as model",
            ));
        }
        if !ggufs.is_empty() {
            return Ok(Choice::Files(self.manifest(&self.with_texts(self.only_gguf(&ggufs)?))));
        }
        if let Some(name) = self.names().find(|n| names::is_original_layout(n)) {
            return Err(Error::unsupported_format(
                self.reference,
                format!(
                    "`{name}` has the tensor names of its maker's own code; expected model.safetensors or shards of it, \
                     with the names of transformers"
                ),
            ));
        }
        Err(match self.pickle() {
            Some(name) => self.only_pickle(name),
            None => self.nothing("weights of a model (.safetensors or .gguf)", MODEL_CONFIG),
        })
    }

    fn adapter(&self) -> Result<Vec<&'a str>> {
        let weights: Vec<_> = self.names().filter(|n| ADAPTER_WEIGHTS.contains(n)).collect();
        match (self.names().find(|n| *n == ADAPTER_CONFIG), weights.first()) {
            (Some(config), Some(_)) => return Ok([config].into_iter().chain(weights).collect()),
            (Some(_), None) => {
                return Err(match self.pickle() {
                    Some(name) => self.only_pickle(name),
                    None => self.nothing("weights of an adapter (adapter_model.safetensors)", ADAPTER_CONFIG),
                });
            }
            (None, Some(weights)) => {
                return Err(Error::load(
                    self.reference,
                    format!(
                        "it has {weights} but no {ADAPTER_CONFIG}, which holds the adapter's rank and scale; say `scale` and \
                         `format` of the adapter in a spec (`--scale` and `--adapter-format` of the program)"
                    ),
                ));
            }
            (None, None) => {}
        }
        if self.has(MODEL_CONFIG) || self.has_safetensors() {
            return Err(Error::unsupported_format(self.reference, "it is a model, not an adapter; pass it as model"));
        }
        let ggufs = self.ggufs();
        if !ggufs.is_empty() {
            return Ok(vec![self.only_gguf(&ggufs)?]);
        }
        Err(match self.pickle() {
            Some(name) => self.only_pickle(name),
            None => self.nothing(
                "adapter (adapter_config.json and adapter_model.safetensors, or a .gguf file)",
                ADAPTER_CONFIG,
            ),
        })
    }

    /// All that could be an adapter of a format that is not known here: no model, and no pickle, and nothing that training
    /// left beside the file that it gave.
    fn any_adapter(&self) -> Option<Vec<&'a str>> {
        let is_left = |name: &str| is_pickle(name) || is_adapter_checkpoint(name, |done| self.has(done));
        let is_part = |name: &&str| !name.starts_with('.') && !name.ends_with(".md") && !is_left(name);
        let names: Vec<_> = self.names().filter(is_part).collect();
        (!self.has(MODEL_CONFIG) && !names.is_empty()).then_some(names)
    }

    /// The name of a pickle that holds weights, if there is one.
    fn pickle(&self) -> Option<&'a str> {
        self.names().find(|n| is_pickle(n) && !is_trainer_state(n))
    }

    fn only_pickle(&self, name: &str) -> Error {
        Error::unsupported_format(
            self.reference,
            format!(
                "its weights are a pickle (`{name}`), which can run code when read, and therefore never is; look in the \
                 repository's Community tab for a pull request that adds safetensors, and name it by `@refs/pr/1` or \
                 whatever its number is"
            ),
        )
    }

    /// The error where the ref names a folder that is not there, or the repository is empty.
    fn no_folder(&self) -> Error {
        let folder = &self.at.folder;
        if folder.is_empty() {
            return Error::not_found(self.reference, "the repository has no files at this revision");
        }
        let root = HubRef { folder: String::new(), gguf: None, ..self.at.clone() };
        let hint = match Folder::whole(self.reference, &root, self.repository).tagged(folder).first() {
            Some(unit) => format!("; for the GGUF file `{}`, write {}", unit.path(), root.with_gguf(folder)),
            None => {
                let mut folders: Vec<_> =
                    self.repository.iter().filter_map(|f| Some(f.path.rsplit_once('/')?.0)).collect();
                folders.dedup();
                if folders.is_empty() { "; it has no folders".into() } else { format!("; it has {}", listed(&folders)) }
            }
        };
        Error::not_found(self.reference, format!("the repository has no folder `{folder}`{hint}"))
    }

    fn whole(reference: &'a ArtifactRef, at: &'a HubRef, repository: &'a [RepoFile]) -> Self {
        Self { reference, at, repository, files: repository.iter().map(|f| (f.path.as_str(), f)).collect() }
    }

    /// The error where nothing of what was `expected` is there: what is there instead, and folders that have `config`.
    fn nothing(&self, expected: &str, config: &str) -> Error {
        let below: Vec<_> = self
            .files
            .iter()
            .filter_map(|(path, _)| path.strip_suffix(config)?.strip_suffix('/'))
            .map(|folder| self.at.with_folder(&self.at.in_repo(folder)))
            .collect();
        if !below.is_empty() {
            let below: Vec<_> = below.iter().map(String::as_str).collect();
            return Error::not_found(
                self.reference,
                format!("it has no {expected}, but folders that have a {config}; name one: {}", listed(&below)),
            );
        }
        let found: Vec<_> = self.files.iter().map(|(path, _)| *path).collect();
        Error::not_found(self.reference, format!("it has no {expected}; what it has: {}", listed(&found)))
    }
}

/// `names`, as many as a message takes.
fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
