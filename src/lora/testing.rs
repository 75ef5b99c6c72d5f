//! Adapters and bases for tests.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use llm_local_core::{
    ArtifactRef, FloatType, LoraAdapter, ModelFormat, ModelInfo, Result, TensorData, TensorEntry, TensorSource,
};
use llm_local_weights::{Head, SafetensorsSource};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{AdapterOutline, FitReport, MergedSource, ReadOptions, declare, fit, read};

pub(super) fn fixture(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(path)
}

/// Reads the adapter in a folder.
pub(super) fn read_folder(folder: &Path) -> Result<LoraAdapter> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let files: BTreeMap<_, _> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).map(|path| (name(&path), path)).collect();
    read(&ArtifactRef::file(folder).unwrap(), &files)
}

/// The outline of the adapter in a folder, by as much of its files as is wanted.
pub(super) fn outline_folder(folder: &Path) -> Result<AdapterOutline> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let reference = ArtifactRef::file(folder).unwrap();
    let config = fs::read(folder.join("adapter_config.json")).ok();
    let declared = declare(&reference, names.iter().map(String::as_str), config.as_deref(), &ReadOptions::new())?;
    let bytes = fs::read(folder.join(declared.weights())).unwrap();
    let mut head = Head::new(declared.weights(), &reference, bytes.len() as u64);
    let outlined = (|| {
        while let Some(range) = head.wanted()? {
            head.extend(&bytes[range.start as usize..range.end as usize]);
        }
        declared.outline_by_head(&head)
    })();
    outlined.map_err(|e| e.into_adapter(&reference))
}

pub(super) fn tiny_llama() -> SafetensorsSource {
    SafetensorsSource::open(&fixture("models/tiny-llama/model.safetensors")).unwrap()
}

/// The description of tiny-llama, with `change` applied to the tensors' headers.
pub(super) fn tiny_llama_info(change: impl FnOnce(&mut Vec<TensorEntry>)) -> ModelInfo {
    let mut entries = tiny_llama().entries().to_vec();
    change(&mut entries);
    let config = fs::read(fixture("models/tiny-llama/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    ModelInfo::new("tiny-llama", ModelFormat::Safetensors { config: Arc::new(config) }, entries)
}

/// A base whose weights must not be read.
pub(super) struct Unreadable(pub(super) Arc<[TensorEntry]>);

impl TensorSource for Unreadable {
    fn entries(&self) -> &[TensorEntry] {
        &self.0
    }

    fn read(&self, name: &str, _: Option<FloatType>) -> Result<TensorData<'_>> {
        panic!("the base tensor {name} was read")
    }
}

/// Fits an adapter to `info` and puts it over a base that must not be read.
pub(super) fn fit_unread(adapter: LoraAdapter, info: &ModelInfo) -> Result<FitReport> {
    let adapters = vec![(Arc::new(adapter), 1.0)];
    let report = fit(&adapters, info);
    let merged = MergedSource::new(Arc::new(Unreadable(info.tensors.clone())), adapters, info);
    assert_eq!(report.as_ref().err().map(|e| e.to_string()), merged.as_ref().err().map(|e| e.to_string()));
    report
}

/// A tensor of a file to write: name, safetensors data type, shape and bytes.
pub(super) type RawTensor = (String, &'static str, Vec<usize>, Vec<u8>);

/// The bytes of a safetensors file, whose header may say a name twice.
pub(super) fn safetensors(tensors: &[RawTensor]) -> Vec<u8> {
    let mut end = 0;
    let header: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| {
            let start = end;
            end += data.len();
            format!("{}:{}", json!(name), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}))
        })
        .collect();
    let mut header = format!("{{{}}}", header.join(",")).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    tensors.iter().for_each(|(.., data)| file.extend(data));
    file
}

pub(super) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A PEFT adapter to be written: a good one for q_proj and v_proj in the layers 2 and 3 of tiny-llama, rank 2, until it
/// is changed.
pub(super) struct TestAdapter {
    pub(super) config: Map<String, Value>,
    pub(super) tensors: Vec<RawTensor>,
}

impl TestAdapter {
    pub(super) fn new() -> Self {
        let config = json!({
            "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
            "layers_to_transform": [2, 3], "layers_pattern": "layers", "base_model_name_or_path": "tiny-llama",
        });
        let Value::Object(config) = config else { unreachable!() };
        let mut adapter = Self { config, tensors: Vec::new() };
        for layer in [2, 3] {
            adapter.pair(&Self::module(layer, "q_proj"), 2, 128, 128);
            adapter.pair(&Self::module(layer, "v_proj"), 2, 128, 64);
        }
        adapter
    }

    pub(super) fn module(layer: usize, name: &str) -> String {
        format!("model.layers.{layer}.self_attn.{name}")
    }

    pub(super) fn key(layer: usize, name: &str, factor: &str) -> String {
        format!("base_model.model.{}.{factor}.weight", Self::module(layer, name))
    }

    pub(super) fn set(&mut self, key: &str, value: Value) -> &mut Self {
        self.config.insert(key.into(), value);
        self
    }

    pub(super) fn unset(&mut self, key: &str) -> &mut Self {
        self.config.remove(key).unwrap();
        self
    }

    pub(super) fn tensor(&mut self, name: impl Into<String>, shape: &[usize]) -> &mut Self {
        let values = vec![0.5; shape.iter().product()];
        self.tensors.push((name.into(), "F32", shape.to_vec(), f32_bytes(&values)));
        self
    }

    pub(super) fn pair(&mut self, module: &str, rank: usize, inputs: usize, outputs: usize) -> &mut Self {
        self.tensor(format!("base_model.model.{module}.lora_A.weight"), &[rank, inputs]);
        self.tensor(format!("base_model.model.{module}.lora_B.weight"), &[outputs, rank])
    }

    /// The tensor of this name, to be changed.
    pub(super) fn at(&mut self, name: &str) -> &mut RawTensor {
        self.tensors.iter_mut().find(|t| t.0 == name).unwrap()
    }

    pub(super) fn remove(&mut self, name: &str) -> &mut Self {
        let index = self.tensors.iter().position(|t| t.0 == name).unwrap();
        self.tensors.remove(index);
        self
    }

    /// Writes and reads it.
    pub(super) fn read(&self) -> Result<LoraAdapter> {
        self.read_with(Value::Object(self.config.clone()).to_string().as_bytes(), &safetensors(&self.tensors))
    }

    /// Writes and reads it with other bytes in its files.
    pub(super) fn read_with(&self, config: &[u8], weights: &[u8]) -> Result<LoraAdapter> {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        fs::write(folder.path().join("adapter_model.safetensors"), weights).unwrap();
        read_folder(folder.path())
    }

    /// Reads it and fits it to tiny-llama, none of whose weights may be read.
    pub(super) fn fit(&self) -> Result<FitReport> {
        self.read().and_then(|adapter| fit_unread(adapter, &tiny_llama_info(|_| {})))
    }
}
