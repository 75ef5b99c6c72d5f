//! PEFT adapters: `adapter_config.json` and `adapter_model.safetensors`, or another safetensors file alone.
//!
//! Source of the rules: PEFT `src/peft/tuners/lora/config.py`, `layer.py` and `src/peft/utils/save_and_load.py`.

mod config;
mod features;
mod keys;
mod pairs;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use llm_local_core::{Encoding, Error, FloatType, LoraAdapter, LoraModule, Result, TensorSource};
use llm_local_weights::SafetensorsSource;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use self::{config::PeftConfig, pairs::Pair};
use super::{AdapterFiles, CONFIG};
use crate::lora::{
    floats,
    message::{all_of, some_of},
};

/// The file that PEFT saves the tensors in.
const WEIGHTS: &str = "adapter_model.safetensors";

/// Reads the adapter that `config` (parsed from `config_bytes`) describes.
pub(super) fn read(files: &AdapterFiles<'_>, config_bytes: &[u8], config: &Map<String, Value>) -> Result<LoraAdapter> {
    let config = PeftConfig::new(config).map_err(|reason| files.error(format!("{CONFIG}: {reason}")))?;
    let (name, path) = weights(files)?;
    let in_weights = |reason: String| files.error(format!("{name}: {reason}"));
    let source = SafetensorsSource::open(path).map_err(|e| e.into_adapter(files.reference))?;
    let pairs = pairs::collect(source.entries(), config.rank).map_err(in_weights)?;
    let modules = pairs
        .iter()
        .map(|pair| read_pair(&source, pair, &config))
        .collect::<Result<Vec<_>, _>>()
        .map_err(in_weights)?;
    if modules.iter().all(|m| floats::product_is_zero(&m.a, &m.b, m.rank)) {
        return Err(in_weights(format!(
            "`B @ A` is zero in {}, so the adapter would do nothing: it was never trained, or saved wrongly",
            all_of(modules.len(), "module")
        )));
    }
    let digest = digest(config_bytes, path).map_err(|e| e.into_adapter(files.reference))?;
    Ok(LoraAdapter::new(files.reference.to_string(), digest, modules)
        .with_targets(config.targets)
        .with_base(config.base))
}

/// The file that holds the tensors, by name and path: PEFT's own name if it is there, for a renamed file is common, but
/// which of several belongs to the config nothing says.
fn weights<'a>(files: &AdapterFiles<'a>) -> Result<(&'a str, &'a Path)> {
    let of = |(name, path): (&'a String, &'a PathBuf)| (name.as_str(), path.as_path());
    if let Some(found) = files.by_name.get_key_value(WEIGHTS) {
        return Ok(of(found));
    }
    let beside = |name: &str| !name.contains('/') && name.to_ascii_lowercase().ends_with(".safetensors");
    let candidates: Vec<_> = files.by_name.iter().map(of).filter(|(name, _)| beside(name)).collect();
    match candidates[..] {
        [one] => Ok(one),
        [] => Err(files.pickle().unwrap_or_else(|| {
            files.error(format!("{WEIGHTS} is missing beside {CONFIG}; found {}", files.listing()))
        })),
        _ => Err(files.error(format!(
            "which safetensors file belongs to {CONFIG} is not clear: expected {WEIGHTS} or one file alone; found {}",
            some_of(&candidates.iter().map(|(name, _)| name).collect::<Vec<_>>())
        ))),
    }
}

/// Reads both factors of a pair; the error names the tensor.
fn read_pair(source: &SafetensorsSource, pair: &Pair<'_>, config: &PeftConfig) -> Result<LoraModule, String> {
    let factor = |entry: &llm_local_core::TensorEntry| {
        let Encoding::Float(stored) = entry.encoding else { unreachable!("`pairs` takes floats only") };
        let data = source.read(&entry.name, None).map_err(|e| e.to_string())?;
        let values = floats::own(data, stored).map_err(|reason| format!("`{}` {reason}", entry.name))?;
        match floats::first_non_finite(&values) {
            None => Ok(values),
            Some((index, found)) => {
                let columns = entry.shape[1];
                let (row, column) = (index / columns, index % columns);
                Err(format!("`{}` has {found} at ({row}, {column}); expected finite values only", entry.name))
            }
        }
    };
    let shape = (config.rank, pair.a.shape[1], pair.b.shape[0]);
    Ok(LoraModule::new(pair.module, shape, factor(pair.a)?, factor(pair.b)?, config.scale))
}

/// SHA-256 over config and weights, each after its length.
fn digest(config: &[u8], weights: &Path) -> Result<String> {
    let failed = |e| Error::io("read", weights, e);
    let mut file = fs_err::File::open(weights).map_err(failed)?;
    let mut hash = Sha256::new();
    hash.update((config.len() as u64).to_le_bytes());
    hash.update(config);
    hash.update(file.metadata().map_err(failed)?.len().to_le_bytes());
    let mut buffer = vec![0; 1 << 16];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).map_err(failed)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The float types a factor may be stored in.
const FACTOR_TYPES: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];
