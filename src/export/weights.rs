//! Tensors in files of safetensors, and their index.

use std::io::{BufWriter, Write};

use llm_local_core::{Encoding, Error, FloatType, Result, TensorData, TensorEntry, TensorSource};
use llm_local_weights::ShardIndex;
use serde_json::{Map, Value, json};

use super::Watch;
use crate::{
    new_folder::NewFolder,
    tensor_file::{self, Placed},
};

/// Which tensor stands where, in which file.
pub(super) struct Layout {
    files: Vec<Vec<Placed>>,
    float: Option<FloatType>,
}

impl Layout {
    /// Places the tensors `entries`, in their order, into files of at most `most` bytes of tensors, or of one tensor. Their
    /// floats become `float`, if that says so.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a tensor that safetensors cannot hold.
    pub(super) fn new(entries: &[TensorEntry], float: Option<FloatType>, most: u64) -> Result<Self> {
        let mut files: Vec<Vec<Placed>> = vec![Vec::new()];
        for entry in entries {
            let mut given = TensorEntry::new(entry.name.clone(), entry.shape.clone(), entry.encoding);
            if let (Encoding::Float(_), Some(float)) = (entry.encoding, float) {
                given.encoding = Encoding::Float(float);
            }
            let (Some(dtype), Some(bytes)) = (tensor_file::dtype(given.encoding), given.stored_bytes()) else {
                let what = format!("the export of the tensor `{}`", entry.name);
                return Err(Error::unsupported(what, format!("safetensors has no {}", given.encoding)));
            };
            let end = files.last().map_or(0, |file| end(file));
            let start = if end > 0 && (end + bytes) as u64 > most {
                files.push(Vec::new());
                0
            } else {
                end
            };
            let placed = Placed { name: given.name, shape: given.shape, dtype, range: start..start + bytes };
            files.last_mut().into_iter().for_each(|file| file.push(placed.clone()));
        }
        Ok(Self { files, float })
    }

    /// Bytes of all tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| end(file) as u64).sum()
    }

    /// Writes all files, and their index if there are several.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Cancelled`] once nobody wants it; [`Error::Unsupported`] for a value that is infinite in the type
    /// that was asked for; [`Error::LoadFailed`] for a tensor that is given in another
    /// size than its entry says; what reading one gave.
    pub(super) fn write(
        &self,
        tensors: &dyn TensorSource,
        folder: &mut NewFolder,
        Watch { wanted, told, .. }: &Watch<'_>,
    ) -> Result<()> {
        let (mut done, total) = (0, self.files.iter().map(Vec::len).sum());
        let mut map = Map::new();
        for (number, placed) in self.files.iter().enumerate() {
            let name = self.name(number);
            let file = folder.create(&name)?;
            let path = file.path().to_owned();
            let failed = |e| Error::io("write", &path, e);
            let mut file = BufWriter::new(file);
            let head = tensor_file::head(placed.clone(), 0).map_err(|reason| Error::load(path.display(), reason))?;
            file.write_all(&head).map_err(failed)?;
            for tensor in placed {
                wanted.check()?;
                self.write_tensor(tensors, tensor, |bytes| file.write_all(bytes).map_err(failed))?;
                map.insert(tensor.name.clone(), json!(name));
                done += 1;
                told(done, total);
            }
            NewFolder::close(&file.into_inner().map_err(|e| failed(e.into_error()))?)?;
        }
        if self.files.len() > 1 {
            let index = json!({ "metadata": { "total_size": self.bytes() }, "weight_map": Value::Object(map) });
            folder.write(ShardIndex::FILE, format!("{index:#}\n").as_bytes())?;
        }
        Ok(())
    }

    fn write_tensor(
        &self,
        tensors: &dyn TensorSource,
        placed: &Placed,
        mut write: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let stored = tensors.entry(&placed.name).and_then(|entry| match entry.encoding {
            Encoding::Float(float) => Some(float),
            _ => None,
        });
        let data = tensors.read(&placed.name, self.float.filter(|_| stored.is_some()))?;
        data.check_len(&placed.name, placed.range.len())?;
        if let (Some(from), Some(to)) = (stored, self.float) {
            check_held(tensors, &placed.name, from, (&data, to))?;
        }
        tensor_file::each_bytes(&data, |bytes, _| write(bytes))
    }

    /// The name of a file, as `save_pretrained` has it.
    fn name(&self, number: usize) -> String {
        match self.files.len() {
            1 => "model.safetensors".into(),
            all => format!("model-{:05}-of-{all:05}.safetensors", number + 1),
        }
    }
}

/// Checks that every finite value of the tensor `name`, stored as `from`, is finite still in what was made of it.
///
/// # Errors
/// [`Error::Unsupported`] that names the tensor, the value's place and a type that holds it; what reading the tensor gave.
fn check_held(
    tensors: &dyn TensorSource,
    name: &str,
    from: FloatType,
    (made, to): (&TensorData<'_>, FloatType),
) -> Result<()> {
    if !is_narrower(to, from) || tensor_file::not_finite(made, to).next().is_none() {
        return Ok(());
    }
    // What was no number before stays what it was.
    let stored = tensors.read(name, None)?;
    let mut before = tensor_file::not_finite(&stored, from).peekable();
    for at in tensor_file::not_finite(made, to) {
        while before.next_if(|place| *place < at).is_some() {}
        if before.peek() != Some(&at) {
            let instead = match to {
                FloatType::F16 => "bf16 or f32",
                FloatType::Bf16 => "f32",
                _ => "no type, which leaves it as it is",
            };
            let what = format!("the export of the tensor `{name}` as {to}");
            let reason = format!("its value number {at}, counted from 0, is beyond what {to} holds; ask for {instead}");
            return Err(Error::unsupported(what, reason));
        }
    }
    Ok(())
}

/// Whether there are finite values of `from` that `to` has no finite one for.
fn is_narrower(to: FloatType, from: FloatType) -> bool {
    // A value above the largest of bf16, as f32 has some, is rounded to infinity.
    let range = |float| match float {
        FloatType::F16 => 0,
        FloatType::Bf16 => 1,
        FloatType::F32 => 2,
        _ => 3,
    };
    range(to) < range(from)
}

/// Where the tensors of a file end.
fn end(file: &[Placed]) -> usize {
    file.last().map_or(0, |last| last.range.end)
}
