//! Whether tensors that are read anew have room beside those that they replace.

use std::collections::{BTreeSet, HashMap};

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
/// what is there beside that while as many of the groups are made as it reads at a time.
fn required(info: &ModelInfo, touched: &BTreeSet<String>, loaded: &LoadedInfo) -> u64 {
    let groups = groups(info, touched);
    let mut making: Vec<_> = groups.iter().map(|group| making(group, loaded)).collect();
    making.sort_unstable_by(|a, b| b.cmp(a));
    let beside: usize = making.iter().take(loaded.reads_at_once).sum();
    (groups.iter().flatten().map(|entry| held(entry, loaded)).sum::<usize>() + beside) as u64
}

/// The most bytes beside those that `loaded` holds of `group` while that is made: its blocks, which are put together before the
/// backend copies them; or floats once more in f32, one tensor at a time, and where they go to a device that is not the CPU,
/// all of them as they are put together.
fn making(group: &[&TensorEntry], loaded: &LoadedInfo) -> usize {
    let (floats, blocks): (Vec<&TensorEntry>, Vec<_>) =
        group.iter().partition(|entry| matches!(entry.encoding, Encoding::Float(_)));
    let in_f32 = floats.iter().map(|entry| entry.elements().unwrap_or(0) * FloatType::F32.size()).max().unwrap_or(0);
    let is_copied = loaded.device.kind != DeviceKind::Cpu;
    let copied: usize = floats.iter().filter(|_| is_copied).map(|entry| held(entry, loaded)).sum();
    let stacked: usize = blocks.iter().map(|entry| entry.stored_bytes().unwrap_or(0)).sum();
    stacked.max(in_f32 + copied)
}

/// The most bytes that `loaded` holds for `entry` once it is read. Where its backend does not say, floats are in the type that
/// it computes in or as they are stored, whichever is more. What a backend makes of blocks when it first computes with them,
/// such as a copy in another order, is not counted.
fn held(entry: &TensorEntry, loaded: &LoadedInfo) -> usize {
    let stored = entry.stored_bytes().unwrap_or(0);
    let Encoding::Float(of) = entry.encoding else { return stored };
    let in_type = |float: FloatType| entry.elements().unwrap_or(0) * float.size();
    match loaded.held_in.iter().find(|(stored, _)| *stored == of) {
        Some((_, held)) => in_type(*held),
        None => stored.max(in_type(loaded.dtype)),
    }
}

/// The tensors `touched`, each with what backends hold in one with it: queries, keys and values; gate and up.
fn groups<'a>(info: &'a ModelInfo, touched: &BTreeSet<String>) -> Vec<Vec<&'a TensorEntry>> {
    let layout = if matches!(info.format, ModelFormat::Gguf { .. }) { Layout::Gguf } else { Layout::HuggingFace };
    let base = info.decoder.as_ref().map(|decoder| decoder.base_tensors(layout)).unwrap_or_default();
    let group = |role| match role {
        R::Query | R::Key | R::Value => Some(R::Query),
        R::Gate | R::Up => Some(R::Gate),
        _ => None,
    };
    let in_groups = base.iter().filter_map(|tensor| Some((&*tensor.name, (group(tensor.role)?, tensor.layer))));
    let in_groups: HashMap<_, _> = in_groups.collect();
    let mut groups: HashMap<_, Vec<_>> = HashMap::new();
    for entry in info.tensors.iter() {
        // Any other tensor is a group by itself.
        groups.entry(in_groups.get(&*entry.name).ok_or(&*entry.name)).or_default().push(entry);
    }
    let is_touched = |group: &Vec<&TensorEntry>| group.iter().any(|entry| touched.contains(&entry.name));
    groups.into_values().filter(is_touched).collect()
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

    /// A model that is computed in f32 on a device of this kind.
    fn loaded_on(kind: DeviceKind) -> LoadedInfo {
        let mut loaded = loaded(FloatType::F32);
        loaded.device.kind = kind;
        loaded
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
    fn as_many_groups_are_in_the_making_as_are_read_at_once() {
        let (q, middle) = (128 * 128, 384 * 128);
        let info = info("models/tiny-llama");
        let touched = ["model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.o_proj.weight"];
        for (reads_at_once, making) in [(1, middle), (2, middle + q), (8, middle + q)] {
            let loaded = loaded(FloatType::F32).with_reads_at_once(reads_at_once);
            let held = required(&info, &names(&touched), &loaded) - 4 * making;
            assert_eq!(held, 4 * (middle + q), "{reads_at_once} at once");
        }
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
    fn the_blocks_of_a_whole_group_are_put_together_beside_the_copy_of_them() {
        let mut info = info("gguf/tiny-llama-q8_0.gguf");
        let q = 128 * 128;
        // As many key heads as heads, as Llama 2 has.
        let mut entries = info.tensors.to_vec();
        let of_keys = |entry: &&mut TensorEntry| ["attn_k", "attn_v"].iter().any(|name| entry.name.contains(name));
        entries.iter_mut().filter(of_keys).for_each(|entry| entry.shape = vec![128, 128]);
        info.tensors = entries.into();
        for kind in [DeviceKind::Cpu, DeviceKind::Metal] {
            let required = required(&info, &names(&["blk.0.attn_q.weight"]), &loaded_on(kind));
            assert_eq!(required, 2 * 3 * q / 32 * 34, "{kind:?}");
        }
    }

    #[test]
    fn floats_that_go_to_a_device_are_there_twice_while_they_do() {
        let (q, kv) = (128 * 128, 64 * 128);
        let required = |kind| {
            let info = info("models/tiny-llama");
            required(&info, &names(&["model.layers.0.self_attn.v_proj.weight"]), &loaded_on(kind))
        };
        assert_eq!(required(DeviceKind::Cpu), 4 * (q + 2 * kv) + 4 * q);
        assert_eq!(required(DeviceKind::Metal), 2 * 4 * (q + 2 * kv) + 4 * q);
    }

    #[test]
    fn too_little_memory_is_refused_with_both_numbers_and_just_enough_is_not() {
        let info = info("models/tiny-llama");
        let touched = names(&["model.layers.0.self_attn.o_proj.weight"]);
        let required = required(&info, &touched, &loaded(FloatType::F32));
        let checked = |kind, available| check(&info, &touched, &loaded_on(kind), || available, "file:/a");
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
