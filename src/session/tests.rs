//! The file of a saved chat.

#[cfg(all(feature = "candle", feature = "local"))]
mod moved;

use std::{collections::BTreeMap, path::Path};

use llm_local_core::{FloatType, Message, Result, SessionTensor};

use super::file::{self, Cache, MadeBy, Saved, read};
use crate::blocking::Wanted;

fn write(path: &Path, saved: &Saved, tensors: &[SessionTensor]) -> Result<()> {
    file::write(path, saved, tensors, &Wanted::new())
}

fn chat(cache: bool) -> (Saved, Vec<SessionTensor>) {
    let tensors = if cache {
        vec![
            SessionTensor::new("layers.1.keys", FloatType::F16, vec![2, 3], (0..12).collect()),
            SessionTensor::new("layers.0.keys", FloatType::F32, vec![1, 2, 2], (100..116).collect()),
            SessionTensor::new("layers.0.values", FloatType::Bf16, vec![0, 5], vec![]),
        ]
    } else {
        vec![]
    };
    let saved = Saved {
        system_prompt: Some("Answer \"briefly\".\n".into()),
        messages: vec![Message::user("Hällo \u{1f600}"), Message::assistant("")],
        made_by: Some(MadeBy {
            model: "m".into(),
            base: "sha256:00".into(),
            adapters: "ab*0.5".into(),
            backend: "candle".into(),
            dtype: "f32".into(),
            context_length: 64,
        }),
        unknown: None,
        cache: cache.then(|| Cache {
            tokens: vec![1, 70_000, u32::MAX],
            metadata: BTreeMap::from([("format".into(), "candle 1".into())]),
            tensors: tensors.iter().map(|t| t.name.clone()).collect(),
        }),
    };
    (saved, tensors)
}

/// What a reader says of a file with these bytes.
fn read_bytes(folder: &Path, bytes: &[u8]) -> Result<(Saved, Vec<SessionTensor>)> {
    let path = folder.join("edited.safetensors");
    std::fs::write(&path, bytes).unwrap();
    read(&path)
}

#[test]
fn what_was_written_is_read_in_the_backends_order_and_any_safetensors_reader_can() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.safetensors");
    for with_cache in [false, true] {
        let (saved, tensors) = chat(with_cache);
        write(&path, &saved, &tensors).unwrap();
        assert_eq!(read(&path).unwrap(), (saved, tensors));
    }
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("layers.1.keys").unwrap().data(), (0..12).collect::<Vec<u8>>());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_file_that_is_cut_off_anywhere_or_too_long_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.safetensors");
    let (saved, tensors) = chat(true);
    write(&path, &saved, &tensors).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for length in 0..bytes.len() {
        let error = read_bytes(folder.path(), &bytes[..length]).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code(), "integrity_failed", "{text}");
        assert!(text.contains("edited.safetensors") && text.contains(&format!("{length} bytes")), "{text}");
    }
    assert!(read_bytes(folder.path(), &[&bytes[..], b"x"].concat()).is_err());
}

#[test]
fn a_file_with_any_bit_changed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.safetensors");
    let (saved, tensors) = chat(true);
    write(&path, &saved, &tensors).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut edited = bytes.clone();
        edited[at] ^= 1;
        let error = read_bytes(folder.path(), &edited).err().unwrap_or_else(|| panic!("byte {at} was changed unseen"));
        assert!(error.to_string().contains("session file"), "byte {at}: {error}");
    }
}

#[test]
fn a_cache_that_no_model_is_named_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.safetensors");
    let (mut saved, tensors) = chat(true);
    saved.made_by = None;
    write(&path, &saved, &tensors).unwrap();
    let error = read(&path).unwrap_err();
    assert_eq!(error.code(), "integrity_failed");
    let text = error.to_string();
    assert!(text.contains("made_by") && text.contains("KV cache") && text.contains("chat.safetensors"), "{text}");
    // A chat that no model has answered is whole without both.
    saved.cache = None;
    write(&path, &saved, &[]).unwrap();
    assert_eq!(read(&path).unwrap(), (saved, vec![]));
}

#[test]
fn other_files_are_told_from_damaged_ones() {
    let folder = tempfile::tempdir().unwrap();
    let error = read(&folder.path().join("none")).unwrap_err();
    assert_eq!(error.code(), "not_found");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models/tiny-llama/model.safetensors");
    let text = read(Path::new(model)).unwrap_err().to_string();
    assert!(text.contains("no entry `session`") && text.contains("Session::save"), "{text}");
    let text = read_bytes(folder.path(), b"Once upon a time there was a file.").unwrap_err().to_string();
    assert!(text.contains("above safetensors' limit"), "{text}");
    let path = folder.path().join("chat.safetensors");
    let (saved, tensors) = chat(false);
    write(&path, &saved, &tensors).unwrap();
    let mut newer = std::fs::read(&path).unwrap();
    let at = newer.windows(9).position(|w| w == b"session 1").unwrap();
    newer[at + 8] = b'2';
    let text = read_bytes(folder.path(), &newer).unwrap_err().to_string();
    assert!(text.contains("`llm-local session 2`") && text.contains("`llm-local session 1`"), "{text}");
}

#[test]
fn a_write_that_fails_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.safetensors");
    let (saved, tensors) = chat(false);
    write(&path, &saved, &tensors).unwrap();
    let short = SessionTensor::new("keys", FloatType::F32, vec![2], vec![0; 7]);
    let text = write(&path, &saved, &[short]).unwrap_err().to_string();
    assert!(text.contains("`keys`") && text.contains("7 bytes"), "{text}");
    let same = || SessionTensor::new("keys", FloatType::F32, vec![1], vec![0; 4]);
    let text = write(&path, &saved, &[same(), same()]).unwrap_err().to_string();
    assert!(text.contains("two tensors"), "{text}");
    assert_eq!(read(&path).unwrap().0, saved);
    let error = write(&folder.path().join("no/such/folder/x"), &saved, &tensors).unwrap_err();
    assert_eq!(error.code(), "io");
}

#[test]
fn a_write_that_was_given_up_does_not_replace_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.safetensors");
    let (newer, tensors) = chat(true);
    write(&path, &newer, &tensors).unwrap();
    let wanted = Wanted::new();
    wanted.give_up();
    let (older, _) = chat(false);
    let error = file::write(&path, &older, &[], &wanted).unwrap_err();
    assert_eq!(error.code(), "cancelled");
    assert_eq!(read(&path).unwrap(), (newer, tensors));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}
