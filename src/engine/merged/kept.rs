//! A merge whose tensors are read from what was kept.

use std::collections::HashMap;

use llm_local_core::{Encoding, Error, FloatType, Result, TensorData, TensorEntry, TensorSource};
use llm_local_source_common::store::{Hold, KeptMerge, MergeKey, Store};
use llm_local_weights::SafetensorsSource;

use super::computed;
use crate::{blocking::Wanted, content, lora::MergedSource};

/// Tensors that an earlier merge gave, and the merge for those that it did not.
pub(super) struct Kept {
    pub(super) merged: MergedSource,
    pub(super) kept: SafetensorsSource,
}

/// What is kept under `key` of `merged`, if it can be used. Size and header are checked, which takes no reading of tensors;
/// with `prove` its digest too, as long as that is wanted. It counts as used.
///
/// # Errors
/// [`Error::Cancelled`]. Whatever else is wrong with it is logged, and it is none.
pub(super) fn find(
    store: &Store,
    key: &MergeKey,
    merged: &MergedSource,
    prove: Option<&Wanted>,
) -> Result<Option<(SafetensorsSource, Hold)>> {
    let result = key.reference();
    let found = store.kept_merge(key).and_then(|found| found.map(|found| open(found, prove)).transpose());
    match found {
        Ok(None) => Ok(None),
        Ok(Some((kept, hold))) if is_of(&kept, merged) => {
            tracing::debug!(%result, "reads an earlier merge");
            // Not before: what cannot be read is not used.
            match store.use_merge(key) {
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(error) => tracing::warn!(%result, %error, "it is not noted that it is used"),
                Ok(()) => {}
            }
            Ok(Some((kept, hold)))
        }
        Ok(Some(_)) => {
            tracing::warn!(%result, "it has tensors that this merge does not give; merges again");
            Ok(None)
        }
        Err(Error::Cancelled) => Err(Error::Cancelled),
        Err(error) => {
            tracing::warn!(%result, %error, "cannot be read; merges again");
            Ok(None)
        }
    }
}

fn open(found: KeptMerge, prove: Option<&Wanted>) -> Result<(SafetensorsSource, Hold)> {
    let kept = SafetensorsSource::open(&found.path)?;
    if let Some(wanted) = prove {
        let (_, digest) = content::hash(&found.path, wanted)?;
        if digest != found.digest {
            let (what, expected) = (found.path.display().to_string(), found.digest.to_string());
            return Err(Error::IntegrityFailed { what, expected, found: digest.to_string() });
        }
    }
    Ok((kept, found.hold))
}

/// Whether all that `kept` has are floats that `merged` computes.
fn is_of(kept: &SafetensorsSource, merged: &MergedSource) -> bool {
    let shapes: HashMap<_, _> = computed(merged).collect();
    let is_one = |entry: &TensorEntry| {
        matches!(entry.encoding, Encoding::Float(_)) && shapes.get(entry.name.as_str()) == Some(&entry.shape.as_slice())
    };
    kept.entries().iter().all(is_one)
}

impl Kept {
    /// Whether the tensor `name` was kept as it is wanted.
    fn has(&self, name: &str, want: Option<FloatType>) -> bool {
        let wanted = want.map(Encoding::Float).or_else(|| self.merged.entry(name).map(|entry| entry.encoding));
        self.kept.entry(name).is_some_and(|kept| Some(kept.encoding) == wanted)
    }
}

impl TensorSource for Kept {
    fn entries(&self) -> &[TensorEntry] {
        self.merged.entries()
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        if self.has(name, want) { self.kept.read(name, None) } else { self.merged.read(name, want) }
    }

    fn read_into(&self, name: &str, want: Option<FloatType>, out: &mut [u8]) -> Result<()> {
        if self.has(name, want) { self.kept.read_into(name, None, out) } else { self.merged.read_into(name, want, out) }
    }

    fn depends_on_order(&self) -> bool {
        self.merged.depends_on_order()
    }

    fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.merged.entry(name)
    }
}
