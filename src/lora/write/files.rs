//! Tensors and metadata, as bytes of a file.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{self, BufWriter},
    path::Path,
};

use gguf_rs_lib::{builder::GGUFBuilder, format::metadata::MetadataValue, tensor::TensorType};
use llm_local_core::{Error, FloatType, Result, lora::Floats};
use safetensors::tensor::{Dtype, View};

/// What an adapter is written as.
pub(super) struct Files<'a> {
    /// The content of `adapter_config.json`, if the format has one.
    pub(super) config: Option<String>,
    /// The name of the file that holds the tensors.
    pub(super) weights: &'static str,
    pub(super) container: Container,
    pub(super) tensors: Vec<Tensor<'a>>,
    pub(super) notes: Vec<String>,
}

/// The kind of file that tensors are in.
pub(super) enum Container {
    /// safetensors, whose header has these texts.
    Safetensors(&'static [(&'static str, &'static str)]),
    /// GGUF, with this metadata.
    Gguf(Vec<(&'static str, MetadataValue)>),
}

/// A tensor to be written.
pub(super) struct Tensor<'a> {
    pub(super) name: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    pub(super) values: Cow<'a, Floats>,
}

impl<'a> Tensor<'a> {
    pub(super) fn new(name: impl Into<String>, shape: &[usize], values: Cow<'a, Floats>) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), values }
    }

    /// A tensor of one dimension.
    pub(super) fn vector(name: impl Into<String>, values: &[f32]) -> Self {
        Self::new(name, &[values.len()], Cow::Owned(Floats::F32(values.to_vec())))
    }

    /// Its values, little-endian.
    fn bytes(&self) -> Vec<u8> {
        match &*self.values {
            Floats::F32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Floats::F16(v) | Floats::Bf16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            other => unreachable!("{} is not a type of `Floats`", other.float_type()),
        }
    }
}

impl View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        match self.values.float_type() {
            FloatType::F16 => Dtype::F16,
            FloatType::Bf16 => Dtype::BF16,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.bytes())
    }

    fn data_len(&self) -> usize {
        self.values.byte_len()
    }
}

impl Files<'_> {
    /// Writes the tensors into a new file at `path`.
    pub(super) fn write_tensors(&self, path: &Path) -> Result<()> {
        match &self.container {
            Container::Safetensors(said) => self.write_safetensors(said, path),
            Container::Gguf(metadata) => self.write_gguf(metadata, path),
        }
    }

    fn write_safetensors(&self, said: &[(&str, &str)], path: &Path) -> Result<()> {
        let said: HashMap<_, _> = said.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let tensors = self.tensors.iter().map(|tensor| (&tensor.name, tensor));
        let file = || {
            // The crate makes a file that its owner alone may read.
            let open = File::create(path)?;
            let permissions = open.metadata()?.permissions();
            safetensors::serialize_to_file(tensors, (!said.is_empty()).then_some(said), path)
                .map_err(io::Error::other)?;
            fs_err::set_permissions(path, permissions)
        };
        file().map_err(|e: io::Error| Error::io("write", path, e))
    }

    fn write_gguf(&self, metadata: &[(&'static str, MetadataValue)], path: &Path) -> Result<()> {
        let mut builder = GGUFBuilder::new();
        for (key, value) in metadata {
            builder = builder.add_metadata(*key, value.clone());
        }
        let file = || {
            for tensor in &self.tensors {
                // ggml names the innermost dimension first.
                let shape = tensor.shape.iter().rev().map(|d| *d as u64).collect();
                let kind = match tensor.values.float_type() {
                    FloatType::F16 => TensorType::F16,
                    FloatType::Bf16 => TensorType::BF16,
                    _ => TensorType::F32,
                };
                builder = builder.add_tensor(&tensor.name, shape, kind, tensor.bytes()).map_err(io::Error::other)?;
            }
            builder.build_to_writer(BufWriter::new(File::create(path)?)).map_err(io::Error::other)
        };
        file().map(drop).map_err(|e| Error::io("write", path, e))
    }
}
