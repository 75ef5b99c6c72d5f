//! Tensors and metadata, as bytes of a file.

use std::{
    borrow::Cow,
    io::{self, BufWriter, Write},
    path::Path,
};

use fs_err::File;
use gguf_rs_lib::{builder::GGUFBuilder, format::metadata::MetadataValue, tensor::TensorType};
use llm_local_core::{Encoding, Error, FloatType, Result, lora::Floats};

use crate::{
    blocking::Wanted,
    tensor_file::{self, Placed},
};

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

impl Files<'_> {
    /// Writes the tensors into the new `file`, as long as that is wanted.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Cancelled`] once nobody waits.
    pub(super) fn write_tensors(&self, file: &File, wanted: &Wanted) -> Result<()> {
        let mut writer = BufWriter::new(file);
        match &self.container {
            Container::Safetensors(said) => self.write_safetensors(said, &mut writer, file.path(), wanted)?,
            Container::Gguf(metadata) => self.write_gguf(metadata, &mut writer, file.path(), wanted)?,
        }
        writer.flush().map_err(|e| Error::io("write", file.path(), e))
    }

    fn write_safetensors(
        &self,
        said: &[(&str, &str)],
        writer: &mut impl Write,
        path: &Path,
        wanted: &Wanted,
    ) -> Result<()> {
        let failed = |e| Error::io("write", path, e);
        let dtype = |tensor: &Tensor<'_>| tensor_file::dtype(Encoding::Float(tensor.values.float_type()));
        let mut placed = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            let dtype = dtype(tensor).ok_or_else(|| failed(io::Error::other("safetensors has no such type")))?;
            placed.push((dtype, tensor));
        }
        // As the safetensors crate has them: those with wider values first, so that each is aligned.
        placed.sort_by(|(of_a, a), (of_b, b)| of_b.cmp(of_a).then_with(|| a.name.cmp(&b.name)));
        let mut end = 0;
        let at = placed.iter().map(|(dtype, tensor)| {
            let start = end;
            end += tensor.values.byte_len();
            Placed { name: tensor.name.clone(), shape: tensor.shape.clone(), dtype: *dtype, range: start..end }
        });
        let head =
            tensor_file::head_saying(said, at.collect(), 0).map_err(|reason| failed(io::Error::other(reason)))?;
        writer.write_all(&head).map_err(failed)?;
        for (_, tensor) in placed {
            wanted.check()?;
            writer.write_all(&tensor.bytes()).map_err(failed)?;
        }
        Ok(())
    }

    fn write_gguf(
        &self,
        metadata: &[(&'static str, MetadataValue)],
        writer: &mut impl Write,
        path: &Path,
        wanted: &Wanted,
    ) -> Result<()> {
        let failed = |e| Error::io("write", path, io::Error::other(e));
        let mut builder = GGUFBuilder::new();
        for (key, value) in metadata {
            builder = builder.add_metadata(*key, value.clone());
        }
        for tensor in &self.tensors {
            wanted.check()?;
            // ggml names the innermost dimension first.
            let shape = tensor.shape.iter().rev().map(|d| *d as u64).collect();
            let kind = match tensor.values.float_type() {
                FloatType::F16 => TensorType::F16,
                FloatType::Bf16 => TensorType::BF16,
                _ => TensorType::F32,
            };
            builder = builder.add_tensor(&tensor.name, shape, kind, tensor.bytes()).map_err(failed)?;
        }
        let built = builder.build_to_writer(WhileWanted { writer, wanted });
        // A refusal to go on comes as an error of writing.
        built.map(drop).map_err(|e| wanted.check().err().unwrap_or_else(|| failed(e)))
    }
}

/// A writer that fails once nobody waits for what is written: a GGUF file's tensors are written in one call.
struct WhileWanted<'a, W> {
    writer: W,
    wanted: &'a Wanted,
}

impl<W: Write> Write for WhileWanted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wanted.check().map_err(io::Error::other)?;
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives up once it has more than so many bytes.
    struct GivingUp<'a> {
        wanted: &'a Wanted,
        after: usize,
        bytes: usize,
    }

    impl Write for GivingUp<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.bytes += bytes.len();
            if self.bytes > self.after {
                self.wanted.give_up();
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn gguf_ends_between_tensors_once_nobody_waits() {
        let metadata = [("general.type", MetadataValue::String("adapter".into()))];
        let tensors = ["a", "b", "c", "d"].map(|name| Tensor::vector(name, &[1.0; 1024])).into();
        let container = Container::Gguf(Vec::new());
        let files = Files { config: None, weights: "x.gguf", container, tensors, notes: Vec::new() };
        let write = |after| {
            let wanted = Wanted::new();
            let mut writer = GivingUp { wanted: &wanted, after, bytes: 0 };
            let written = files.write_gguf(&metadata, &mut writer, Path::new("x.gguf"), &wanted);
            (written.map_err(|e| e.code()), writer.bytes)
        };
        let (written, whole) = write(usize::MAX);
        assert!(written.is_ok() && whole > 4 * 4096, "{written:?}, {whole} bytes");
        let (written, bytes) = write(4096);
        assert_eq!(written, Err("cancelled"));
        assert!(bytes < 3 * 4096, "{bytes} of {whole} bytes");
    }
}
