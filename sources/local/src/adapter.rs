//! Which files are an adapter.

use std::path::Path;

use llm_local_core::{Error, Result};
use llm_local_weights::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, GgufSource, MODEL_CONFIG, SafetensorsFiles, SafetensorsSource,
    is_adapter_checkpoint, is_gguf, is_pickle, is_safetensors,
};

use crate::{
    folder::{Folder, pickle},
    path,
};

/// The names of the files that are the adapter in the folder at `path`: config and weights, whoever wrote them, or the
/// one GGUF file. Headers are checked here; what the config means is the reader's to judge. Of a folder that has none of
/// these, and no model, it is all files where `any` may be one, but pickles, and checkpoints of a training that is done.
pub(crate) fn in_folder(path: &Path, any: bool) -> Result<Vec<String>> {
    let folder = Folder::read(path)?;
    let known = known(path, &folder);
    if known.is_ok() || !any || folder.has(MODEL_CONFIG) {
        return known;
    }
    let is_left = |name: &str| is_pickle(name) || is_adapter_checkpoint(name, |done| folder.has(done));
    let names: Vec<_> = folder.files.keys().filter(|name| !name.starts_with('.') && !is_left(name)).cloned().collect();
    if names.is_empty() { known } else { Ok(names) }
}

fn known(path: &Path, folder: &Folder) -> Result<Vec<String>> {
    let weights: Vec<_> = ADAPTER_WEIGHTS.into_iter().filter(|n| folder.has(n)).collect();
    match (folder.has(ADAPTER_CONFIG), weights.first()) {
        (true, Some(_)) => {
            for name in &weights {
                SafetensorsSource::open(&path.join(name))?;
            }
            Ok([ADAPTER_CONFIG].into_iter().chain(weights).map(str::to_owned).collect())
        }
        (true, None) => Err(match folder.pickle() {
            Some(name) => folder.only_pickle(name),
            None => folder.nothing("weights of an adapter (adapter_model.safetensors or adapters.safetensors)"),
        }),
        (false, Some(weights)) => Err(Error::load(
            path.display(),
            format!(
                "the folder has {weights} but no {ADAPTER_CONFIG}, which holds the adapter's rank and scale; add it, or say \
                 `scale` and `format` of the adapter in a spec (`--scale` and `--adapter-format` of the program)"
            ),
        )),
        (false, None) => without_config(path, folder),
    }
}

fn without_config(path: &Path, folder: &Folder) -> Result<Vec<String>> {
    if folder.has(MODEL_CONFIG) || SafetensorsFiles::choose(&folder.files)?.is_some() {
        return Err(Error::unsupported_format(path.display(), "it is a model, not an adapter; pass it as model"));
    }
    match folder.ggufs()[..] {
        [name] => return file(&path.join(name), false),
        [] => {}
        ref several => return Err(folder.several(several)),
    }
    if let Some(name) = folder.pickle() {
        return Err(folder.only_pickle(name));
    }
    let below = folder.folders_with(ADAPTER_CONFIG);
    if !below.is_empty() {
        return Err(Error::load(
            path.display(),
            format!("the folder is no adapter, but has some below it; give one of them: {}", below.join(", ")),
        ));
    }
    Err(folder.nothing("adapter (adapter_config.json and adapter_model.safetensors, or a .gguf file)"))
}

/// The names of the files that are the adapter whose weights are the file at `path`: itself, and for safetensors the
/// config beside it, if there is one. A file of another kind is one where `any` may be.
pub(crate) fn file(path: &Path, any: bool) -> Result<Vec<String>> {
    let name = path::name(path)?;
    if is_gguf(&name) {
        if !GgufSource::open(path)?.is_adapter() {
            return Err(Error::unsupported_format(
                path.display(),
                "it is a GGUF model, not an adapter (general.type is not `adapter`); pass it as model",
            ));
        }
        return Ok(vec![name]);
    }
    if is_safetensors(&name) {
        SafetensorsSource::open(path)?;
        let config = path.with_file_name(ADAPTER_CONFIG).is_file();
        return Ok(config.then(|| ADAPTER_CONFIG.to_owned()).into_iter().chain([name]).collect());
    }
    if is_pickle(&name) {
        return Err(pickle(path));
    }
    if any {
        return Ok(vec![name]);
    }
    Err(Error::unsupported_format(
        path.display(),
        format!(
            "expected a folder with {ADAPTER_CONFIG} and safetensors, or a .safetensors or .gguf file; give the folder if this file is in one"
        ),
    ))
}
