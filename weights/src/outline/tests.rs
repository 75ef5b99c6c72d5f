use std::{collections::BTreeMap, fs, path::PathBuf};

use super::*;
use crate::{
    Checkpoint, is_gguf,
    testing::{fixture, safetensors_bytes},
};

type Content = BTreeMap<String, Vec<u8>>;

/// The description of a model of these files, by no more of them than is wanted; and how many bytes that was.
fn outlined(content: &Content) -> Result<(ModelInfo, usize)> {
    let outline = Outline::new("m", &"hf:org/m".parse().unwrap(), content.keys());
    let mut read = 0;
    let mut text = |name: &str| {
        read += content[name].len();
        content[name].as_slice()
    };
    let by_config = outline.config_file()?.map(|name| outline.by_config(text(name))).transpose()?;
    let weights = outline.weights(outline.index_file().map(&mut text))?;
    let mut heads = Vec::new();
    for name in weights.names() {
        let mut head = Head::new(name, "hf:org/m", content[name].len() as u64);
        while let Some(range) = head.wanted()? {
            read += (range.end - range.start) as usize;
            head.extend(&content[name][range.start as usize..range.end as usize]);
        }
        heads.push(head);
    }
    Ok((outline.describe(by_config, &weights, &heads)?, read))
}

/// What is on disk of the same files.
fn opened(content: &Content) -> Result<Arc<ModelInfo>> {
    let folder = tempfile::tempdir().unwrap();
    let files: BTreeMap<String, PathBuf> = content
        .iter()
        .map(|(name, bytes)| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            (name.clone(), path)
        })
        .collect();
    Checkpoint::open("m", &files).map(|checkpoint| checkpoint.info)
}

fn tiny() -> Content {
    folder("models/tiny-llama")
}

fn folder(path: &str) -> Content {
    let entries = fs::read_dir(fixture(path)).unwrap().map(|e| e.unwrap());
    let files = entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()));
    files.filter(|(name, _)| !is_gguf(name)).collect()
}

/// Shards of one byte per tensor, and an index.
fn sharded(shards: &[(&str, &[&str])], index: &[(&str, &str)]) -> Content {
    let mut content = BTreeMap::from([("config.json".to_owned(), b"{}".to_vec())]);
    for (name, tensors) in shards {
        let entry = |(at, name): (usize, &&str)| {
            format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{}]}}"#, at + 1)
        };
        let header: Vec<_> = tensors.iter().enumerate().map(entry).collect();
        content.insert((*name).into(), safetensors_bytes(&format!("{{{}}}", header.join(",")), tensors.len()));
    }
    let map: BTreeMap<_, _> = index.iter().copied().collect();
    let index = serde_json::json!({ "weight_map": map }).to_string().into_bytes();
    content.insert(ShardIndex::FILE.into(), index);
    content
}

#[test]
fn heads_describe_a_model_as_its_files_do() {
    let gguf = BTreeMap::from([("m.gguf".into(), fs::read(fixture("gguf/arch-gemma3.gguf")).unwrap())]);
    let shards = sharded(
        &[("1.safetensors", &["a", "extra"]), ("2.safetensors", &["b"])],
        &[("a", "1.safetensors"), ("b", "2.safetensors")],
    );
    for content in [tiny(), folder("models/tiny-llama-mlx-4bit"), gguf, shards] {
        let ((heads, read), whole) = (outlined(&content).unwrap(), opened(&content).unwrap());
        assert_eq!(format!("{:?}", heads.decoder), format!("{:?}", whole.decoder));
        assert_eq!(heads.tensors, whole.tensors);
        let size: usize = content.values().map(Vec::len).sum();
        assert!(read <= size, "{read} of {size}");
    }
}

#[test]
fn files_that_do_not_fit_each_other_are_refused_by_their_heads_as_by_themselves() {
    let (one, two) = ("1.safetensors", "2.safetensors");
    let both = [("a", one), ("b", two)];
    let mut unindexed = sharded(&[(one, &["a"]), (two, &["a"])], &both);
    unindexed.remove(ShardIndex::FILE);
    for (content, words) in [
        (sharded(&[(one, &["a"]), (two, &["a", "b"])], &both), ["`a`", "2.safetensors", "stands in", "1.safetensors"]),
        (
            sharded(&[(one, &["a", "x"]), (two, &["b", "x"])], &both),
            ["`x`", "2.safetensors", "stands in", "1.safetensors"],
        ),
        (unindexed, ["`a`", "2.safetensors", "stands in", "1.safetensors"]),
        (sharded(&[(one, &["a"]), (two, &["c"])], &both), ["`b`", "2.safetensors", "index", "not"]),
        (sharded(&[(one, &["a"])], &both), ["1 of its 2 shards", "missing", "2.safetensors", ShardIndex::FILE]),
    ] {
        let by_files = opened(&content).unwrap_err();
        let by_heads = outlined(&content).unwrap_err();
        assert_eq!(by_heads.code(), by_files.code(), "{by_heads}; {by_files}");
        for error in [&by_files, &by_heads] {
            assert!(words.iter().all(|w| error.to_string().contains(w)), "{words:?}: {error}");
        }
        assert!(by_heads.to_string().contains(" of hf:org/m"), "{by_heads}");
    }
}

#[test]
fn whatever_is_wrong_with_a_file_is_said_with_its_name_and_its_ref() {
    let broken = |name: &str, bytes: &[u8]| {
        let mut content = tiny();
        content.insert(name.into(), bytes.to_vec());
        outlined(&content).unwrap_err().to_string()
    };
    for (name, bytes, why) in [
        ("config.json", &b"{broken"[..], "not JSON"),
        (ShardIndex::FILE, b"[]", "JSON"),
        ("model.safetensors", b"seven b", "cut off"),
        ("model.safetensors", &[0xff; 40], "above the format's limit"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0xx", "not the JSON"),
    ] {
        let error = broken(name, bytes);
        assert!(error.contains(&format!("{name} of hf:org/m")) && error.contains(why), "{error}");
    }
    for (name, bytes, why) in [
        ("m.gguf", &b"GGUF\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..], "version"),
        ("m-00002-of-00003.gguf", b"", "split"),
    ] {
        let error = outlined(&BTreeMap::from([(name.into(), bytes.to_vec())])).unwrap_err().to_string();
        assert!(error.contains(&format!("{name} of hf:org/m")) && error.contains(why), "{error}");
    }
    let mut content = tiny();
    content.remove("config.json");
    assert!(outlined(&content).unwrap_err().to_string().contains("no config.json"));
}
