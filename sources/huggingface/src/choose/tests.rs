use llm_local_weights::ShardIndex;

use super::*;

/// What names tell of a repository with these files, for a ref whose tail is given.
fn choice(tail: &str, want: Want, files: &[&str]) -> Result<Choice> {
    let reference: ArtifactRef = format!("hf:org/name{tail}").parse().unwrap();
    let file = |path: &&str| RepoFile { path: (*path).into(), size: path.len() as u64 * 1_000_000, digest: None };
    let files: Vec<_> = files.iter().map(file).collect();
    choose(&reference, &HubRef::parse(&reference).unwrap(), want, false, &files)
}

/// What is chosen where names are enough.
fn chosen(tail: &str, want: Want, files: &[&str]) -> Result<Vec<String>> {
    match choice(tail, want, files)? {
        Choice::Files(files) => Ok(files.into_iter().map(|f| f.path).collect()),
        Choice::Indexed(indexed) => panic!("{} is to be read", indexed.index().path),
    }
}

/// What is chosen where an index decides that names these shards.
fn indexed(tail: &str, files: &[&str], shards: &[&str]) -> Result<Vec<String>> {
    let Choice::Indexed(indexed) = choice(tail, Want::Model, files)? else { panic!("no index decides") };
    assert_eq!(indexed.index().path, ShardIndex::FILE);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(ShardIndex::FILE);
    let map: serde_json::Map<_, _> = shards.iter().enumerate().map(|(i, s)| (i.to_string(), (*s).into())).collect();
    std::fs::write(&path, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    Ok(indexed.by(&ShardIndex::read(&path)?)?.into_iter().map(|f| f.path).collect())
}

fn model(files: &[&str]) -> Vec<String> {
    chosen("", Want::Model, files).unwrap()
}

fn refused(tail: &str, want: Want, files: &[&str], code: &str, words: &[&str]) {
    let error = chosen(tail, want, files).expect_err(tail);
    let text = error.to_string();
    assert_eq!(error.code(), code, "{text}");
    for word in words.iter().chain(&["hf:org/name"]) {
        assert!(text.contains(word), "{word:?}: {text}");
    }
}

const SHARDS: [&str; 4] = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
];

#[test]
fn a_model_is_config_tokenizer_and_one_format_of_weights() {
    let files = [
        ".gitattributes",
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "chat_template.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "added_tokens.json",
        "preprocessor_config.json",
        "trainer_state.json",
        "modeling_x.py",
        "pytorch_model.bin",
        "tf_model.h5",
        "model.Q4_0.gguf",
        "onnx/model.onnx",
        "original/consolidated.00.pth",
        "adapter_model.safetensors",
        "training_args.bin",
        "sub/config.json",
        "sub/model.safetensors",
    ];
    let expected = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ];
    assert_eq!(model(&files), expected);
    assert_eq!(chosen(":sub", Want::Model, &files).unwrap(), ["config.json", "model.safetensors"]);
}

#[test]
fn the_index_says_which_files_are_the_weights() {
    let with = |more: &[&'static str]| -> Vec<&str> { SHARDS.iter().chain(more).copied().collect() };
    let of_two = &SHARDS[1..3];
    let others = ["consolidated.safetensors", "model-00001-of-00003.safetensors", "other.safetensors", "params.json"];
    assert_eq!(indexed("", &with(&others), of_two).unwrap(), SHARDS, "what it does not name is not of the model");
    let odd =
        ["config.json", "extra/e.safetensors", "model.safetensors.index.json", "mtp.safetensors", "tokenizer.json"];
    assert_eq!(indexed("", &odd, &["mtp.safetensors", "extra/e.safetensors"]).unwrap(), odd);
    let below = ["q/config.json", "q/model.safetensors.index.json", "q/x/a.safetensors", "a.safetensors"];
    assert_eq!(indexed(":q", &below, &["x/a.safetensors"]).unwrap()[2], "x/a.safetensors");
    assert_eq!(model(&with(&["model.safetensors"])), ["config.json", "model.safetensors"], "as transformers chooses");
}

#[test]
fn an_index_that_can_name_one_set_of_shards_only_need_not_be_read() {
    let with = |more: &[&'static str]| -> Vec<&str> { SHARDS.iter().chain(more).copied().collect() };
    assert_eq!(model(&SHARDS), SHARDS);
    // What no index of a model names.
    for other in
        ["adapter_model.safetensors", "consolidated.safetensors", "q/m.gguf", "pytorch_model-00001-of-00002.bin"]
    {
        assert_eq!(model(&with(&[other])), SHARDS, "{other}");
    }
    let named = ["config.json", "model.safetensors.index.json", "x-1-of-2.safetensors", "x-2-of-2.safetensors"];
    assert_eq!(model(&named), named);
    let below = ["q/config.json", "q/m-1-of-1.safetensors", "q/model.safetensors.index.json", "z-1-of-2.safetensors"];
    assert_eq!(chosen(":q", Want::Model, &below).unwrap().len(), 3);
    // What one may name, or leave out.
    for other in [
        "mtp.safetensors",
        "extra/e.safetensors",
        "model-00001-of-00003.safetensors",
        "model-1-of-00002.safetensors",
        "checkpoint-10/model-00001-of-00001.safetensors",
    ] {
        assert!(matches!(choice("", Want::Model, &with(&[other])).unwrap(), Choice::Indexed(_)), "{other}");
    }
    let lacking = [SHARDS[0], SHARDS[2], SHARDS[3]];
    assert!(matches!(choice("", Want::Model, &lacking).unwrap(), Choice::Indexed(_)));
    let all_below = ["config.json", "q/m-1-of-1.safetensors", "model.safetensors.index.json"];
    assert!(matches!(choice("", Want::Model, &all_below).unwrap(), Choice::Indexed(_)));
}

#[test]
fn an_index_that_names_what_is_not_there_says_what() {
    let lacking = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"];
    for (shards, words) in [
        (&SHARDS[1..3], &["names 1 of 2 shards", "`model.safetensors.index.json`"][..]),
        (&["mtp.safetensors"], &["lacks: mtp.safetensors;"]),
    ] {
        let text = indexed("", &lacking, shards).unwrap_err().to_string();
        assert!(words.iter().all(|w| text.contains(w)) && text.contains("its owner must add them"), "{text}");
        assert!(!text.contains("00001-of-00002"), "{text}");
    }
    // One of another folder is not below this one.
    let below = ["q/config.json", "q/model.safetensors.index.json", "q/b.safetensors", "a.safetensors"];
    assert!(indexed(":q", &below, &["a.safetensors"]).unwrap_err().to_string().contains("a.safetensors"));
    // Nothing else is there that could be meant.
    assert!(
        indexed("", &lacking[2..].iter().chain(&lacking[..1]).copied().collect::<Vec<_>>(), &["x.safetensors"])
            .is_err()
    );
}

#[test]
fn an_index_beside_weights_of_another_format_only_is_not_read() {
    let gguf = ["config.json", "m.gguf", "model.safetensors.index.json"];
    assert_eq!(model(&gguf), ["m.gguf"]);
    refused("", Want::Adapter, &SHARDS[1..], "unsupported_model_format", &["is a model"]);
}

#[test]
fn without_an_index_the_numbers_count() {
    let no_index = ["config.json", "x-1-of-2.safetensors", "x-2-of-2.safetensors"];
    assert_eq!(model(&no_index), no_index);
    assert_eq!(model(&["config.json", "consolidated.safetensors", "w.safetensors"]), ["config.json", "w.safetensors"]);
    refused("", Want::Model, &SHARDS[..2], "load_failed", &["1 of the 2 shards of model"]);
}

#[test]
fn pickles_and_other_layouts_are_never_chosen() {
    let files = ["config.json", "pytorch_model.bin", "training_args.bin"];
    refused("", Want::Model, &files, "unsupported_model_format", &["pytorch_model.bin", "pickle", "@refs/pr/1"]);
    let index = ["config.json", "model.safetensors.index.json", "pytorch_model-00001-of-00002.bin"];
    refused("", Want::Model, &index, "unsupported_model_format", &["pickle"]);
    refused("", Want::Model, &["config.json", "optimizer.pt"], "not_found", &["no weights of a model", "optimizer.pt"]);
    let own = ["params.json", "consolidated.safetensors", "tekken.json"];
    refused("", Want::Model, &own, "unsupported_model_format", &["`consolidated.safetensors`", "own code"]);
    refused("", Want::Model, &["model.safetensors"], "load_failed", &["no config.json"]);
    refused("", Want::Model, &["a/config.json", "b/config.json"], "not_found", &["hf:org/name:a, hf:org/name:b"]);
    refused("", Want::Model, &[], "not_found", &["no files"]);
    refused(":x", Want::Model, &["a/config.json"], "not_found", &["no folder `x`", "it has a"]);
}

#[test]
fn the_gguf_file_that_is_the_only_one_or_the_one_asked_for_is_chosen() {
    let one = ["README.md", "m.Q8_0.gguf", "mmproj-m-f16.gguf", "tokenizer.json", "config.json"];
    assert_eq!(model(&one), ["m.Q8_0.gguf", "tokenizer.json"]);
    for tail in ["#m.Q8_0.gguf", "#Q8_0", ":m.Q8_0.gguf"] {
        assert_eq!(chosen(tail, Want::Model, &one).unwrap(), model(&one), "a name changes nothing: {tail}");
    }
    assert_eq!(chosen("#m.Q8_0.gguf", Want::Adapter, &one).unwrap(), ["m.Q8_0.gguf"]);
    // Texts elsewhere may be those of another model.
    let apart = ["a/m.gguf", "a/tokenizer.json", "tokenizer_config.json"];
    for tail in ["", "#a/m.gguf"] {
        assert_eq!(chosen(tail, Want::Model, &apart).unwrap(), ["a/m.gguf"], "{tail}");
    }
    for tail in [":a", ":a/m.gguf"] {
        assert_eq!(chosen(tail, Want::Model, &apart).unwrap(), ["m.gguf", "tokenizer.json"], "{tail}");
    }
    let many = [
        "m-Q4_K.gguf",
        "m-Q4_K_M.gguf",
        "m-Q4_K_S.gguf",
        "m-UD-Q2_K_XL.gguf",
        "sub/m-Q5_0.gguf",
        "m.imatrix.gguf",
        "m-Q8_0-00001-of-00002.gguf",
        "m-Q8_0-00002-of-00002.gguf",
        "model.safetensors",
        "config.json",
    ];
    for (tail, expected) in [
        ("#m-Q4_K_S.gguf", "m-Q4_K_S.gguf"),
        (":m-Q4_K_S.gguf", "m-Q4_K_S.gguf"),
        ("#q4_k_m", "m-Q4_K_M.gguf"),
        ("#Q4_K", "m-Q4_K.gguf"),
        ("#UD-Q2_K_XL", "m-UD-Q2_K_XL.gguf"),
        ("#Q2_K_XL", "m-UD-Q2_K_XL.gguf"),
        ("#Q2_K", "m-UD-Q2_K_XL.gguf"),
        ("#Q5_0", "sub/m-Q5_0.gguf"),
        ("#sub/m-Q5_0.gguf", "sub/m-Q5_0.gguf"),
        (":sub/m-Q5_0.gguf", "m-Q5_0.gguf"),
        (":sub", "m-Q5_0.gguf"),
    ] {
        assert_eq!(chosen(tail, Want::Model, &many).unwrap(), [expected], "{tail}");
    }
    assert_eq!(chosen("", Want::Model, &many).unwrap(), ["config.json", "model.safetensors"]);
    let several = ["hf:org/name#m-Q4_K_M.gguf (13.0 MB)", "hf:org/name#m-Q4_K_S.gguf", "2 GGUF files"];
    refused("#Q4_K", Want::Model, &many[1..], "load_failed", &several);
    let ggufs = &many[..8];
    refused(
        "",
        Want::Model,
        ggufs,
        "load_failed",
        &["6 GGUF files", "m-Q8_0-00001-of-00002.gguf (52.0 MB, split, not read)"],
    );
    refused(
        "#Q8_0",
        Want::Model,
        &many,
        "unsupported_model_format",
        &["one part of a split", "hf:org/name#m-Q4_K.gguf"],
    );
    refused("#m-Q8_0-00002-of-00002.gguf", Want::Model, &many, "unsupported_model_format", &["one part of a split"]);
    refused("#Q9", Want::Model, &many, "not_found", &["`Q9` in its name", "hf:org/name#sub/m-Q5_0.gguf"]);
    refused("#4_K", Want::Model, &many, "not_found", &["`4_K` in its name"]);
    refused("#x.gguf", Want::Model, &["config.json"], "not_found", &["`x.gguf`", "no GGUF files"]);
    refused(":Q4_K_M", Want::Model, &many, "not_found", &["no folder `Q4_K_M`", "write hf:org/name#Q4_K_M"]);
}

#[test]
fn an_adapter_is_its_config_and_weights() {
    let adapter = |tail: &str, files: &[&str]| chosen(tail, Want::Adapter, files).unwrap();
    let files = [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "tokenizer.json",
        "optimizer.pt",
        "checkpoint-10/adapter_config.json",
        "checkpoint-10/adapter_model.safetensors",
    ];
    let expected = ["adapter_config.json", "adapter_model.safetensors"];
    assert_eq!(adapter("", &files), expected);
    assert_eq!(adapter(":checkpoint-10", &files), expected);
    let mlx = ["adapter_config.json", "adapters.safetensors", "0000100_adapters.safetensors"];
    assert_eq!(adapter("", &mlx), mlx[..2]);
    assert_eq!(adapter("", &["lora.gguf", "README.md"]), ["lora.gguf"]);
    assert_eq!(adapter("#b.gguf", &["a.gguf", "b.gguf"]), ["b.gguf"]);

    let a = Want::Adapter;
    refused("", a, &["a.gguf", "b.gguf"], "load_failed", &["2 GGUF files", "hf:org/name#a.gguf"]);
    refused("", a, &["adapter_config.json", "adapter_model.bin"], "unsupported_model_format", &["pickle"]);
    refused("", a, &["adapter_config.json"], "not_found", &["no weights of an adapter"]);
    refused("", a, &["adapter_model.safetensors"], "load_failed", &["no adapter_config.json"]);
    refused("", a, &["config.json", "model.safetensors"], "unsupported_model_format", &["is a model", "as model"]);
    refused("", a, &files[6..], "not_found", &["name one: hf:org/name:checkpoint-10"]);
    refused("", Want::Model, &files[..5], "unsupported_model_format", &["is an adapter", "as adapter"]);
}

#[test]
fn names_that_promise_more_shards_name_them() {
    let file = |path: &str| RepoFile { path: path.into(), size: 1, digest: None };
    let promised = |paths: &[&str]| promised_shards(&paths.iter().map(|p| file(p)).collect::<Vec<_>>());
    assert_eq!(
        promised(&["a/model-00002-of-00003.safetensors", "x-1-of-2.gguf", "x-2-of-2.gguf"]),
        ["a/model-00001-of-00003.safetensors", "a/model-00003-of-00003.safetensors"]
    );
    let none = [
        "m-1-of-99999999999.gguf",
        "m-1-of-4000000000.gguf",
        "m-0-of-2.gguf",
        "m-3-of-2.gguf",
        "m-of-2.gguf",
        "m--of-.x",
    ];
    assert!(promised(&none).is_empty());
}
