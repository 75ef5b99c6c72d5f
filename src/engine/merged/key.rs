//! What the result of a merge depends on.

use std::sync::Arc;

use llm_local_core::{AdapterSpec, ArtifactRef, LoadOptions, LoraAdapter, ModelSpec, Result};
use llm_local_source_common::store::MergeKey;

use crate::engine::{Identity, Inner};

/// The version of what is kept, and of the arithmetic of the merge: to be raised whenever other bits come out of it.
const VERSION: &str = "1";

/// What the result of a merge is known by.
pub(in crate::engine) struct KeyOfMerge {
    pub(super) key: MergeKey,
    /// What it says of the base, as [`Identity::known`].
    pub(super) base: Vec<String>,
    /// Whether all that is used is held to its digest, as the files of a spec that has a lock are.
    pub(super) is_locked: bool,
}

impl Inner {
    /// The key of what merging `adapters`, which those of `spec` are or are combined into, into `base` gives to `backend`, loaded so; `None` where results
    /// are not kept, or the base cannot be told from others without reading it.
    ///
    /// The base counts by the digests that its source promised, which were compared when its files came; a file without
    /// such counts by its path, size and time of writing, since to read gigabytes at each load would cost what is to be saved. The
    /// types in which tensors are asked for follow from the backend, its device, and the type to compute in.
    ///
    /// # Errors
    /// [`llm_local_core::Error::Io`].
    pub(in crate::engine) fn merge_key(
        &self,
        spec: &ModelSpec,
        base: &Identity,
        adapters: &[(Arc<LoraAdapter>, f32)],
        (backend, options): (&str, &LoadOptions),
    ) -> Result<Option<KeyOfMerge>> {
        if !self.keep_merged {
            return Ok(None);
        }
        let Some(known) = base.known()? else { return Ok(None) };
        let mut parts = vec![VERSION.to_owned(), std::env::consts::ARCH.to_owned()];
        parts.extend(known.iter().cloned());
        // What they are combined into has a digest of all that goes into it.
        parts.extend(adapters.iter().map(|(adapter, weight)| format!("{} {}", adapter.digest, weight.to_bits())));
        let asked = |asked: &AdapterSpec| {
            format!("{} {:?} {:?} {:?}", asked.weight.to_bits(), asked.scale, asked.format, asked.allow)
        };
        parts.extend(spec.adapters.iter().map(asked));
        parts.push(format!("{:?} {:?}", spec.combination, spec.adapter_policy));
        parts.push(format!("{backend} {:?} {:?}", options.device, options.dtype));
        let refs = std::iter::once(&spec.base).chain(spec.adapters.iter().map(|adapter| &adapter.reference));
        let name = refs.map(short).collect::<Vec<_>>().join("+");
        let key = MergeKey::new(&name, parts.iter().map(String::as_str))?;
        Ok(Some(KeyOfMerge { key, base: known, is_locked: spec.lock.is_some() }))
    }
}

/// The last part of where `reference` leads, without the ending of a file.
fn short(reference: &ArtifactRef) -> &str {
    let part = reference.fragment().unwrap_or(reference.locator()).trim_end_matches(['/', '\\']);
    let last = part.rsplit(['/', '\\']).next().unwrap_or(part);
    last.strip_suffix(".gguf").unwrap_or(last)
}
