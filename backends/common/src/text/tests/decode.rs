//! Ids to text, one by one.

use llm_local_core::Input;
use proptest::prelude::*;
use tokenizers::Tokenizer;

use super::*;

const AWKWARD: [&str; 9] = [
    "🙂🙃👩‍👩‍👧 emoji",
    "日本語のテキストと中文",
    "e\u{301} n\u{303} \u{1112}\u{1161}\u{11ab} क्षि",
    "  leading and trailing  ",
    "tab\there\r\nand\n\n\nlines",
    "½²٣ ١٢٣ ﷽ \u{200d}\u{feff}",
    "العربية עברית",
    "plain ascii, with 12 numbers and 'quotes'.",
    "\u{fffd} is a character",
];

/// What is pushed, and the finish as the last.
fn stream(pipeline: &TextPipeline, ids: &[u32]) -> Vec<String> {
    let mut decoder = pipeline.decoder();
    let mut out: Vec<String> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    out.push(decoder.finish().unwrap());
    out
}

/// Ids of a text, without what the tokenizer adds.
fn ids(pipeline: &TextPipeline, text: &str) -> Vec<u32> {
    let ids = pipeline.encode(&Input::from(text)).unwrap();
    ids.into_iter().filter(|id| !(pipeline.token_count() == 600 && *id == 1)).collect()
}

/// Every prefix of what is streamed is a prefix of `whole`, so no character is ever split.
fn assert_grows_to(whole: &str, pieces: &[String]) {
    let mut text = String::new();
    for piece in pieces {
        text.push_str(piece);
        assert!(whole.starts_with(&text), "{text:?} is no start of {whole:?}");
    }
    assert_eq!(text, whole);
}

#[test]
fn awkward_texts_come_back_whole_and_no_prefix_has_half_a_character() {
    let (bytes, pieces, tiny) = (smollm2(), sentencepiece(), tiny_llama());
    for text in AWKWARD {
        assert_grows_to(text, &stream(&bytes, &ids(&bytes, text)));
        assert_grows_to(text, &stream(&tiny, &ids(&tiny, text)));
        // SentencePiece puts a space before a text. After a prompt it is a real one, and it stays.
        assert_grows_to(&format!(" {text}"), &stream(&pieces, &ids(&pieces, text)));
    }
}

#[test]
fn an_emoji_of_four_byte_tokens_comes_with_its_last_byte() {
    for pipeline in [tiny_llama(), sentencepiece()] {
        let ids = ids(&pipeline, "🙂");
        let ids = &ids[ids.len() - 4..];
        assert_eq!(stream(&pipeline, ids), ["", "", "", "🙂", ""]);
    }
}

#[test]
fn broken_bytes_become_replacement_characters_and_spoil_nothing_else() {
    let pipeline = sentencepiece();
    let byte = |b: u32| 5 + b;
    let run = 307;
    // The first two bytes of an emoji, then a word.
    assert_eq!(stream(&pipeline, &[byte(0xF0), byte(0x9F), run]).concat(), "\u{fffd} run");
    // A whole letter before a broken one stays what it was.
    assert_eq!(stream(&pipeline, &[byte(0x61), byte(0xE5), run]), ["a", "", "\u{fffd} run", ""]);
    assert_eq!(stream(&pipeline, &[byte(0xE5), byte(0xE5), byte(0x62)]), ["", "\u{fffd}", "\u{fffd}b", ""]);
    // The end comes before the character is complete.
    assert_eq!(stream(&pipeline, &[run, byte(0xE6), byte(0x97)]), [" run", "", "", "\u{fffd}"]);
}

#[test]
fn a_generation_that_continues_a_prompt_keeps_its_leading_space() {
    let reference = read_json("reference/tiny-llama.json");
    let pipeline = tiny_llama();
    for result in reference["results"].as_array().unwrap() {
        let ids: Vec<u32> =
            result["greedy_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        // The reference writes special tokens out; a generation does not.
        let mut expected = result["greedy_text"].as_str().unwrap().to_owned();
        for special in ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|pad|>"] {
            expected = expected.replace(special, "");
        }
        assert_grows_to(&expected, &stream(&pipeline, &ids));
    }
}

#[test]
fn special_and_unknown_ids_have_no_text() {
    let pipeline = tiny_llama();
    assert_eq!(stream(&pipeline, &[1, 2, 0, 700_000]).concat(), "");
    // Not even between the bytes of one character.
    let mut ids = ids(&pipeline, "🙂");
    ids.insert(2, 1);
    assert_eq!(stream(&pipeline, &ids).concat(), "🙂");
}

#[test]
fn a_finished_decoder_starts_anew() {
    let pipeline = tiny_llama();
    let first = ids(&pipeline, "🙂")[0];
    let mut decoder = pipeline.decoder();
    assert_eq!(decoder.push(first).unwrap(), "");
    assert_eq!(decoder.finish().unwrap(), "\u{fffd}");
    assert_eq!(decoder.finish().unwrap(), "");
    let text: String = ids(&pipeline, "🙂").iter().map(|&id| decoder.push(id).unwrap()).collect();
    assert_eq!(text, "🙂");
}

#[test]
fn decoders_that_join_words_join_them_across_pushes() {
    let joined = |decoder: Value, model: Value, ids: &[u32]| {
        let mut file = word_tokenizer();
        file["decoder"] = decoder;
        file["model"] = model;
        file["added_tokens"] = json!([]);
        stream(&from_files(&[("tokenizer.json", file)]).unwrap(), ids).concat()
    };
    let words = |texts: &[&str]| {
        let vocab: serde_json::Map<_, _> = texts.iter().enumerate().map(|(i, t)| ((*t).to_owned(), json!(i))).collect();
        json!({"type": "WordLevel", "unk_token": texts[0], "vocab": vocab})
    };
    // No decoder: words are joined by spaces. The first continues the prompt.
    assert_eq!(joined(Value::Null, words(&["<s>", "a", "b"]), &[1, 2, 1]), " a b a");
    let suffix = json!({"type": "BPEDecoder", "suffix": "</w>"});
    assert_eq!(joined(suffix, words(&["<s>", "a", "b</w>"]), &[1, 2, 1, 2]), "ab ab");
    let pieces = json!({"type": "WordPiece", "prefix": "##", "cleanup": false});
    assert_eq!(joined(pieces, words(&["<s>", "un", "##do"]), &[1, 2, 1, 2]), " undo undo");
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    assert_eq!(joined(metaspace, words(&["<s>", "a", "▁b"]), &[2, 2, 1]), " b ba");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_text_comes_back_whole(text in "\\PC{0,24}|[🙂日e\u{301}\\n a-c]{0,24}") {
        thread_local! { static PIPELINES: (TextPipeline, TextPipeline) = (tiny_llama(), sentencepiece()); }
        PIPELINES.with(|(bytes, pieces)| {
            // Texts that spell special or user-defined tokens are another matter.
            if text.contains('<') || text.contains('▁') {
                return;
            }
            assert_grows_to(&text, &stream(bytes, &ids(bytes, &text)));
            let whole = if text.is_empty() { String::new() } else { format!(" {text}") };
            assert_grows_to(&whole, &stream(pieces, &ids(pieces, &text)));
        });
    }

    #[test]
    fn any_ids_of_a_byte_level_tokenizer_give_the_text_of_the_whole(ids in proptest::collection::vec(0u32..838, 0..24)) {
        thread_local! {
            static BOTH: (TextPipeline, Tokenizer) =
                (tiny_llama(), Tokenizer::from_file(fixture("models/tiny-llama/tokenizer.json")).unwrap());
        }
        BOTH.with(|(pipeline, tokenizer)| {
            let pieces = stream(pipeline, &ids);
            assert_eq!(pieces.concat(), tokenizer.decode(&ids, true).unwrap());
        });
    }

    #[test]
    fn any_ids_of_a_byte_fallback_tokenizer_give_valid_text_without_an_error(
        ids in proptest::collection::vec(0u32..600, 0..24)
    ) {
        thread_local! { static PIPELINE: TextPipeline = sentencepiece(); }
        PIPELINE.with(|pipeline| {
            let text = stream(pipeline, &ids).concat();
            // Bytes and pieces put together, as a decoder that sees all at once would.
            let gguf = metadata("tokenizers/sentencepiece.gguf.json");
            let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap();
            let mut bytes = Vec::new();
            for &id in ids.iter().filter(|&&id| id > 2) {
                match tokens[id as usize].strip_prefix("<0x") {
                    Some(hex) => bytes.push(u8::from_str_radix(&hex[..2], 16).unwrap()),
                    None => bytes.extend(tokens[id as usize].replace('▁', " ").into_bytes()),
                }
            }
            assert_eq!(text, String::from_utf8_lossy(&bytes));
        });
    }
}
