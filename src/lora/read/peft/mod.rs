//! PEFT adapters: `adapter_config.json` and `adapter_model.safetensors`, or another safetensors file alone.
//!
//! Source of the rules: PEFT `src/peft/tuners/lora/config.py`, `layer.py` and `src/peft/utils/save_and_load.py`.

mod config;
mod features;
mod keys;
mod pairs;

#[cfg(test)]
mod tests;

use std::path::Path;

use llm_local_core::{
    Encoding, Error, FloatType, LoraAdapter, LoraModule, Result, TensorEntry, TensorSource, model::Layout,
};
use llm_local_weights::SafetensorsSource;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use self::{config::PeftConfig, pairs::Pair};
use super::{AdapterFiles, CONFIG};
use crate::lora::{
    floats,
    message::{all_of, some_of},
    outline::{AdapterOutline, ModuleOutline},
};

/// The file that PEFT saves the tensors in.
const WEIGHTS: &str = "adapter_model.safetensors";

/// A PEFT adapter by its config, and the file that has its tensors.
pub(crate) struct Declared<'a> {
    files: AdapterFiles<'a>,
    config: PeftConfig,
    weights: &'a str,
}

impl<'a> Declared<'a> {
    pub(super) fn new(files: AdapterFiles<'a>, config: &Map<String, Value>) -> Result<Self> {
        let config = PeftConfig::new(config).map_err(|reason| files.error(format!("{CONFIG}: {reason}")))?;
        let weights = weights(&files)?;
        Ok(Self { files, config, weights })
    }

    /// The name of the file that has its tensors.
    pub(crate) fn weights(&self) -> &'a str {
        self.weights
    }

    /// The adapter without its values, by the header of its weights.
    ///
    /// # Errors
    /// As [`super::read`], as far as the header tells.
    pub(crate) fn outline(&self, entries: &[TensorEntry]) -> Result<AdapterOutline> {
        let pairs = self.pairs(entries)?;
        let module = |pair: &Pair<'_>| ModuleOutline {
            name: pair.module.to_owned(),
            rank: self.config.rank,
            in_features: pair.a.shape[1],
            out_features: pair.b.shape[0],
            experts: None,
            transposed: false,
            is_parameter: false,
            has_magnitude: false,
            has_bias: false,
            scale: self.config.scale,
            defect: None,
        };
        let bytes = |pair: &Pair<'_>| [pair.a, pair.b].into_iter().filter_map(TensorEntry::stored_bytes).sum::<usize>();
        Ok(AdapterOutline {
            reference: self.files.reference.to_string(),
            modules: pairs.iter().map(module).collect(),
            row_order: Layout::HuggingFace,
            replacements: Vec::new(),
            rows: Vec::new(),
            features: Vec::new(),
            targets: Some(self.config.targets.clone()),
            bytes: pairs.iter().map(|pair| bytes(pair) as u64).sum(),
        })
    }

    /// The adapter, from the file at `path` that has its tensors; `config` are the bytes of its config.
    pub(super) fn read(&self, config: &[u8], path: &Path) -> Result<LoraAdapter> {
        let reference = self.files.reference;
        let source = SafetensorsSource::open(path).map_err(|e| e.into_adapter(reference))?;
        let modules = self
            .pairs(source.entries())?
            .iter()
            .map(|pair| read_pair(&source, pair, &self.config))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|reason| self.in_weights(reason))?;
        if modules.iter().all(|m| floats::product_is_zero(&m.a, &m.b, m.rank)) {
            return Err(self.in_weights(format!(
                "`B @ A` is zero in {}, so the adapter would do nothing: it was never trained, or saved wrongly",
                all_of(modules.len(), "module")
            )));
        }
        let digest = digest(config, path).map_err(|e| e.into_adapter(reference))?;
        Ok(LoraAdapter::new(reference.to_string(), digest, modules)
            .with_targets(self.config.targets.clone())
            .with_base(self.config.base.clone()))
    }

    fn pairs<'e>(&self, entries: &'e [TensorEntry]) -> Result<Vec<Pair<'e>>> {
        pairs::collect(entries, self.config.rank).map_err(|reason| self.in_weights(reason))
    }

    fn in_weights(&self, reason: String) -> Error {
        self.files.error(format!("{}: {reason}", self.weights))
    }
}

/// The file that holds the tensors: PEFT's own name if it is there, for a renamed file is common, but which of several
/// belongs to the config nothing says.
fn weights<'a>(files: &AdapterFiles<'a>) -> Result<&'a str> {
    if files.names.contains(&WEIGHTS) {
        return Ok(WEIGHTS);
    }
    let beside = |name: &&str| !name.contains('/') && name.to_ascii_lowercase().ends_with(".safetensors");
    let candidates: Vec<_> = files.names.iter().copied().filter(beside).collect();
    match candidates[..] {
        [one] => Ok(one),
        [] => Err(files.pickle().unwrap_or_else(|| {
            files.error(format!("{WEIGHTS} is missing beside {CONFIG}; found {}", files.listing()))
        })),
        _ => Err(files.error(format!(
            "which safetensors file belongs to {CONFIG} is not clear: expected {WEIGHTS} or one file alone; found {}",
            some_of(&candidates)
        ))),
    }
}

/// Reads both factors of a pair; the error names the tensor.
fn read_pair(source: &SafetensorsSource, pair: &Pair<'_>, config: &PeftConfig) -> Result<LoraModule, String> {
    let factor = |entry: &TensorEntry| {
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
