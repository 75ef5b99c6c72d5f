//! Text to ids: against transformers, SentencePiece and the tokenizer files themselves.

use llm_local_core::{Input, TextFiles, model::GgufValue};
use llm_local_weights::GgufSource;
use serde_json::{Value, json};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

use super::*;
use crate::text::gguf_tokenizer::PreTokenizer;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn text(text: &str) -> Input {
    Input::from(text)
}

/// Every case of `[{"text": …, "ids": …}]`.
fn check(pipeline: &TextPipeline, reference: &str, cases: usize) {
    let reference = read_json(reference);
    let reference = reference.as_array().unwrap();
    assert_eq!(reference.len(), cases);
    for case in reference {
        let prompt = case["text"].as_str().unwrap();
        assert_eq!(pipeline.encode(&text(prompt)).unwrap(), ids(&case["ids"]), "{prompt:?}");
    }
}

#[test]
fn smollm2_from_gguf_metadata_gives_the_ids_of_transformers() {
    check(&smollm2(), "reference/smollm2-135m.tokenizer.json", 11);
}

#[test]
fn smollm2_from_tokenizer_json_gives_the_ids_of_transformers() {
    let gguf = metadata("tokenizers/smollm2-135m.gguf.json");
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap();
    let special = |(id, _): &(usize, &String)| gguf.ints("tokenizer.ggml.token_type").unwrap()[*id] == 3;
    let added = |(id, token): (usize, &String)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": tokens.iter().enumerate().filter(special).map(added).collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect::<serde_json::Map<_, _>>(),
            "merges": gguf.strings("tokenizer.ggml.merges").unwrap()},
    });
    let pipeline = from_files(&[("tokenizer.json", tokenizer)]).unwrap();
    check(&pipeline, "reference/smollm2-135m.tokenizer.json", 11);
    assert_eq!(pipeline.token_count(), 49152);
}

#[test]
fn without_the_digits_step_the_ids_differ_so_the_reference_can_tell() {
    let mut gguf = metadata("tokenizers/smollm2-135m.gguf.json");
    gguf.insert("tokenizer.ggml.pre", GgufValue::String("gpt-2".into()));
    let with = smollm2().encode(&text("a  5 b\n\n 12")).unwrap();
    assert_ne!(from_metadata(gguf).encode(&text("a  5 b\n\n 12")).unwrap(), with);
}

#[test]
fn sentencepiece_metadata_gives_the_ids_of_sentencepiece() {
    check(&sentencepiece(), "tokenizers/sentencepiece.reference.json", 78);
}

#[test]
fn tiny_llama_gives_the_prompts_of_the_reference() {
    let pipeline = tiny_llama();
    assert_eq!(pipeline.token_count(), 838);
    let reference = read_json("reference/tiny-llama.json");
    for result in reference["results"].as_array().unwrap() {
        let prompt = result["prompt"].as_str().unwrap();
        assert_eq!(pipeline.encode(&text(prompt)).unwrap(), ids(&result["prompt_ids"]), "{prompt:?}");
    }
}

#[test]
fn tiny_llama_as_a_gguf_file_is_the_same_as_its_tokenizer_json() {
    let (json, files) = (tiny_llama(), ["f16", "bf16", "q8_0", "q4_0"]);
    for file in files {
        let source = GgufSource::open(&fixture(&format!("gguf/tiny-llama-{file}.gguf"))).unwrap();
        let gguf = TextPipeline::open(file, &TextFiles::from_gguf(Arc::clone(source.metadata()))).unwrap();
        assert_eq!((gguf.token_count(), gguf.eos_ids()), (json.token_count(), json.eos_ids()));
        let chat = Input::Messages(vec![llm_local_core::Message::user("Tell me a story about a frog.")]);
        assert_eq!(gguf.encode(&chat).unwrap(), json.encode(&chat).unwrap());
        for prompt in ["Once upon a time", "a  5 b\n\n 12 🙂", "<|im_start|>user\nHi<|im_end|>"] {
            assert_eq!(gguf.encode(&text(prompt)).unwrap(), json.encode(&text(prompt)).unwrap(), "{prompt:?}");
        }
    }
}

#[test]
fn each_pre_tokenizer_splits_as_the_reference_does() {
    let reference = read_json("tokenizers/pre_tokenizers.json");
    let sample = reference["text"].as_str().unwrap();
    let pieces = reference["pieces"].as_object().unwrap();
    assert_eq!(pieces.len(), PreTokenizer::families().count(), "a family has no reference");
    for (name, expected) in pieces {
        let mut split = PreTokenizedString::from(sample);
        let step = PreTokenizer::of("model", Some(name)).unwrap().build("model").unwrap();
        step.pre_tokenize(&mut split).unwrap();
        let found: Vec<&str> = split
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(_, (start, end), _)| &sample[start..end])
            .collect();
        assert_eq!(json!(found), *expected, "{name}");
    }
}

#[test]
fn an_unknown_pre_tokenizer_is_refused_with_the_known_ones() {
    let mut gguf = metadata("tokenizers/sentencepiece.gguf.json");
    gguf.insert("tokenizer.ggml.model", GgufValue::String("gpt2".into()));
    gguf.insert("tokenizer.ggml.pre", GgufValue::String("kimi-k2".into()));
    let error = TextPipeline::open("m.gguf", &TextFiles::from_gguf(Arc::new(gguf))).unwrap_err();
    assert_eq!(error.code(), "unsupported_model_format");
    let message = error.to_string();
    assert!(
        ["m.gguf", "`kimi-k2`", "smollm", "llama-bpe", "folder that holds both"]
            .iter()
            .all(|part| message.contains(part)),
        "{message}"
    );
}

#[test]
fn a_tokenizer_json_replaces_gguf_metadata_that_cannot_be_used() {
    let mut gguf = metadata("tokenizers/sentencepiece.gguf.json");
    gguf.insert("tokenizer.ggml.tokens", GgufValue::Bool(true));
    let mut files = TextFiles::from_gguf(Arc::new(gguf));
    let error = TextPipeline::open("m.gguf", &files).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("folder that holds both"), "{error}");
    files.files = tiny_llama_files();
    let (found, expected) = (TextPipeline::open("m.gguf", &files).unwrap(), tiny_llama());
    assert_eq!(found.encode(&text("Once upon a time")).unwrap(), expected.encode(&text("Once upon a time")).unwrap());
}

#[test]
fn broken_metadata_is_refused_by_what_is_wrong_with_it() {
    type Change = (&'static str, GgufValue);
    let strings = |texts: &[&str]| GgufValue::Strings(texts.iter().map(|&t| t.to_owned()).collect());
    let spm = "tokenizers/sentencepiece.gguf.json";
    let gpt2 = || ("tokenizer.ggml.model", GgufValue::String("gpt2".into()));
    let types = || ("tokenizer.ggml.token_type", GgufValue::Bool(true));
    let cases: Vec<(Vec<Change>, &str)> = vec![
        (vec![("tokenizer.ggml.model", GgufValue::String("t5".into()))], "`t5`"),
        (vec![("tokenizer.ggml.tokens", GgufValue::Bool(true))], "no `tokenizer.ggml.tokens`"),
        (vec![("tokenizer.ggml.token_type", GgufValue::Ints(vec![1; 3]))], "3 values for 600 tokens"),
        (
            vec![("tokenizer.ggml.scores", GgufValue::Bool(true))],
            "`tokenizer.ggml.scores` of its GGUF metadata has no values",
        ),
        (vec![("tokenizer.ggml.scores", GgufValue::Floats(vec![0.0; 5]))], "has 5 values"),
        (vec![("tokenizer.ggml.scores", GgufValue::Floats(vec![f32::NAN; 600]))], "not numbers"),
        (vec![types(), ("tokenizer.ggml.tokens", strings(&["a", "b", "a"]))], "tokens 0 and 2"),
        (vec![gpt2()], "no `tokenizer.ggml.merges`"),
        (
            vec![
                gpt2(),
                types(),
                ("tokenizer.ggml.tokens", strings(&["a", "b"])),
                ("tokenizer.ggml.merges", strings(&["a b"])),
            ],
            "merge 0 of its GGUF metadata is `a b`",
        ),
        (
            vec![
                ("tokenizer.ggml.add_eos_token", GgufValue::Bool(true)),
                ("tokenizer.ggml.eos_token_id", GgufValue::Int(9999)),
            ],
            "`tokenizer.ggml.eos_token_id` names no token",
        ),
    ];
    for (changes, why) in cases {
        let mut gguf = metadata(spm);
        for (key, value) in changes {
            gguf.insert(key, value);
        }
        let error = TextPipeline::open("model", &TextFiles::from_gguf(Arc::new(gguf))).unwrap_err().to_string();
        assert!(error.contains(why), "expected {why:?} in {error}");
    }
}

#[test]
fn a_missing_tokenizer_says_what_was_looked_for_and_what_is_there() {
    let error = from_files(&[("config.json", json!({}))]).unwrap_err();
    assert_eq!(error.code(), "not_found");
    let message = error.to_string();
    assert!(message.contains("looked for tokenizer.json") && message.contains("found config.json"), "{message}");
    let error = TextPipeline::open("model", &TextFiles::default()).unwrap_err().to_string();
    assert!(error.contains("found no files"), "{error}");
}

#[test]
fn a_tokenizer_json_that_is_none_names_its_path() {
    // The last makes the crate's reader panic.
    let merge = json!({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}});
    for broken in [json!("not json"), json!({"model": {"type": "Magic"}}), merge] {
        let error = from_files(&[("tokenizer.json", broken)]).unwrap_err();
        assert_eq!(error.code(), "load_failed");
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}

#[test]
fn truncation_and_padding_of_the_file_are_not_applied() {
    let mut tokenizer = word_tokenizer();
    tokenizer["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    tokenizer["padding"] = json!({"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "</s>"});
    let pipeline = from_files(&[("tokenizer.json", tokenizer)]).unwrap();
    assert_eq!(pipeline.encode(&text("hello world hello world")).unwrap(), [0, 3, 4, 3, 4]);
}

#[test]
fn text_gets_the_tokens_that_the_tokenizer_adds_and_tokens_stay_as_they_are() {
    let pipeline = from_files(&[("tokenizer.json", word_tokenizer())]).unwrap();
    assert_eq!(pipeline.encode(&text("hello <|turn|> world")).unwrap(), [0, 3, 2, 4]);
    assert_eq!(pipeline.encode(&Input::Tokens(vec![4, 99_999, 0])).unwrap(), [4, 99_999, 0]);
    assert_eq!(pipeline.token_count(), 5);
}

#[test]
fn gguf_metadata_decides_about_begin_and_end_of_sequence() {
    for (key, value, expected) in [
        ("tokenizer.ggml.add_bos_token", false, vec![307]),
        ("tokenizer.ggml.add_bos_token", true, vec![1, 307]),
        ("tokenizer.ggml.add_eos_token", true, vec![1, 307, 2]),
    ] {
        let mut gguf = metadata("tokenizers/sentencepiece.gguf.json");
        gguf.insert(key, GgufValue::Bool(value));
        assert_eq!(from_metadata(gguf).encode(&text("run")).unwrap(), expected, "{key} {value}");
    }
    // Without the key: SentencePiece adds its begin of sequence, byte-level BPE does not, Llama 3's does.
    let mut gguf = metadata("tokenizers/sentencepiece.gguf.json");
    gguf.insert("tokenizer.ggml.add_bos_token", GgufValue::Int(0));
    assert_eq!(from_metadata(gguf).encode(&text("run")).unwrap(), [1, 307]);
    for (pre, expected) in [("smollm", 1), ("llama-bpe", 2)] {
        let mut gguf = metadata("tokenizers/smollm2-135m.gguf.json");
        gguf.insert("tokenizer.ggml.add_bos_token", GgufValue::Int(0));
        gguf.insert("tokenizer.ggml.pre", GgufValue::String(pre.into()));
        assert_eq!(from_metadata(gguf).encode(&text("Hello")).unwrap().len(), expected, "{pre}");
    }
}

#[test]
fn the_space_before_a_text_follows_the_metadata() {
    let mut gguf = metadata("tokenizers/sentencepiece.gguf.json");
    gguf.insert("tokenizer.ggml.add_space_prefix", GgufValue::Bool(false));
    let without = from_metadata(gguf).encode(&text(" run")).unwrap();
    assert_eq!(without, sentencepiece().encode(&text("run")).unwrap());
}

#[test]
fn user_defined_tokens_are_recognized_in_text_and_have_a_text() {
    let pipeline = sentencepiece();
    let ids = pipeline.encode(&text("<tool>run</tool></s>")).unwrap();
    assert_eq!(ids, [1, 3, 307, 4, 2]);
    let mut decoder = pipeline.decoder();
    let spoken: String = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    assert_eq!(spoken, "<tool> run</tool>");
}

#[test]
fn padding_at_the_end_of_a_vocabulary_is_not_counted() {
    let mut gguf = metadata("tokenizers/sentencepiece.gguf.json");
    let mut tokens = gguf.strings("tokenizer.ggml.tokens").unwrap().to_vec();
    let mut kinds = gguf.ints("tokenizer.ggml.token_type").unwrap().to_vec();
    let mut scores = gguf.floats("tokenizer.ggml.scores").unwrap().to_vec();
    for n in 0..40 {
        tokens.push(format!("[PAD{n}]"));
        kinds.push(5);
        scores.push(-1e4);
    }
    gguf.insert("tokenizer.ggml.tokens", GgufValue::Strings(tokens));
    gguf.insert("tokenizer.ggml.token_type", GgufValue::Ints(kinds));
    gguf.insert("tokenizer.ggml.scores", GgufValue::Floats(scores));
    let pipeline = from_metadata(gguf);
    assert_eq!(pipeline.token_count(), 600);
    check(&pipeline, "tokenizers/sentencepiece.reference.json", 78);
}
