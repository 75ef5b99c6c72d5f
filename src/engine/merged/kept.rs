//! A merge whose tensors are read from what was kept.

use llm_local_core::{Encoding, Error, FloatType, Result, TensorData, TensorEntry, TensorSource};
use llm_local_source_common::store::{Hold, MergeKey, Store};
use llm_local_weights::SafetensorsSource;

use super::computed;
use crate::{blocking::Wanted, content, lora::MergedSource};

/// Tensors that an earlier merge gave, and the merge for those that it did not.
pub(super) struct Kept {
    merged: MergedSource,
    kept: SafetensorsSource,
}

impl Kept {
    /// What is kept under `key` of `merged`, which comes back if there is nothing that can be used. Size and header are
    /// checked, which takes no reading of tensors; with `prove` its digest too, as long as that is wanted.
    pub(super) fn open(
        store: &Store,
        key: &MergeKey,
        merged: MergedSource,
        prove: Option<&Wanted>,
    ) -> std::result::Result<(Self, Hold), MergedSource> {
        let found = store.kept_merge(key).and_then(|found| {
            let Some(found) = found else { return Ok(None) };
            let kept = SafetensorsSource::open(&found.path)?;
            if let Some(wanted) = prove {
                let (_, digest) = content::hash(&found.path, wanted)?;
                if digest != found.digest {
                    let (what, expected) = (found.path.display().to_string(), found.digest.to_string());
                    return Err(Error::IntegrityFailed { what, expected, found: digest.to_string() });
                }
            }
            Ok(Some((kept, found.hold)))
        });
        let is_of_it = |kept: &SafetensorsSource| {
            let is_one = |entry: &TensorEntry| {
                let mut all = computed(&merged);
                matches!(entry.encoding, Encoding::Float(_))
                    && all.any(|(name, shape)| (name, shape) == (entry.name.as_str(), entry.shape.as_slice()))
            };
            kept.entries().iter().all(is_one)
        };
        match found {
            Ok(None) => Err(merged),
            Ok(Some((kept, hold))) if is_of_it(&kept) => {
                tracing::debug!(result = %key.reference(), "reads an earlier merge");
                Ok((Self { merged, kept }, hold))
            }
            Ok(Some(_)) => {
                tracing::warn!(result = %key.reference(), "it has tensors that this merge does not give; merges again");
                Err(merged)
            }
            Err(error) => {
                tracing::warn!(result = %key.reference(), %error, "cannot be read; merges again");
                Err(merged)
            }
        }
    }
}

impl TensorSource for Kept {
    fn entries(&self) -> &[TensorEntry] {
        self.merged.entries()
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        let wanted = want.map(Encoding::Float).or_else(|| self.merged.entry(name).map(|entry| entry.encoding));
        match self.kept.entry(name) {
            Some(kept) if Some(kept.encoding) == wanted => self.kept.read(name, None),
            _ => self.merged.read(name, want),
        }
    }

    fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.merged.entry(name)
    }
}
