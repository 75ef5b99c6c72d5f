//! A merge that is written down while a backend reads it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use llm_local_core::{Encoding, Error, FloatType, Result, TensorData, TensorEntry, TensorSource};
use llm_local_source_common::store::{Hold, MergeWriter};

use super::{computed, not_kept};
use crate::{
    lora::MergedSource,
    tensor_file::{self, Placed},
};

/// A merge whose tensors are written to a file as a backend reads them: each once, in the type in which it is read first,
/// in the order in which they are read. At no time is more of them in memory than what the backend has asked for.
pub(in crate::engine) struct Writing {
    merged: MergedSource,
    name: String,
    /// What its key says of the base.
    base: Vec<String>,
    /// The names of the tensors that are written.
    computed: HashSet<String>,
    /// The bytes before the first of them.
    head: usize,
    /// `None` once it is done, or has failed.
    file: Mutex<Option<File>>,
}

/// The file, and what stands in it.
struct File {
    writer: Arc<MergeWriter>,
    tensors: HashMap<String, Placed>,
}

impl Writing {
    /// Writes what is read of `merged`, which is called `name`, and whose base is one of which `base` is known.
    pub(super) fn new(merged: MergedSource, writer: MergeWriter, name: String, base: Vec<String>) -> Self {
        let head = tensor_file::head_room(computed(&merged));
        let names = computed(&merged).map(|(name, _)| name.to_owned()).collect();
        writer.reserve(head as u64);
        let file = Mutex::new(Some(File { writer: Arc::new(writer), tensors: HashMap::new() }));
        Self { merged, name, base, computed: names, head, file }
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Publishes what was written, if all went well and the base is one of which `known` is known still. Gives what keeps it
    /// from deletion.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] for a base that changed while it was read; those of [`MergeWriter::finish`].
    pub(super) fn finish(&self, known: Option<Vec<String>>, quota: Option<u64>) -> Result<Option<Hold>> {
        let Some(File { writer, tensors }) = self.file().take() else { return Ok(None) };
        if tensors.is_empty() {
            return Ok(None);
        }
        if known.as_ref() != Some(&self.base) {
            return Err(Error::load(&self.name, "its base changed while it was read; load it again"));
        }
        // Somebody else has it only where the backend reads on, though it says that the model is loaded.
        let Some(writer) = Arc::into_inner(writer) else { return Ok(None) };
        let head = tensor_file::head(tensors.into_values().collect(), self.head);
        writer.write_at(&head.map_err(|reason| Error::load(&self.name, reason))?, 0)?;
        Ok(Some(writer.finish(quota)?.hold))
    }

    /// Writes `data`, which is of the tensor `name` and was asked for as `want`, unless it was written before.
    fn keep(&self, name: &str, want: Option<FloatType>, data: &TensorData<'_>) {
        if let Err(error) = self.try_keep(name, want, data) {
            // What another thread is writing at this moment is for nothing, too.
            *self.file() = None;
            not_kept(&self.name, &error);
        }
    }

    fn try_keep(&self, name: &str, want: Option<FloatType>, data: &TensorData<'_>) -> Result<()> {
        let Some(entry) = self.merged.entry(name) else { return Ok(()) };
        let Some(dtype) = tensor_file::dtype(want.map_or(entry.encoding, Encoding::Float)) else { return Ok(()) };
        let (writer, start) = {
            let mut file = self.file();
            let Some(File { writer, tensors }) = &mut *file else { return Ok(()) };
            if tensors.contains_key(name) {
                return Ok(());
            }
            let start = writer.reserve(data.byte_len() as u64);
            let at = start as usize - self.head;
            let (name, shape, range) = (name.to_owned(), entry.shape.clone(), at..at + data.byte_len());
            tensors.insert(name.clone(), Placed { name, shape, dtype, range });
            (writer.clone(), start)
        };
        tensor_file::each_bytes(data, |bytes, at| writer.write_at(bytes, start + at as u64))
    }

    fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TensorSource for Writing {
    fn entries(&self) -> &[TensorEntry] {
        self.merged.entries()
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        let data = self.merged.read(name, want)?;
        if self.computed.contains(name) {
            self.keep(name, want, &data);
        }
        Ok(data)
    }

    fn read_into(&self, name: &str, want: Option<FloatType>, out: &mut [u8]) -> Result<()> {
        self.merged.read_into(name, want, out)?;
        if self.computed.contains(name) {
            self.keep(name, want, &TensorData::Borrowed(out));
        }
        Ok(())
    }

    /// The tensors stand in the file in that order, and the same merge is to have the same digest.
    fn depends_on_order(&self) -> bool {
        true
    }

    fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.merged.entry(name)
    }
}
