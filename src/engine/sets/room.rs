//! Whether tensors that are read anew have room beside those that they replace.

use std::collections::{BTreeSet, HashSet};

use llm_local_core::{
    DeviceKind, Encoding, Error, FloatType, LoadedInfo, ModelFormat, ModelInfo, Result, TensorEntry,
    model::{Layout, ModuleRole as R},
};

/// Checks that the tensors `touched` of the model `loaded`, which `info` describes as they will be, can be read beside those
/// that are there, with `available` bytes of memory. Where nobody knows how much memory there is, it is tried, and where the
/// weights are in memory of a GPU's own.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] of the adapters `names` with both numbers.
pub(super) fn check(
    info: &ModelInfo,
    touched: &BTreeSet<String>,
    loaded: &LoadedInfo,
    available: impl FnOnce() -> Option<u64>,
    names: &str,
) -> Result<()> {
    if !matches!(loaded.device.kind, DeviceKind::Cpu | DeviceKind::Metal) {
        return Ok(());
    }
    let required = required(info, touched, loaded);
    match available() {
        Some(available) if available < required => {
            let reason = format!(
                "the tensors that change take up to {required} bytes a second time while they are read anew, of which \
                 {available} are available; free memory, or unload the model and load a spec with these adapters"
            );
            Err(Error::adapter(names, reason))
        }
        _ => Ok(()),
    }
}

/// The most bytes that reading `touched` anew takes: all that backends hold in one with these, as `loaded` holds them; and
/// while one of them is made, floats once more in f32, and blocks as read beside those that they are put together in.
fn required(info: &ModelInfo, touched: &BTreeSet<String>, loaded: &LoadedInfo) -> u64 {
    let read: Vec<_> = with_groups(info, touched).into_iter().filter_map(|name| info.tensor(name)).collect();
    let made = |entry: &&TensorEntry| match entry.encoding {
        Encoding::Float(_) => entry.elements().unwrap_or(0) * FloatType::F32.size(),
        _ => 2 * entry.stored_bytes().unwrap_or(0),
    };
    let largest = read.iter().map(made).max().unwrap_or(0);
    (read.iter().map(|entry| held(entry, loaded)).sum::<usize>() + largest) as u64
}

/// The most bytes that `loaded` holds for `entry`. Where its backend does not say, floats are in the type that it computes in
/// or as they are stored, whichever is more.
fn held(entry: &TensorEntry, loaded: &LoadedInfo) -> usize {
    let stored = entry.stored_bytes().unwrap_or(0);
    let Encoding::Float(of) = entry.encoding else { return stored };
    let in_type = |float: FloatType| entry.elements().unwrap_or(0) * float.size();
    match loaded.held_in.iter().find(|(stored, _)| *stored == of) {
        Some((_, held)) => in_type(*held),
        None => stored.max(in_type(loaded.dtype)),
    }
}

/// `touched`, and what backends hold in one with them: queries, keys and values; gate and up.
fn with_groups<'a>(info: &'a ModelInfo, touched: &'a BTreeSet<String>) -> HashSet<&'a str> {
    let mut names: HashSet<&str> = touched.iter().map(String::as_str).collect();
    let layout = if matches!(info.format, ModelFormat::Gguf { .. }) { Layout::Gguf } else { Layout::HuggingFace };
    let Ok(decoder) = &info.decoder else { return names };
    let base = decoder.base_tensors(layout);
    let group = |role| match role {
        R::Query | R::Key | R::Value => Some(R::Query),
        R::Gate | R::Up => Some(R::Gate),
        _ => None,
    };
    let in_groups = || base.iter().filter_map(|tensor| Some(((group(tensor.role)?, tensor.layer), &*tensor.name)));
    let groups: HashSet<_> = in_groups().filter(|(_, name)| names.contains(name)).map(|(group, _)| group).collect();
    // As the description has them, whose names are its own and not those of `base`.
    let all: HashSet<_> = in_groups().filter(|(of, _)| groups.contains(of)).map(|(_, name)| name).collect();
    names.extend(info.tensors.iter().map(|entry| &*entry.name).filter(|name| all.contains(name)));
    names
}

#[cfg(all(test, feature = "local"))]
mod tests {
    use std::{
        collections::BTreeMap,
        path::{Path, PathBuf},
        sync::Arc,
    };

    use llm_local_core::{ArtifactRef, DeviceInfo};
    use llm_local_weights::Checkpoint;

    use super::*;
    use crate::lora;

    fn fixture(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
    }

    /// What lies at `path`, or in the folder there, by name.
    fn files(path: PathBuf) -> BTreeMap<String, PathBuf> {
        let all = match path.is_dir() {
            true => fs_err::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect(),
            false => vec![path],
        };
        all.into_iter().map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path)).collect()
    }

    fn info(path: &str) -> ModelInfo {
        (*Checkpoint::open("m", &files(fixture(path))).unwrap().info).clone()
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// A model that is computed in `dtype`.
    fn loaded(dtype: FloatType) -> LoadedInfo {
        LoadedInfo::new("m", "candle", DeviceInfo::new("d", DeviceKind::Cpu, "a device"), dtype, 64, 1)
    }

    #[test]
    fn whole_groups_count_in_the_type_that_is_computed_in() {
        // 128 wide, 4 heads of 32 with 2 for keys and values, 384 in the middle.
        let (q, kv, middle) = (128 * 128, 64 * 128, 384 * 128);
        let info = info("models/tiny-llama");
        let q_proj = "model.layers.1.self_attn.q_proj.weight";
        let required = |touched: &[&str], dtype| required(&info, &names(touched), &loaded(dtype));
        let stored = info.tensor(q_proj).unwrap().stored_bytes().unwrap() / q;
        for dtype in [FloatType::F32, FloatType::F16] {
            let size = dtype.size().max(stored);
            assert_eq!(required(&[q_proj], dtype), (size * (q + 2 * kv) + 4 * q) as u64);
            let both = [q_proj, "model.layers.2.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"];
            assert_eq!(required(&both, dtype), (size * (q + 2 * kv + 3 * middle) + 4 * middle) as u64);
        }
        assert_eq!(required(&[], FloatType::F32), 0);
    }

    #[test]
    fn floats_count_in_the_type_that_the_backend_says_that_it_holds_them_in() {
        let mut info = info("models/tiny-llama");
        let (o_proj, elements) = ("model.layers.0.self_attn.o_proj.weight", 128 * 128);
        for (stored, held, size) in [
            (FloatType::F16, None, 4),
            (FloatType::F16, Some(FloatType::F16), 2),
            (FloatType::F16, Some(FloatType::F32), 4),
            (FloatType::F32, Some(FloatType::F16), 2),
        ] {
            let mut entries = info.tensors.to_vec();
            entries.iter_mut().for_each(|entry| entry.encoding = Encoding::Float(stored));
            info.tensors = entries.into();
            let held_in = held.map(|held| (stored, held)).into_iter().collect();
            let loaded = loaded(FloatType::F32).with_held_in(held_in);
            let required = required(&info, &names(&[o_proj]), &loaded);
            assert_eq!(required, (size + 4) * elements, "{stored} in {held:?}");
        }
    }

    #[test]
    fn a_merge_into_blocks_counts_as_it_is_given_and_blocks_that_come_back_take_no_floats() {
        let (base, adapter) = (fixture("gguf/tiny-llama-q8_0.gguf"), fixture("adapters/tiny-llama-lora-qv-last2"));
        let adapter_files = ["adapter_config.json", "adapter_model.safetensors"];
        let adapter_files = adapter_files.map(|name| (name.to_owned(), adapter.join(name))).into();
        let adapter = lora::read(&ArtifactRef::file(&adapter).unwrap(), &adapter_files).unwrap();
        let Checkpoint { tensors, info: base, .. } = Checkpoint::open("m", &files(base)).unwrap();
        let merged = lora::MergedSource::new(tensors, vec![(Arc::new(adapter), 1.0)], &base).unwrap();
        let touched: BTreeSet<_> = merged.report().touched.iter().map(|touched| touched.name.clone()).collect();
        assert_eq!(touched.len(), 4);
        let held_in = [FloatType::F32, FloatType::F16].map(|float| (float, float)).into();
        let loaded = loaded(FloatType::F32).with_held_in(held_in);
        // Queries and values of two layers, with the keys that are held in one with them and stay blocks.
        let (q, kv) = (128 * 128, 64 * 128);
        let of_blocks = |elements: u64| elements / 32 * 34;
        let as_merged = 2 * (2 * (q + kv) + of_blocks(kv)) + 4 * q;
        assert_eq!(required(merged.info(), &touched, &loaded), as_merged);
        // No adapters: what was touched comes back.
        assert_eq!(required(&base, &touched, &loaded), 2 * of_blocks(q + 2 * kv) + 2 * of_blocks(q));
    }

    #[test]
    fn blocks_count_as_they_are_stored() {
        let info = info("gguf/tiny-llama-q8_0.gguf");
        let (q, kv) = (128 * 128, 64 * 128);
        // 34 bytes for 32 weights.
        let blocks = |elements: u64| elements / 32 * 34;
        let required = required(&info, &names(&["blk.0.attn_k.weight"]), &loaded(FloatType::F32));
        assert_eq!(required, blocks(q + 2 * kv) + 2 * blocks(q));
    }

    #[test]
    fn too_little_memory_is_refused_with_both_numbers_and_just_enough_is_not() {
        let info = info("models/tiny-llama");
        let touched = names(&["model.layers.0.self_attn.o_proj.weight"]);
        let required = required(&info, &touched, &loaded(FloatType::F32));
        let loaded = |kind| {
            let mut loaded = loaded(FloatType::F32);
            loaded.device.kind = kind;
            loaded
        };
        let checked = |kind, available| check(&info, &touched, &loaded(kind), || available, "file:/a");
        checked(DeviceKind::Cpu, Some(required)).unwrap();
        checked(DeviceKind::Cpu, None).unwrap();
        checked(DeviceKind::Cuda, Some(0)).unwrap();
        let error = checked(DeviceKind::Cpu, Some(required - 1)).unwrap_err();
        assert!(matches!(error, Error::AdapterMergeFailed { .. }), "{error}");
        let text = error.to_string();
        let parts = ["file:/a", &*format!("up to {required} bytes"), &*format!("{} are available", required - 1)];
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
}
