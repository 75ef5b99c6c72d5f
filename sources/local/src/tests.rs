use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use llm_local_core::{
    ArtifactRef, ArtifactSource, CancellationToken, Error, FetchContext, Manifest, Opened, Registry, Want,
};
use llm_local_testkit::conformance;
use pollster::block_on;

use super::*;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(path)
}

fn resolve(path: impl AsRef<Path>, want: Want) -> Result<Manifest> {
    block_on(LocalSource::new().resolve(&ArtifactRef::file(path)?, want, &FetchContext::new()))
}

fn paths(manifest: &Manifest) -> Vec<&str> {
    manifest.files.iter().map(|f| f.path.as_str()).collect()
}

/// A folder with copies of fixtures (name, fixture).
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, from) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, fs::read(fixture(from)).unwrap()).unwrap();
    }
    folder
}

/// The error for `path`, which must name it, be of the kind `code`, and have all `words` in it.
fn refused(path: impl AsRef<Path>, want: Want, code: &str, words: &[&str]) {
    let path = path.as_ref();
    let error = resolve(path, want).expect_err(&path.display().to_string());
    let text = error.to_string();
    assert_eq!(error.code(), code, "{text}");
    assert!(text.contains(path.file_name().unwrap().to_str().unwrap()), "{text}");
    assert!(words.iter().all(|w| text.contains(w)), "{words:?}: {text}");
}

const WEIGHTS: (&str, &str) = ("model.safetensors", "models/tiny-llama/model.safetensors");
const TWO_GGUF: [(&str, &str); 2] = [("a.gguf", "gguf/tiny-llama-q8_0.gguf"), ("b.gguf", "gguf/tiny-llama-q4_0.gguf")];
const CONFIG: (&str, &str) = ("config.json", "models/tiny-llama/config.json");
const ADAPTER: (&str, &str) = ("adapter_model.safetensors", "bad-adapters/_control-good/adapter_model.safetensors");
const ADAPTER_CONFIG: (&str, &str) = ("adapter_config.json", "bad-adapters/_control-good/adapter_config.json");
const GGUF: &str = "gguf/tiny-llama-q4_0.gguf";

#[test]
fn the_source_passes_the_suite_with_folders_and_files() {
    let source = LocalSource::new();
    for path in ["models/tiny-llama", GGUF] {
        block_on(conformance::model_source(&source, &ArtifactRef::file(fixture(path)).unwrap()));
    }
    for path in [
        "adapters/tiny-llama-lora-peft",
        "adapters/tiny-llama-lora-mlx",
        "bad-adapters/_control-good/adapter_model.safetensors",
    ] {
        block_on(conformance::adapter_source(&source, &ArtifactRef::file(fixture(path)).unwrap()));
    }
}

#[test]
fn the_plugin_is_found_and_makes_both_sources() {
    let found = llm_local_core::plugin::discovered();
    assert_eq!(found.iter().filter(|p| p.name == PLUGIN.name && p.crate_name == "llm-local-source-local").count(), 1);
    let registry = Registry::discover(&[PLUGIN]).unwrap();
    let reference = ArtifactRef::file("/m").unwrap();
    assert_eq!(registry.model_source(&reference).unwrap().scheme(), "file");
    assert_eq!(registry.adapter_source(&reference).unwrap().scheme(), "file");
}

#[test]
fn a_model_lists_weights_config_and_text_files_and_nothing_else() {
    let folder = folder(&[
        WEIGHTS,
        CONFIG,
        ("tokenizer.json", "models/tiny-llama/tokenizer.json"),
        ("chat_template.jinja", CONFIG.1),
        ("training_args.bin", CONFIG.1),
        ("README.md", CONFIG.1),
        ("consolidated.safetensors", WEIGHTS.1),
        ("x.gguf", GGUF),
    ]);
    let manifest = resolve(folder.path(), Want::Model).unwrap();
    assert_eq!(paths(&manifest), ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]);
    assert!(manifest.revision.starts_with("stat-"));
    assert_eq!(manifest.file("model.safetensors").unwrap().size, 1_808_592);
}

#[test]
fn a_gguf_file_is_a_model_by_its_path_and_as_the_only_one_of_a_folder() {
    assert_eq!(paths(&resolve(fixture(GGUF), Want::Model).unwrap()), ["tiny-llama-q4_0.gguf"]);
    let one = folder(&[("tiny.gguf", GGUF), ("README.md", CONFIG.1)]);
    let manifest = resolve(one.path(), Want::Model).unwrap();
    assert_eq!(paths(&manifest), ["tiny.gguf"]);
    let opened = block_on(LocalSource::new().open(&manifest, &manifest.files[0], 0..1, &FetchContext::new())).unwrap();
    assert!(matches!(opened, Opened::Local(path) if path == one.path().join("tiny.gguf")));
    let whole = folder(&[
        ("tiny.gguf", GGUF),
        CONFIG,
        ("tokenizer.json", "models/tiny-llama/tokenizer.json"),
        ("generation_config.json", "models/tiny-llama/generation_config.json"),
    ]);
    let manifest = resolve(whole.path(), Want::Model).unwrap();
    assert_eq!(paths(&manifest), ["tiny.gguf", "generation_config.json", "tokenizer.json"]);
    let bare = resolve(whole.path().join("tiny.gguf"), Want::Model).unwrap();
    assert_eq!(paths(&bare), ["tiny.gguf"], "files beside a bare file may be another model's");
    refused(folder(&TWO_GGUF).path(), Want::Model, "load_failed", &["2 GGUF files", "b.gguf", "one of them"]);
    let part = folder(&[("m-00001-of-00002.gguf", GGUF)]);
    refused(part.path().join("m-00001-of-00002.gguf"), Want::Model, "unsupported_model_format", &["split", "--merge"]);
}

/// A copy of tiny-llama in two shards, the second in a folder below, and the index as given.
fn sharded(edit: impl Fn(&mut BTreeMap<String, String>)) -> tempfile::TempDir {
    let folder = folder(&[CONFIG, ("model-1.safetensors", WEIGHTS.1), ("sub/model-2.safetensors", ADAPTER.1)]);
    let names = |path: &str| {
        use llm_local_core::TensorSource as _;
        let source = llm_local_weights::SafetensorsSource::open(&folder.path().join(path)).unwrap();
        source.entries().iter().map(|e| e.name.clone()).collect::<Vec<_>>()
    };
    let mut map = BTreeMap::new();
    for shard in ["model-1.safetensors", "sub/model-2.safetensors"] {
        map.extend(names(shard).into_iter().map(|n| (n, shard.to_owned())));
    }
    edit(&mut map);
    let pairs: Vec<_> = map.iter().map(|(t, s)| format!("{t:?}:{s:?}")).collect();
    let index = format!("{{\"weight_map\":{{{}}}}}", pairs.join(","));
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    folder
}

#[test]
fn shards_are_listed_with_their_index() {
    let folder = sharded(|_| {});
    let manifest = resolve(folder.path(), Want::Model).unwrap();
    assert_eq!(
        paths(&manifest),
        ["config.json", "model-1.safetensors", "model.safetensors.index.json", "sub/model-2.safetensors"]
    );
    let file = manifest.file("sub/model-2.safetensors").unwrap();
    let opened = block_on(LocalSource::new().open(&manifest, file, 0..1, &FetchContext::new())).unwrap();
    assert!(matches!(opened, Opened::Local(path) if path.is_file()));
}

#[test]
fn an_index_cannot_lead_out_of_the_folder_nor_name_what_is_missing() {
    let outside = folder(&[("secret.safetensors", WEIGHTS.1)]);
    let secret = outside.path().join("secret.safetensors").display().to_string();
    let up = format!("../{}/secret.safetensors", outside.path().file_name().unwrap().to_str().unwrap());
    for name in [secret, up] {
        let folder = sharded(|map| drop(map.insert("model.norm.weight".into(), name.clone())));
        refused(folder.path(), Want::Model, "load_failed", &["model.safetensors.index.json", "outside its folder"]);
    }
    let missing = sharded(|map| drop(map.insert("lm_head.weight".into(), "model-3.safetensors".into())));
    refused(missing.path(), Want::Model, "load_failed", &["missing", "model-3.safetensors"]);
    let not_in_shard = sharded(|map| drop(map.insert("lm_head.weight".into(), "model-1.safetensors".into())));
    refused(not_in_shard.path(), Want::Model, "load_failed", &["lm_head.weight", "model-1.safetensors"]);
    let pickles = sharded(|map| drop(map.insert("lm_head.weight".into(), "pytorch_model.bin".into())));
    refused(pickles.path(), Want::Model, "unsupported_model_format", &["pickle", "pytorch_model.bin"]);
}

#[test]
fn broken_headers_of_a_model_are_refused_before_anything_is_loaded() {
    for (name, word) in [("truncated-7-bytes", "7 bytes"), ("truncated-data", "cut off"), ("header-not-json", "header")]
    {
        let weights = format!("bad-adapters/{name}/adapter_model.safetensors");
        let folder = folder(&[CONFIG, ("model.safetensors", &weights)]);
        refused(folder.path(), Want::Model, "load_failed", &["model.safetensors", word]);
    }
    let gguf = folder(&[("x.gguf", CONFIG.1)]);
    refused(gguf.path(), Want::Model, "load_failed", &["x.gguf", "not a GGUF file"]);
}

#[test]
fn what_is_no_model_says_what_it_is_and_what_to_do() {
    let m = Want::Model;
    let empty = folder(&[]);
    refused(empty.path(), m, "not_found", &["folder is empty"]);
    refused(empty.path().join("none"), m, "not_found", &["no such file or folder", "check the path"]);
    refused(
        fixture("bad-adapters/_control-good"),
        m,
        "unsupported_model_format",
        &["is an adapter", "pass it as adapter"],
    );
    refused(fixture("adapters/tiny-llama-lora-mlx"), m, "unsupported_model_format", &["is an adapter"]);
    refused(fixture("bad-adapters/no-config"), m, "unsupported_model_format", &["is an adapter"]);
    refused(
        fixture(&format!("bad-adapters/_control-good/{}", ADAPTER.0)),
        m,
        "unsupported_model_format",
        &["is an adapter"],
    );
    refused(fixture(WEIGHTS.1), m, "unsupported_model_format", &["config.json", "give the folder"]);
    refused(fixture(CONFIG.1), m, "unsupported_model_format", &["expected a folder"]);
    let pickled = folder(&[CONFIG, ("pytorch_model.bin", CONFIG.1)]);
    refused(pickled.path(), m, "unsupported_model_format", &["pytorch_model.bin", "pickle", "convert"]);
    refused(pickled.path().join("pytorch_model.bin"), m, "unsupported_model_format", &["pickle"]);
    refused(folder(&[WEIGHTS]).path(), m, "load_failed", &["no config.json"]);
    refused(folder(&[CONFIG]).path(), m, "load_failed", &["no weights", "it has config.json"]);
    refused(folder(&[("snapshots/abc/config.json", CONFIG.1)]).path(), m, "load_failed", &["snapshots"]);
    let part = folder(&[CONFIG, ("model-00001-of-00002.safetensors", WEIGHTS.1)]);
    refused(part.path(), m, "load_failed", &["one of 00002 shards"]);
}

#[test]
fn an_adapter_lists_config_and_weights_and_is_pinned_by_content() {
    let a = folder(&[ADAPTER, ADAPTER_CONFIG, ("README.md", CONFIG.1), ("training_args.bin", CONFIG.1)]);
    let b = folder(&[ADAPTER, ADAPTER_CONFIG]);
    let first = resolve(a.path(), Want::Adapter).unwrap();
    assert_eq!(paths(&first), ["adapter_config.json", "adapter_model.safetensors"]);
    assert!(first.revision.starts_with("sha256-") && first.files.iter().all(|f| f.digest.is_some()));
    assert_eq!(first.revision, resolve(b.path(), Want::Adapter).unwrap().revision, "a copy has the same content");
    let config = b.path().join("adapter_config.json");
    fs::write(&config, fs::read_to_string(&config).unwrap() + " ").unwrap();
    assert_ne!(first.revision, resolve(b.path(), Want::Adapter).unwrap().revision);
    let mlx = resolve(fixture("adapters/tiny-llama-lora-mlx"), Want::Adapter).unwrap();
    assert_eq!(paths(&mlx), ["adapter_config.json", "adapters.safetensors"]);
}

#[test]
fn a_bare_adapter_file_comes_with_the_config_beside_it() {
    let good = fixture("bad-adapters/_control-good/adapter_model.safetensors");
    assert_eq!(paths(&resolve(good, Want::Adapter).unwrap()), ["adapter_config.json", "adapter_model.safetensors"]);
    let bare = fixture("bad-adapters/no-config/adapter_model.safetensors");
    let manifest = resolve(&bare, Want::Adapter).unwrap();
    assert_eq!(paths(&manifest), ["adapter_model.safetensors"]);
    let opened = block_on(LocalSource::new().open(&manifest, &manifest.files[0], 0..1, &FetchContext::new())).unwrap();
    assert!(matches!(opened, Opened::Local(path) if path == bare));
}

#[test]
fn what_is_no_adapter_says_what_it_is_and_what_to_do() {
    let a = Want::Adapter;
    let bad = |name: &str| fixture("bad-adapters").join(name);
    refused(bad("no-config"), a, "load_failed", &["adapter_model.safetensors", "no adapter_config.json", "add it"]);
    refused(bad("no-weights"), a, "load_failed", &["no weights of an adapter", "adapter_model.safetensors"]);
    refused(bad("pickle-bin-only"), a, "unsupported_model_format", &["adapter_model.bin", "pickle", "convert"]);
    refused(bad("pickle-bin-only/adapter_model.bin"), a, "unsupported_model_format", &["pickle"]);
    for name in ["truncated-7-bytes", "truncated-header", "truncated-data", "header-not-json", "offsets-out-of-range"] {
        refused(bad(name), a, "load_failed", &["adapter_model.safetensors"]);
    }
    refused(fixture("models/tiny-llama"), a, "unsupported_model_format", &["is a model", "pass it as model"]);
    refused(fixture(GGUF), a, "unsupported_model_format", &["GGUF model", "pass it as model"]);
    refused(folder(&[("m.gguf", GGUF)]).path(), a, "unsupported_model_format", &["GGUF model"]);
    refused(folder(&TWO_GGUF).path(), a, "load_failed", &["2 GGUF files"]);
    let empty = folder(&[]);
    refused(empty.path(), a, "not_found", &["folder is empty"]);
    refused(empty.path().join("none"), a, "not_found", &["no such file or folder"]);
    refused(
        fixture("bad-adapters/_control-good/adapter_config.json"),
        a,
        "unsupported_model_format",
        &["give the folder"],
    );
    let below = folder(&[("pirate/adapter_config.json", ADAPTER_CONFIG.1), ("notes/x.txt", CONFIG.1)]);
    refused(below.path(), a, "load_failed", &["give one of them: pirate"]);
    let state = folder(&[ADAPTER_CONFIG, ("optimizer.pt", CONFIG.1), ("training_args.bin", CONFIG.1)]);
    refused(state.path(), a, "load_failed", &["no weights of an adapter"]);
    let bin = folder(&[("adapter_model.bin", CONFIG.1)]);
    refused(bin.path(), a, "unsupported_model_format", &["pickle"]);
    refused(folder(&[("notes.txt", CONFIG.1)]).path(), a, "load_failed", &["no adapter", "it has notes.txt"]);
}

#[test]
fn every_bad_adapter_whose_files_are_sound_is_left_to_its_reader() {
    let at_resolve = [
        "no-config",
        "no-weights",
        "pickle-bin-only",
        "truncated-7-bytes",
        "truncated-header",
        "truncated-data",
        "header-not-json",
        "offsets-out-of-range",
    ];
    for entry in fs::read_dir(fixture("bad-adapters")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(resolve(&path, Want::Adapter).is_err(), at_resolve.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn a_file_that_changed_since_or_is_not_listed_is_not_opened() {
    let folder = folder(&[ADAPTER, ADAPTER_CONFIG, ("secret.txt", CONFIG.1)]);
    let cx = FetchContext::new();
    let mut manifest = resolve(folder.path(), Want::Adapter).unwrap();
    let open = |m: &Manifest, at: usize| block_on(LocalSource::new().open(m, &m.files[at], 0..1, &cx));
    fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    let error = open(&manifest, 0).unwrap_err();
    assert_eq!(error.code(), "integrity_failed");
    assert!(error.to_string().contains("2 bytes; it has changed since"), "{error}");
    let stranger = llm_local_core::ManifestFile::new("secret.txt", 795);
    let error = block_on(LocalSource::new().open(&manifest, &stranger, 0..1, &cx)).unwrap_err();
    assert_eq!(error.code(), "not_found");
    manifest.files[0].path = "../x".into();
    assert_eq!(open(&manifest, 0).unwrap_err().code(), "invalid_spec");
    fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    assert_eq!(open(&manifest, 1).unwrap_err().code(), "not_found");
    let cancel = CancellationToken::new();
    cancel.cancel();
    let cancelled = FetchContext::new().with_cancel(cancel);
    let error = block_on(LocalSource::new().open(&manifest, &manifest.files[1], 0..1, &cancelled)).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
}

#[cfg(unix)]
#[test]
fn links_are_followed_as_the_caches_of_other_tools_need_and_broken_ones_are_named() {
    use std::os::unix::fs::symlink;
    let blobs = folder(&[("1", WEIGHTS.1), ("2", CONFIG.1)]);
    let snapshot = tempfile::tempdir().unwrap();
    symlink(blobs.path().join("1"), snapshot.path().join("model.safetensors")).unwrap();
    symlink(blobs.path().join("2"), snapshot.path().join("config.json")).unwrap();
    assert_eq!(paths(&resolve(snapshot.path(), Want::Model).unwrap()), ["config.json", "model.safetensors"]);
    fs::remove_file(blobs.path().join("1")).unwrap();
    refused(snapshot.path(), Want::Model, "load_failed", &["links to files that are gone: model.safetensors"]);
}
