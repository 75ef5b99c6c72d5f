use std::{collections::BTreeMap, fs, path::PathBuf};

use llm_local_core::{Encoding, FloatType, IntType, TensorSource};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::*;
use crate::testing::{bytes_of, fixture, peak_bytes, safetensors_bytes};

/// A folder with files of the content given, and the map of them that a manifest gives.
fn folder(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, BTreeMap<String, PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let files = files.iter().map(|(name, content)| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        ((*name).to_owned(), path)
    });
    let files = files.collect();
    (folder, files)
}

fn index(pairs: &[(&str, &str)]) -> Vec<u8> {
    let map: BTreeMap<_, _> = pairs.iter().copied().collect();
    serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": map }).to_string().into_bytes()
}

/// A file with one u8 tensor of two elements per name.
fn shard(names: &[&str]) -> Vec<u8> {
    let tensors = names.iter().map(|n| (*n, TensorView::new(Dtype::U8, vec![2], &[1, 2]).unwrap()));
    safetensors::serialize(tensors, None).unwrap()
}

fn open(files: &BTreeMap<String, PathBuf>) -> Result<SafetensorsSource> {
    SafetensorsFiles::choose(files)?.expect("there are safetensors files").open(files)
}

#[test]
fn entries_and_bytes_are_those_of_the_file() {
    let path = fixture("models/tiny-llama/model.safetensors");
    let source = SafetensorsSource::open(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(source.entries().len(), reference.len());
    for entry in source.entries() {
        let view = reference.tensor(&entry.name).unwrap();
        assert_eq!(entry.shape, view.shape());
        assert_eq!(entry.encoding, Encoding::Float(FloatType::Bf16));
        let TensorData::Borrowed(data) = source.read(&entry.name, None).unwrap() else { panic!("copied") };
        assert!(data == view.data(), "{}", entry.name);
        let as_stored = source.read(&entry.name, Some(FloatType::Bf16)).unwrap();
        assert!(matches!(as_stored, TensorData::Borrowed(d) if d == data), "copied though stored so");
        assert_eq!(source.entry(&entry.name), Some(entry));
    }
    let TensorData::F32(norm) = source.read("model.norm.weight", Some(FloatType::F32)).unwrap() else { panic!() };
    let view = reference.tensor("model.norm.weight").unwrap();
    let expected: Vec<f32> = view.data().chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    assert_eq!(norm, expected);
}

#[test]
fn what_cannot_be_read_is_an_error_that_names_tensor_and_file() {
    let (_folder, files) = folder(&[("a.safetensors", shard(&["ids"]))]);
    let source = open(&files).unwrap();
    assert_eq!(source.entries()[0].encoding, Encoding::Int(IntType::U8));
    let error = source.read("ids", Some(FloatType::F32)).unwrap_err();
    assert_eq!(error.code(), "unsupported");
    assert!(["`ids`", "a.safetensors", "u8", "f32"].iter().all(|w| error.to_string().contains(w)), "{error}");
    let error = source.read("none", None).unwrap_err();
    assert_eq!(error.code(), "load_failed");
    assert!(error.to_string().contains("`none`") && error.to_string().contains("a.safetensors"), "{error}");
    assert!(source.entry("none").is_none());
}

#[test]
fn unaligned_data_is_borrowed_and_converted_alike() {
    // 59 characters of header put the data at an odd address.
    let header = r#"{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}    "#;
    assert_eq!((8 + header.len()) % 4, 3);
    let mut bytes = safetensors_bytes(header, 0);
    for x in [1.5f32, -2.0, 3.25] {
        bytes.extend(x.to_le_bytes());
    }
    let (_folder, files) = folder(&[("model.safetensors", bytes)]);
    let source = open(&files).unwrap();
    assert_eq!(bytes_of(&source.read("x", None).unwrap())[..4], 1.5f32.to_le_bytes());
    let TensorData::Half(half) = source.read("x", Some(FloatType::F16)).unwrap() else { panic!() };
    assert_eq!(half, [0x3e00, 0xc000, 0x4280]);
    assert_eq!(source.read("x", Some(FloatType::F64)).unwrap_err().code(), "unsupported");
}

#[test]
fn each_defect_of_a_header_has_its_own_message() {
    let tensor = |rest: &str, data| safetensors_bytes(&format!("{{{rest}}}"), data);
    let t = |name: &str, dtype: &str, shape: &str, at: &str| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{at}}}"#)
    };
    let f32s = |name: &str, at: &str| t(name, "F32", "[2]", at);
    let mut long = 101_000_000u64.to_le_bytes().to_vec();
    long.extend(b"{}");
    let good = f32s("a", "[0,8]");
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("seven bytes", vec![1; 7], &["7 bytes", "cut off"]),
        ("empty", vec![], &["0 bytes", "cut off"]),
        ("header beyond the file", 500u64.to_le_bytes().to_vec(), &["500 bytes", "only 0 follow"]),
        ("header beyond the limit", long, &["101000000", "not a safetensors file"]),
        ("length of u64::MAX", vec![0xff; 40], &["above the format's limit"]),
        (
            "not UTF-8",
            {
                let mut b = 2u64.to_le_bytes().to_vec();
                b.extend([0xff, 0xfe]);
                b
            },
            &["not UTF-8"],
        ),
        ("not JSON", safetensors_bytes("xx", 0), &["not the JSON"]),
        ("an array", safetensors_bytes("[]", 0), &["not the JSON"]),
        ("no shape", tensor(r#""a":{"dtype":"F32","data_offsets":[0,8]}"#, 8), &["`a`", "shape"]),
        ("negative size", tensor(&t("a", "F32", "[-2]", "[0,8]"), 8), &["`a`", "-2"]),
        ("unknown type", tensor(&t("a", "F33", "[2]", "[0,8]"), 8), &["`a`", "F33"]),
        ("wrong size", tensor(&t("a", "F32", "[3]", "[0,8]"), 8), &["`a`", "[3]", "needs 12 bytes", "span 8"]),
        ("overflow", tensor(&t("a", "F32", "[4294967296,4294967296]", "[0,8]"), 8), &["`a`", "overflows"]),
        ("overflow of bits", tensor(&t("a", "F64", "[4611686018427387904]", "[0,8]"), 8), &["`a`", "overflows"]),
        ("backwards", tensor(&f32s("a", "[8,0]"), 8), &["`a`", "before its start"]),
        ("out of range", tensor(&f32s("a", "[0,8]"), 7), &["`a`", "ends at 8", "only 7 bytes"]),
        ("overlap", tensor(&format!("{good},{}", f32s("b", "[4,12]")), 12), &["`a`", "`b`", "overlap"]),
        ("same place", tensor(&format!("{good},{}", f32s("b", "[0,8]")), 8), &["`a`", "`b`", "overlap"]),
        ("gap", tensor(&format!("{good},{}", f32s("b", "[9,17]")), 17), &["8..9", "`b`"]),
        ("gap at the start", tensor(&f32s("a", "[1,9]"), 9), &["0..1", "`a`"]),
        ("trailing bytes", tensor(&good, 11), &["3 bytes follow"]),
        ("name twice", tensor(&format!("{good},{}", f32s("a", "[8,16]")), 16), &["`a`", "twice"]),
        ("field twice", tensor(r#""a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}"#, 8), &["shape"]),
        ("metadata not text", tensor(&format!(r#""__metadata__":{{"a":1}},{good}"#), 8), &["not a valid"]),
        ("half a byte", tensor(&t("a", "F4", "[3]", "[0,2]"), 2), &["`a`", "F4"]),
    ];
    for (what, bytes, words) in cases {
        let (_folder, files) = folder(&[("model.safetensors", bytes)]);
        let error = open(&files).unwrap_err();
        assert_eq!(error.code(), "load_failed", "{what}: {error}");
        let text = error.to_string();
        assert!(text.contains("model.safetensors"), "{what}: {text}");
        assert!(words.iter().all(|w| text.contains(w)), "{what}: {text}");
    }
    let (_folder, files) = folder(&[("model.safetensors", tensor(&t("a", "F8_E4M3", "[2]", "[0,2]"), 2))]);
    let error = open(&files).unwrap_err();
    assert_eq!(error.code(), "unsupported_model_format");
    assert!(error.to_string().contains("`a`") && error.to_string().contains("F8_E4M3"), "{error}");
    let (_folder, files) = folder(&[("model.safetensors", tensor(&good, 8))]);
    open(&files).unwrap();
}

#[test]
fn broken_adapter_files_are_refused_and_the_good_one_is_not() {
    let open =
        |name: &str| SafetensorsSource::open(&fixture(&format!("bad-adapters/{name}/adapter_model.safetensors")));
    for (name, word) in [
        ("truncated-7-bytes", "7 bytes"),
        ("truncated-header", "cut off"),
        ("truncated-data", "cut off"),
        ("header-not-json", "header"),
        ("offsets-out-of-range", "the tensor"),
    ] {
        let error = open(name).unwrap_err().to_string();
        assert!(error.contains(word), "{name}: {error}");
    }
    assert!(!open("_control-good").unwrap().entries().is_empty());
}

#[test]
fn shards_give_the_same_bits_as_one_file() {
    let single = SafetensorsSource::open(&fixture("models/tiny-llama/model.safetensors")).unwrap();
    let names: Vec<_> = single.entries().iter().map(|e| e.name.clone()).collect();
    let (mut content, mut map) = (Vec::new(), Vec::new());
    let shards = [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "sub/model-00003-of-00003.safetensors",
    ];
    for (at, file) in shards.iter().enumerate() {
        let mine: Vec<_> = names.iter().skip(at).step_by(3).collect();
        let views = mine.iter().map(|name| {
            let TensorData::Borrowed(data) = single.read(name, None).unwrap() else { panic!() };
            (name.as_str(), TensorView::new(Dtype::BF16, single.entry(name).unwrap().shape.clone(), data).unwrap())
        });
        content.push((*file, safetensors::serialize(views, None).unwrap()));
        map.extend(mine.into_iter().map(|name| (name.as_str(), *file)));
    }
    content.push((ShardIndex::FILE, index(&map)));
    let (_folder, files) = folder(&content);
    let sharded = open(&files).unwrap();
    assert_eq!(sharded.paths().count(), 3);
    assert_eq!(sharded.entries().len(), names.len());
    for entry in single.entries() {
        assert_eq!(sharded.entry(&entry.name), Some(entry));
        for want in [None, Some(FloatType::F32), Some(FloatType::F16)] {
            let [a, b] = [&single, &sharded].map(|s| bytes_of(&s.read(&entry.name, want).unwrap()));
            assert!(a == b, "{} as {want:?}", entry.name);
        }
    }
}

#[test]
fn an_index_cannot_name_a_file_outside_its_folder() {
    for name in [
        "../w.safetensors",
        "/etc/w.safetensors",
        "a/../../w.safetensors",
        "a\\w.safetensors",
        "C:w.safetensors",
        "./w.safetensors",
        "",
    ] {
        let (_folder, files) = folder(&[(ShardIndex::FILE, index(&[("a", name)])), ("w.safetensors", shard(&["a"]))]);
        let error = open(&files).unwrap_err();
        assert_eq!(error.code(), "load_failed", "{name}");
        let text = error.to_string();
        assert!(text.contains(ShardIndex::FILE) && text.contains("outside its folder"), "{name}: {text}");
    }
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    const ONE: &str = "model-1.safetensors";
    let one = ONE;
    let good: (&str, Vec<u8>) = (one, shard(&["a"]));
    type Case<'a> = (Vec<u8>, Vec<(&'a str, Vec<u8>)>, &'a [&'a str]);
    let cases: Vec<Case<'_>> = vec![
        (
            index(&[("a", one), ("b", "model-2.safetensors")]),
            vec![good.clone()],
            &["1 of its 2 shards", "model-2.safetensors"],
        ),
        (index(&[("a", one), ("b", one)]), vec![good.clone()], &["`b`", ONE, "not"]),
        (index(&[]), vec![good.clone()], &["lists no tensors"]),
        (b"{}".to_vec(), vec![good.clone()], &["weight_map"]),
        (b"[]".to_vec(), vec![good.clone()], &["JSON"]),
        (br#"{"weight_map":{"a":1}}"#.to_vec(), vec![good.clone()], &["JSON"]),
        (
            br#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#.to_vec(),
            vec![good.clone()],
            &["`a`", "twice"],
        ),
        (index(&[("a", "pytorch_model.bin")]), vec![good.clone()], &["pickle", "never read"]),
        (index(&[("a", "config.json")]), vec![good.clone()], &["config.json", ".safetensors"]),
        (
            index(&[("a", one), ("b", "model-2.safetensors")]),
            vec![good.clone(), ("model-2.safetensors", shard(&["a", "b"]))],
            &["`a`", "stands in", ONE],
        ),
        (
            index(&[("a", one)]),
            vec![good.clone(), ("model.safetensors", shard(&["a"]))],
            &["does not name `model.safetensors`"],
        ),
        (index(&[("a", one)]), vec![(one, shard(&["a"])[..9].to_vec())], &[ONE, "cut off"]),
    ];
    for (index, mut content, words) in cases {
        content.push((ShardIndex::FILE, index));
        let (_folder, files) = folder(&content);
        let error = open(&files).unwrap_err().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{words:?}: {error}");
    }
}

#[test]
fn what_an_index_does_not_list_is_left_out() {
    let (_folder, files) = folder(&[
        (ShardIndex::FILE, index(&[("a", "model-1.safetensors")])),
        ("model-1.safetensors", shard(&["a", "extra"])),
        ("consolidated.safetensors", shard(&["a"])),
    ]);
    let source = open(&files).unwrap();
    assert_eq!(source.entries().len(), 1);
    assert_eq!(source.read("extra", None).unwrap_err().code(), "load_failed");
}

#[test]
fn without_an_index_the_single_file_or_all_files_count() {
    let choose = |content: &[(&str, Vec<u8>)]| {
        let (folder, files) = folder(content);
        let chosen = SafetensorsFiles::choose(&files);
        (folder, chosen.map(|c| c.map(|c| c.names().to_vec())))
    };
    let s = || shard(&["a"]);
    let (_f, single) = choose(&[("model.safetensors", s()), ("consolidated.safetensors", s())]);
    assert_eq!(single.unwrap().unwrap(), ["model.safetensors"]);
    let (_f, all) = choose(&[
        ("x.safetensors", s()),
        ("y.safetensors", s()),
        ("sub/z.safetensors", s()),
        ("adapters.safetensors", s()),
    ]);
    assert_eq!(all.unwrap().unwrap(), ["x.safetensors", "y.safetensors"]);
    let (_f, none) =
        choose(&[("adapter_model.safetensors", s()), ("0000100_adapters.safetensors", s()), ("a.txt", vec![])]);
    assert_eq!(none.unwrap(), None);
    let (_f, part) = choose(&[("m-00001-of-00003.safetensors", s()), ("m-00003-of-00003.safetensors", s())]);
    let part = part.unwrap_err().to_string();
    assert!(part.contains("one of 00003 shards, but 2 are there"), "{part}");
    let (_f, whole) = choose(&[("m-00001-of-00002.safetensors", s()), ("m-00002-of-00002.safetensors", s())]);
    assert_eq!(whole.unwrap().unwrap().len(), 2);
    let (_folder, files) = folder(&[("x.safetensors", s()), ("y.safetensors", s())]);
    let error = open(&files).unwrap_err().to_string();
    assert!(error.contains("`a`") && error.contains("x.safetensors") && error.contains("y.safetensors"), "{error}");
}

/// Reads a header, which must not panic, nor take memory out of proportion; what it accepts must lie in the file.
fn survive(bytes: &[u8]) -> Result<(), TestCaseError> {
    let (peak, result) = peak_bytes(|| header::read(bytes, bytes.len() as u64, Path::new("hostile.safetensors")));
    prop_assert!(peak < 200_000 + 200 * bytes.len(), "{peak} bytes for a file of {}", bytes.len());
    if let Ok(tensors) = result {
        for (entry, range) in tensors {
            prop_assert_eq!(entry.stored_bytes(), Some(range.len()));
            prop_assert!(range.start <= range.end && range.end <= bytes.len());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn mutated_headers_never_panic(edits in proptest::collection::vec((0..6000usize, any::<u8>()), 1..6)) {
        let mut bytes = fs::read(fixture("bad-adapters/_control-good/adapter_model.safetensors")).unwrap();
        for (at, value) in edits {
            bytes[at] = value;
        }
        survive(&bytes)?;
    }

    #[test]
    fn digits_replaced_in_a_header_never_panic(edits in proptest::collection::vec((0..500usize, "[0-9]{1,20}"), 1..4)) {
        let bytes = fs::read(fixture("bad-adapters/_control-good/adapter_model.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
        for (at, value) in edits {
            let numbers: Vec<_> = header.match_indices(|c: char| c.is_ascii_digit()).map(|(i, _)| i).collect();
            let at = numbers[at % numbers.len()];
            header.replace_range(at..=at, &value);
        }
        let mut edited = safetensors_bytes(&header, 0);
        edited.extend(&bytes[8 + length..]);
        survive(&edited)?;
    }

    #[test]
    fn truncated_files_are_refused(cut in 0..81_336usize) {
        let bytes = fs::read(fixture("bad-adapters/_control-good/adapter_model.safetensors")).unwrap();
        survive(&bytes[..cut])?;
        prop_assert!(header::read(&bytes[..cut], cut as u64, Path::new("x")).is_err());
    }
}
