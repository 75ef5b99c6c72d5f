//! What the result of a merge depends on.

use std::sync::Arc;

use llm_local_core::{AdapterSpec, ArtifactRef, FloatType, LoadOptions, LoraAdapter, ModelSpec, Result};
use llm_local_source_common::store::MergeKey;

use crate::{
    engine::{Identity, Inner},
    tensor_file,
};

/// The version of what is kept: to be raised whenever other bits come out of the same files, by a change of how adapters are
/// read, fitted to the base, combined or merged. A release never uses what another one kept, whatever this says.
const VERSION: &str = "3";

/// What the result of a merge is known by.
pub(in crate::engine) struct KeyOfMerge {
    pub(super) key: MergeKey,
    /// What it says of the base, as [`Identity::known`].
    pub(super) base: Vec<String>,
    /// Whether all that is used is held to its digest, as the files of a spec that has a lock are.
    pub(super) is_locked: bool,
    /// The type in which tensors are asked for, where that is known before they are.
    pub(super) float: Option<FloatType>,
}

impl Inner {
    /// The key of what merging `adapters`, which those of `spec` are or are combined into, into `base` gives to `backend`,
    /// loaded so; `None` where results are not kept, or the base cannot be told from others without reading it.
    ///
    /// The base counts by the digests that its source promised, which were compared when its files came, or by their paths,
    /// and by when they were written and changed, since to read gigabytes at each load would cost what is to be saved. A
    /// spec that has a lock uses only what was made of files that were held to it. The types in which tensors are asked for
    /// follow from the backend, its device, and the type to compute in.
    ///
    /// # Errors
    /// [`llm_local_core::Error::InvalidSpec`] for refs that make no name.
    pub(in crate::engine) fn merge_key(
        &self,
        spec: &ModelSpec,
        base: &Identity,
        adapters: &[(Arc<LoraAdapter>, f32)],
        to: (&str, &LoadOptions),
    ) -> Result<Option<KeyOfMerge>> {
        let known = if self.keep_merged { base.known() } else { None };
        known.map(|known| KeyOfMerge::new(spec, known, adapters, to)).transpose()
    }
}

impl KeyOfMerge {
    fn new(
        spec: &ModelSpec,
        base: Vec<String>,
        adapters: &[(Arc<LoraAdapter>, f32)],
        (backend, options): (&str, &LoadOptions),
    ) -> Result<Self> {
        let is_locked = spec.lock.is_some();
        let mut parts = [VERSION, env!("CARGO_PKG_VERSION"), std::env::consts::ARCH].map(str::to_owned).to_vec();
        parts.push(if is_locked { "proven" } else { "as found" }.to_owned());
        parts.extend(base.iter().cloned());
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
        Ok(Self { key, base, is_locked, float: tensor_file::float(options.dtype) })
    }
}

/// The last part of where `reference` leads, without the ending of a file.
fn short(reference: &ArtifactRef) -> &str {
    let part = reference.fragment().unwrap_or(reference.locator()).trim_end_matches(['/', '\\']);
    let last = part.rsplit(['/', '\\']).next().unwrap_or(part);
    last.strip_suffix(".gguf").unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use llm_local_core::{
        AdapterPolicy, Allowance, ComputeDtype, SpecLock,
        lora::{BareFormat, Combination},
    };

    use super::*;

    fn adapter(digest: &str) -> Arc<LoraAdapter> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/adapters/tiny-llama-lora-peft");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path)).collect();
        let mut adapter = crate::lora::read(&ArtifactRef::file(folder).unwrap(), &files).unwrap();
        adapter.digest = digest.into();
        Arc::new(adapter)
    }

    #[test]
    fn everything_that_a_result_depends_on_makes_another_key() {
        let asked = || AdapterSpec::new("./adapter".parse().unwrap());
        let spec = |adapter: AdapterSpec| ModelSpec::new("./base".parse().unwrap()).with_adapter_spec(adapter);
        let (one, other) = (adapter("one"), adapter("other"));
        let options = || LoadOptions::new(64);
        let key = |spec: &ModelSpec, base: &str, adapters: &[(&Arc<LoraAdapter>, f32)], backend, options| {
            let adapters: Vec<_> = adapters.iter().map(|(adapter, weight)| ((*adapter).clone(), *weight)).collect();
            let key = KeyOfMerge::new(spec, vec![base.into()], &adapters, (backend, &options)).unwrap();
            assert_eq!((key.base, key.is_locked), (vec![base.to_owned()], spec.lock.is_some()));
            assert_eq!(key.key.reference().to_string(), "merged:base+adapter");
            key.key.revision().to_owned()
        };
        let of = |spec: &ModelSpec| key(spec, "base", &[(&one, 1.0)], "candle", options());
        let plain = spec(asked());
        let first = of(&plain);
        assert_eq!(of(&plain), first);
        // What is no part of a result.
        assert_eq!(key(&plain, "base", &[(&one, 1.0)], "candle", LoadOptions::new(65)), first);
        let all = [
            of(&spec(asked().with_weight(0.5))),
            of(&spec(asked().with_scale(0.5))),
            of(&spec(asked().with_scale(0.25))),
            of(&spec(asked().with_format(BareFormat::Peft))),
            of(&spec(asked().with_format(BareFormat::MlxLm))),
            of(&spec(asked().allowing(Allowance::UnknownFields))),
            of(&spec(asked().allowing(Allowance::MissingTensors))),
            of(&plain.clone().with_combination(Combination::Cat)),
            of(&plain.clone().with_combination(Combination::Svd { rank: Some(4), clamp: None })),
            of(&plain.clone().with_adapter_policy(AdapterPolicy::MergeDequantized)),
            of(&plain.clone().with_lock(SpecLock::new(Vec::new()))),
            key(&plain, "another", &[(&one, 1.0)], "candle", options()),
            key(&plain, "base", &[(&other, 1.0)], "candle", options()),
            key(&plain, "base", &[(&one, 0.5)], "candle", options()),
            key(&plain, "base", &[(&one, 1.0), (&other, 1.0)], "candle", options()),
            key(&plain, "base", &[(&other, 1.0), (&one, 1.0)], "candle", options()),
            key(&plain, "base", &[(&one, 1.0)], "another", options()),
            key(&plain, "base", &[(&one, 1.0)], "candle", options().with_device("cuda:0")),
            key(&plain, "base", &[(&one, 1.0)], "candle", options().with_device("cuda:1")),
            key(&plain, "base", &[(&one, 1.0)], "candle", options().with_dtype(ComputeDtype::F16)),
            first,
        ];
        let different: BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{all:?}");
    }
}
