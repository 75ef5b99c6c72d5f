//! What a model is, from little of its files: before its weights are on this machine.

use std::{path::PathBuf, sync::Arc};

use llm_local_core::{ArtifactRef, Error, ModelFormat, ModelInfo, Result, TensorEntry};
use serde_json::Value;

use crate::{
    Head, MODEL_CONFIG, SafetensorsFiles, ShardIndex, checkpoint, head, json::parse, mlx, safetensors::Gathered,
};

/// A model whose files are elsewhere, on its way to the description that [`crate::Checkpoint::open`] would make of them.
/// Errors name file and ref.
#[derive(Debug, Clone)]
pub struct Outline {
    id: String,
    reference: ArtifactRef,
    names: Vec<String>,
}

/// Which files hold a model's weights.
#[derive(Debug, Clone)]
pub struct WeightFiles(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Safetensors(SafetensorsFiles),
    Gguf(String),
}

impl Outline {
    /// The model `id` at `reference`, whose manifest lists files called `names`.
    pub fn new(
        id: impl Into<String>,
        reference: &ArtifactRef,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        Self { id: id.into(), reference: reference.clone(), names }
    }

    /// The file to read first: that which says what the model is, unless its weights do.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] for safetensors without it.
    pub fn config_file(&self) -> Result<Option<&'static str>> {
        if !SafetensorsFiles::are_among(&self.names()) {
            return Ok(None);
        }
        if self.has(MODEL_CONFIG) { Ok(Some(MODEL_CONFIG)) } else { Err(checkpoint::without_config(&self.id)) }
    }

    /// What is known by the content of [`Outline::config_file`] alone: a description without tensors.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] if it is not JSON.
    pub fn by_config(&self, content: &[u8]) -> Result<ModelInfo> {
        let config = parse(&self.shown(MODEL_CONFIG), content)?;
        Ok(self.safetensors(Arc::new(config), Vec::new()))
    }

    /// The file to read next: that which lists the shards, if there is one.
    pub fn index_file(&self) -> Option<&'static str> {
        self.has(ShardIndex::FILE).then_some(ShardIndex::FILE)
    }

    /// Which files hold the weights, by the content of [`Outline::index_file`].
    ///
    /// # Errors
    /// As [`crate::Checkpoint::open`] for files that are missing, and several GGUF files.
    pub fn weights(&self, index: Option<&[u8]>) -> Result<WeightFiles> {
        let index = index.map(|content| ShardIndex::parse(content, &self.shown(ShardIndex::FILE))).transpose()?;
        let shown = |name: &str| self.shown(name).display().to_string();
        let Some(files) = SafetensorsFiles::among(&self.names(), index, shown)? else {
            return Ok(WeightFiles(Kind::Gguf(checkpoint::the_gguf(&self.id, self.names())?.to_owned())));
        };
        files.check_present(|name| self.has(name))?;
        Ok(WeightFiles(Kind::Safetensors(files)))
    }

    /// The description, by that of [`Outline::by_config`] and the whole heads of all `weights`, in their order.
    ///
    /// # Errors
    /// As [`crate::Checkpoint::open`]; [`Error::LoadFailed`] if the heads are not those of `weights`.
    pub fn describe(&self, by_config: Option<ModelInfo>, weights: &WeightFiles, heads: &[Head]) -> Result<ModelInfo> {
        if !weights.names().eq(heads.iter().map(Head::name)) {
            return Err(Error::load(&self.id, "the heads are not those of its weights; this is a bug in llm-local"));
        }
        match (&weights.0, by_config.map(|info| info.format), heads) {
            (Kind::Safetensors(files), Some(ModelFormat::Safetensors { config }), heads) => {
                let (mut gathered, mut entries) = (Gathered::default(), Vec::new());
                for head in heads {
                    let mut tensors = head.safetensors()?;
                    gathered.take(head.shown(), &mut tensors, files.listed(head.name()))?;
                    entries.extend(tensors.into_iter().map(|(entry, _)| entry));
                }
                mlx::unpack(&self.id, &config, &mut entries)?;
                Ok(self.safetensors(config, entries))
            }
            (Kind::Gguf(_), _, [head]) => {
                let (metadata, entries) = head.gguf_model()?;
                Ok(ModelInfo::new(&self.id, ModelFormat::Gguf { metadata: Arc::new(metadata) }, entries))
            }
            _ => Err(checkpoint::without_config(&self.id)),
        }
    }

    fn safetensors(&self, config: Arc<Value>, entries: Vec<TensorEntry>) -> ModelInfo {
        ModelInfo::new(&self.id, ModelFormat::Safetensors { config }, entries)
    }

    fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }

    fn shown(&self, name: &str) -> PathBuf {
        head::shown(name, &self.reference)
    }
}

impl WeightFiles {
    /// Their names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names = match &self.0 {
            Kind::Safetensors(files) => files.names(),
            Kind::Gguf(name) => std::slice::from_ref(name),
        };
        names.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests;
