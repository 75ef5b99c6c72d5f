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
    let required = required(info, touched, loaded.dtype);
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

/// The most bytes that reading `touched` anew takes: all that backends hold in one with these, in the type that they compute
/// in or as it is stored, whichever is more; and while it is made, one of them once more in f32.
fn required(info: &ModelInfo, touched: &BTreeSet<String>, dtype: FloatType) -> u64 {
    let read: Vec<_> = with_groups(info, touched).into_iter().filter_map(|name| info.tensor(name)).collect();
    let elements = |entry: &TensorEntry| entry.elements().unwrap_or(0);
    let held = |entry: &&TensorEntry| {
        let stored = entry.stored_bytes().unwrap_or(0);
        let computed = match entry.encoding {
            Encoding::Float(_) => elements(entry) * dtype.size(),
            _ => 0,
        };
        stored.max(computed) as u64
    };
    let largest = read.iter().map(|entry| elements(entry)).max().unwrap_or(0);
    read.iter().map(held).sum::<u64>() + (largest * FloatType::F32.size()) as u64
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
    use llm_local_core::DeviceInfo;
    use llm_local_weights::Checkpoint;

    use super::*;

    fn info(path: &str) -> ModelInfo {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path);
        let all = if path.is_dir() {
            fs_err::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect()
        } else {
            vec![path]
        };
        let named = |path: std::path::PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), path);
        (*Checkpoint::open("m", &all.into_iter().map(named).collect()).unwrap().info).clone()
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn whole_groups_count_in_the_type_that_is_computed_in() {
        // 128 wide, 4 heads of 32 with 2 for keys and values, 384 in the middle.
        let (q, kv, middle) = (128 * 128, 64 * 128, 384 * 128);
        let info = info("models/tiny-llama");
        let q_proj = "model.layers.1.self_attn.q_proj.weight";
        let required = |touched: &[&str], dtype| required(&info, &names(touched), dtype);
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
    fn blocks_count_as_they_are_stored() {
        let info = info("gguf/tiny-llama-q8_0.gguf");
        let (q, kv) = (128 * 128, 64 * 128);
        // 34 bytes for 32 weights.
        let blocks = (q + 2 * kv) / 32 * 34;
        assert_eq!(required(&info, &names(&["blk.0.attn_k.weight"]), FloatType::F32), (blocks + 4 * q) as u64);
    }

    #[test]
    fn too_little_memory_is_refused_with_both_numbers_and_just_enough_is_not() {
        let info = info("models/tiny-llama");
        let touched = names(&["model.layers.0.self_attn.o_proj.weight"]);
        let required = required(&info, &touched, FloatType::F32);
        let loaded = |kind| {
            LoadedInfo::new(
                "m",
                "candle",
                DeviceInfo::new("d", kind, "a device"),
                FloatType::F32,
                64,
                info.tensors.len(),
            )
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
