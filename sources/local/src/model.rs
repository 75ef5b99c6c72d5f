//! Which files are a model.

use std::{collections::BTreeMap, path::Path};

use llm_local_core::{Error, Result};
use llm_local_weights::{
    ADAPTER_CONFIG, Checkpoint, GGUF_TEXT_FILES, MODEL_CONFIG, MODEL_TEXT_FILES, SafetensorsFiles, ShardIndex,
    is_adapter_file, is_gguf, is_pickle, is_safetensors,
};

use crate::{
    folder::{Folder, pickle},
    path,
};

/// The names of the files that are the model in the folder at `path`: those of a Hugging Face folder, or else its one
/// GGUF file and the text files with it. Opens the checkpoint once, so that what is wrong with a header is said here.
pub(crate) fn in_folder(path: &Path) -> Result<Vec<String>> {
    let folder = Folder::read(path)?;
    if let Some(weights) = SafetensorsFiles::choose(&folder.files)? {
        let mut files = BTreeMap::new();
        for name in MODEL_TEXT_FILES.into_iter().chain([MODEL_CONFIG, ShardIndex::FILE]) {
            if let Some(path) = folder.files.get(name) {
                files.insert(name.to_owned(), path.clone());
            }
        }
        // An index may name shards in folders below.
        for name in weights.names() {
            let shard = path.join(name);
            if shard.is_file() {
                files.insert(name.clone(), shard);
            }
        }
        Checkpoint::open(&path.display().to_string(), &files)?;
        return Ok(files.into_keys().collect());
    }
    if folder.has(ADAPTER_CONFIG) || folder.files.keys().any(|n| is_adapter_file(n)) {
        return Err(Error::unsupported_format(
            path.display(),
            "it is an adapter, not a model; pass it as adapter, with its base as model",
        ));
    }
    match folder.ggufs()[..] {
        [name] => {
            let mut files = file(&path.join(name))?;
            // Only where the folder is the model: beside a lone file they may be another model's.
            files.extend(GGUF_TEXT_FILES.into_iter().filter(|n| folder.has(n)).map(str::to_owned));
            Ok(files)
        }
        [] => Err(match folder.pickle() {
            Some(name) => folder.only_pickle(name),
            None => folder.nothing("weights of a model (.safetensors or .gguf)"),
        }),
        ref several => Err(folder.several(several)),
    }
}

/// The name of the one file that is the model at `path`.
pub(crate) fn file(path: &Path) -> Result<Vec<String>> {
    let name = path::name(path)?;
    if is_gguf(&name) {
        let files = BTreeMap::from([(name.clone(), path.to_owned())]);
        Checkpoint::open(&path.display().to_string(), &files)?;
        return Ok(vec![name]);
    }
    if is_pickle(&name) {
        return Err(pickle(path));
    }
    let reason = if is_safetensors(&name) && is_adapter_file(&name) {
        "it is an adapter, not a model; pass it as adapter, with its base as model"
    } else if is_safetensors(&name) {
        "a safetensors file alone is no model, for config.json says which one it is; give the folder that has both"
    } else {
        "expected a folder with config.json and safetensors, or a .gguf file; give the folder if this file is in one"
    };
    Err(Error::unsupported_format(path.display(), reason))
}
