mod folder;
mod gguf;
mod mlx;
mod peft;
mod random;
mod refused;

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use llm_local_core::{ArtifactRef, LoraAdapter, LoraModule, ModelFormat, ModelInfo, Result};
use tempfile::TempDir;

use super::{WriteFormat, WrittenAdapter, order, write};
use crate::lora::{
    floats::widened,
    read,
    testing::{fixture, read_folder},
};

/// The adapter of the fixtures that is called so.
fn adapter(name: &str) -> LoraAdapter {
    read_folder(&fixture("adapters").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The model of the fixtures that is called so, without its tensors.
fn base(name: &str) -> ModelInfo {
    let config = fs::read(fixture("models").join(name).join("config.json")).unwrap();
    let config = Arc::new(serde_json::from_slice(&config).unwrap());
    ModelInfo::new(name, ModelFormat::Safetensors { config }, Vec::new())
}

/// Reads what was written.
fn read_files(files: &[PathBuf]) -> Result<LoraAdapter> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let files: BTreeMap<_, _> = files.iter().map(|path| (name(path), path.clone())).collect();
    read(&ArtifactRef::file(files.values().next().unwrap()).unwrap(), &files)
}

/// Writes `adapter` and reads it back, with its rows in the order of the Hugging Face layout.
fn there_and_back(
    adapter: &LoraAdapter,
    format: WriteFormat,
    base: Option<&ModelInfo>,
) -> Result<(LoraAdapter, Vec<String>)> {
    let folder = TempDir::new().unwrap();
    let WrittenAdapter { files, notes } = write(adapter, format, base, &folder.path().join("into"))?;
    let read = read_files(&files)?;
    assert_eq!(read.format, format.as_str());
    let ordered = order::as_hugging_face(&read, &base.map(order::Described::of)).unwrap();
    Ok((ordered.into_owned(), notes))
}

/// Holds that both adapters are the same but for digest, format and what only some formats say, as GGUF the base's
/// architecture.
fn assert_same_values(found: &LoraAdapter, expected: &LoraAdapter, of: &str) {
    assert_eq!(found.row_order, expected.row_order, "{of}");
    assert_eq!(found.modules.len(), expected.modules.len(), "{of}");
    for (found, expected) in found.modules.iter().zip(&expected.modules) {
        assert!(found == expected, "{of}: {} is another", expected.name);
    }
    assert!(found.replacements == expected.replacements, "{of}");
    assert!(found.rows == expected.rows, "{of}");
    let hint = |adapter: &LoraAdapter| (adapter.base.name.clone(), adapter.base.revision.clone());
    assert_eq!(hint(found), hint(expected), "{of}");
}

/// `scale * (B @ A)` in f64, expert by expert; each element with the sum of its terms' sizes.
fn delta(module: &LoraModule) -> Vec<(f64, f64)> {
    let (a, b) = (widened(&module.a), widened(&module.b));
    let LoraModule { rank, in_features, out_features, .. } = *module;
    let experts = module.experts.unwrap_or(1);
    let mut delta = Vec::with_capacity(experts * out_features * in_features);
    for row in 0..experts * out_features {
        for column in 0..in_features {
            let first = row / out_features * rank;
            let factors = |k: usize| (b[row * rank + k], a[(first + k) * in_features + column]);
            let terms = (0..rank).map(factors).map(|(b, a)| module.scale * f64::from(b) * f64::from(a));
            delta.push(terms.fold((0.0, 0.0), |(sum, size), term: f64| (sum + term, size + term.abs())));
        }
    }
    delta
}

/// Holds that the deltas are the same to the rounding of f32, where scales were folded into B: each term has been rounded
/// once or twice, by at most 2^-24 of it.
fn assert_same_deltas(found: &LoraAdapter, expected: &LoraAdapter, of: &str) {
    assert_eq!(found.modules.len(), expected.modules.len(), "{of}");
    for (found, expected) in found.modules.iter().zip(&expected.modules) {
        assert_eq!((&found.name, &found.magnitude), (&expected.name, &expected.magnitude), "{of}");
        let (found, expected, name) = (delta(found), delta(expected), &found.name);
        assert_eq!(found.len(), expected.len(), "{of} {name}");
        for ((found, _), (expected, size)) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 2.5 / f64::from(1 << 24) * size, "{of} {name}: {found} and {expected}");
        }
    }
}
