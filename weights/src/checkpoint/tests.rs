use std::fs;

use llm_local_core::ModelFormat;

use super::*;
use crate::testing::{fixture, safetensors_bytes};

fn files(names: &[(&str, PathBuf)]) -> BTreeMap<String, PathBuf> {
    names.iter().map(|(name, path)| ((*name).to_owned(), path.clone())).collect()
}

#[test]
fn a_hugging_face_folder_gives_description_tensors_and_text_files() {
    let names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let all: Vec<_> = names.iter().map(|n| (*n, fixture("models/tiny-llama").join(n))).collect();
    let checkpoint = Checkpoint::open("tiny", &files(&all)).unwrap();
    let ModelFormat::Safetensors { config } = &checkpoint.info.format else { panic!() };
    assert_eq!(config["model_type"], "llama");
    assert_eq!(checkpoint.info.id, "tiny");
    assert_eq!(*checkpoint.info.tensors, *checkpoint.tensors.entries());
    let text: Vec<_> = checkpoint.text.files.keys().map(String::as_str).collect();
    assert_eq!(text, ["config.json", "tokenizer.json", "tokenizer_config.json"]);
    assert!(checkpoint.text.gguf.is_none());
}

#[test]
fn a_gguf_file_gives_description_tensors_and_metadata() {
    let one = [("tiny.gguf", fixture("gguf/tiny-llama-q8_0.gguf"))];
    let checkpoint = Checkpoint::open("tiny", &files(&one)).unwrap();
    let ModelFormat::Gguf { metadata } = &checkpoint.info.format else { panic!() };
    assert_eq!(metadata.string("general.architecture"), Some("llama"));
    assert!(checkpoint.text.gguf.is_some() && checkpoint.text.files.is_empty());
    assert_eq!(*checkpoint.info.tensors, *checkpoint.tensors.entries());
}

#[test]
fn a_gguf_file_comes_with_the_text_files_of_its_folder_but_not_with_a_config() {
    let names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
    let mut all: Vec<_> = names.iter().map(|n| (*n, fixture("models/tiny-llama").join(n))).collect();
    all.push(("tiny.gguf", fixture("gguf/tiny-llama-q8_0.gguf")));
    let text = Checkpoint::open("tiny", &files(&all)).unwrap().text;
    assert!(text.gguf.is_some());
    let listed: Vec<_> = text.files.keys().map(String::as_str).collect();
    assert_eq!(listed, ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]);
    assert_eq!(text.files["tokenizer.json"], fixture("models/tiny-llama/tokenizer.json"));
}

#[test]
fn what_is_no_model_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("pytorch_model.bin");
    fs::write(&bin, b"\x80\x02").unwrap();
    let empty = folder.path().join("empty.safetensors");
    fs::write(&empty, safetensors_bytes("{}", 0)).unwrap();
    let config = fixture("models/tiny-llama/config.json");
    let gguf = fixture("gguf/tiny-llama-q8_0.gguf");
    let adapter = fixture("bad-adapters/_control-good/adapter_model.safetensors");
    for (given, code, words) in [
        (vec![], "load_failed", vec!["no weights"]),
        (vec![("config.json", config.clone())], "load_failed", vec!["no weights", "config.json"]),
        (
            vec![("config.json", config.clone()), ("pytorch_model.bin", bin)],
            "unsupported_model_format",
            vec!["pickle", "pytorch_model.bin"],
        ),
        (
            vec![("adapter_model.safetensors", adapter)],
            "unsupported_model_format",
            vec!["adapter", "pass it as adapter"],
        ),
        (vec![("model.safetensors", empty)], "load_failed", vec!["config.json"]),
        (vec![("a.gguf", gguf.clone()), ("b.gguf", gguf)], "load_failed", vec!["a.gguf, b.gguf", "one of them"]),
    ] {
        let error = Checkpoint::open("the-model", &files(&given)).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        let text = error.to_string();
        assert!(text.contains("the-model") && words.iter().all(|w| text.contains(w)), "{text}");
    }
}

#[test]
fn a_gguf_adapter_is_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.gguf");
    let mut bytes = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
    for text in ["general.type", "adapter"] {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
        if text == "general.type" {
            bytes.extend(8u32.to_le_bytes());
        }
    }
    fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open("m", &files(&[("lora.gguf", path)])).unwrap_err();
    assert!(error.to_string().contains("it is an adapter"), "{error}");
}

#[test]
fn pickles_are_known_by_their_names() {
    for name in ["pytorch_model.bin", "a.pt", "b.PTH", "x/c.ckpt", "d.pkl", "e.pickle"] {
        assert!(is_pickle(name), "{name}");
    }
    for name in ["model.safetensors", "bin", "a.gguf", "tokenizer.json", "a.bin.json"] {
        assert!(!is_pickle(name), "{name}");
    }
}
