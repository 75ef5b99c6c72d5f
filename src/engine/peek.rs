//! What a model is, before its weights are here: its config and the headers of its weights, which are kilobytes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use llm_local_core::{Error, FetchContext, ManifestFile, ModelInfo, Result};
use llm_local_source_common::transfer::{Job, Transfer};
use llm_local_weights::{Head, ShardIndex, describe, header_end, is_gguf, is_safetensors, weight_files};

use crate::blocking::blocking;

/// Bytes of a weights file that are asked for first. Most headers of safetensors are within; those of GGUF files, which
/// hold a vocabulary, within a few doublings.
const FIRST: u64 = 64 << 10;

/// Bytes that a header may have: the limit of safetensors, which is far above what GGUF files have.
const LARGEST_HEADER: u64 = 100_000_008;

/// Bytes that the config or the index of shards may have.
const LARGEST_TEXT: u64 = 64 << 20;

/// The description of the model `id` by what [`Transfer::read`] gives of the files of `job`. `None` if it has none: an
/// engine elsewhere runs it.
///
/// # Errors
/// Those of the transfer, and of a checkpoint that is broken or incomplete.
pub(super) async fn peek(
    transfer: &Transfer,
    job: &Job,
    id: &str,
    cx: &FetchContext,
) -> Result<Option<Arc<ModelInfo>>> {
    if job.manifest.files.is_empty() {
        return Ok(None);
    }
    let folder = tempfile::tempdir().map_err(|e| Error::io("write to", std::env::temp_dir(), e))?;
    let mut files = BTreeMap::new();
    for file in &job.manifest.files {
        let path = folder.path().join(files.len().to_string());
        if [CONFIG, ShardIndex::FILE].contains(&file.path.as_str()) {
            fetch_text(transfer, job, file, path.clone(), cx).await?;
        } else if !is_gguf(&file.path) && !is_safetensors(&file.path) {
            continue;
        }
        files.insert(file.path.clone(), path);
    }
    let files = Arc::new(files);
    let (names, known) = (id.to_owned(), files.clone());
    let weights = blocking("checkpoint", move || weight_files(&names, &known)).await?;
    let mut heads = BTreeMap::new();
    for name in weights {
        let Some(file) = job.manifest.file(&name) else {
            return Err(Error::load(
                id,
                format!("the weights `{name}` are not among its files; get the checkpoint anew"),
            ));
        };
        heads.insert(name, head(transfer, job, file, cx).await?);
    }
    let id = id.to_owned();
    blocking("checkpoint", move || describe(&id, &files, &heads).map(Some)).await
}

const CONFIG: &str = "config.json";

async fn fetch_text(transfer: &Transfer, job: &Job, file: &ManifestFile, to: PathBuf, cx: &FetchContext) -> Result<()> {
    if file.size > LARGEST_TEXT {
        let what = format!("{} of {}", file.path, job.manifest.reference);
        return Err(Error::load(what, format!("it has {} bytes; at most {LARGEST_TEXT} are read", file.size)));
    }
    let bytes = transfer.read(job, &file.path, 0..file.size, cx).await?;
    let write = move |path: &Path| std::fs::write(path, &bytes).map_err(|e| Error::io("write", path, e));
    blocking("checkpoint", move || write(&to)).await
}

/// The start of a weights file, grown until it holds the header.
async fn head(transfer: &Transfer, job: &Job, file: &ManifestFile, cx: &FetchContext) -> Result<Head> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut want = FIRST.min(file.size);
    loop {
        let more = transfer.read(job, &file.path, bytes.len() as u64..want, cx).await?;
        bytes.extend_from_slice(&more);
        let have = bytes.len() as u64;
        let end = header_end(&file.path, &bytes)?;
        match end {
            Some(end) if end <= have => break,
            // Cut off, or no weights at all: the reader says which.
            _ if have >= file.size => break,
            _ if have >= LARGEST_HEADER => {
                let what = format!("{} of {}", file.path, job.manifest.reference);
                return Err(Error::load(what, format!("its header has more than {LARGEST_HEADER} bytes")));
            }
            Some(end) => want = end.min(file.size),
            None => want = (2 * have).clamp(FIRST, LARGEST_HEADER).min(file.size),
        }
    }
    Ok(Head { bytes, size: file.size })
}
