//! The backend as an application sees it: loads, logits, generations, and what goes wrong.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, ThreadId},
};

use llm_local_candle::CandleBackend;
use llm_local_core::{
    CancellationToken, Encoding, FinishReason, FloatType, GenerateRequest, InferenceBackend, KvCacheType, LoadOptions,
    LoadedModel, LogitsRequest, ModelInfo, ModelWeights, ProgressEvent, Result, Support, TensorData, TensorEntry,
    TensorSource, TextFiles,
};
use llm_local_weights::Checkpoint;
use pollster::block_on;
use serde_json::Value;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(path)
}

fn dense() -> Checkpoint {
    let files =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let path = |f: &str| fixture("models/tiny-llama").join(f);
    let files: BTreeMap<_, _> = files.iter().map(|f| (f.to_string(), path(f))).collect();
    Checkpoint::open("tiny-llama", &files).unwrap()
}

fn gguf() -> Checkpoint {
    let name = "tiny-llama-q8_0.gguf".to_owned();
    let path = fixture("gguf").join(&name);
    Checkpoint::open(&name, &BTreeMap::from([(name.clone(), path)])).unwrap()
}

fn options(context: usize) -> LoadOptions {
    LoadOptions::new(context).with_device("cpu")
}

fn weights(c: Checkpoint) -> ModelWeights {
    ModelWeights::new(c.info, Some(c.tensors), c.text)
}

fn load(c: Checkpoint, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
    block_on(CandleBackend::new().load(weights(c), o))
}

fn failure(c: Checkpoint, o: LoadOptions) -> llm_local_core::Error {
    load(c, o).err().expect("the load should fail")
}

/// Prompt and greedy continuation of the reference's first prompt, from transformers.
fn reference() -> (Vec<u32>, Vec<u32>) {
    let json: Value = serde_json::from_slice(&std::fs::read(fixture("reference/tiny-llama.json")).unwrap()).unwrap();
    let ids = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect();
    (ids(&json["results"][0]["prompt_ids"]), ids(&json["results"][0]["greedy_ids"]))
}

#[test]
fn a_loaded_model_generates_what_transformers_does() {
    let (prompt, greedy) = reference();
    let model = load(dense(), options(512)).unwrap();
    let info = model.info();
    assert_eq!((info.backend.as_str(), info.vocab_size, info.context_length), ("candle", 896, 512));
    assert_eq!((info.dtype, info.device.id.as_str()), (FloatType::F32, "cpu"));
    // One thread for each core, up to eight.
    assert_eq!(info.reads_at_once, candle_core::utils::get_num_threads().min(8));
    let request = GenerateRequest::new(prompt.clone()).with_max_tokens(greedy.len()).with_ignore_eos(true);
    let done = block_on(model.generate(request).complete()).unwrap();
    assert_eq!(done.tokens, greedy);
    assert!(done.text.starts_with(" there was a happy cat named Lily."), "{}", done.text);
    let logits = block_on(model.logits(LogitsRequest::new(prompt))).unwrap();
    assert_eq!(logits.len(), 896);
    assert_eq!((0..896).max_by(|a, b| logits[*a].total_cmp(&logits[*b])), Some(greedy[0] as usize));
    assert_eq!(model.memory().weights, 902_272 * 4);
    block_on(model.unload()).unwrap();
}

#[test]
fn generation_ends_with_the_context_and_a_longer_prompt_is_an_error() {
    for checkpoint in [dense(), gguf()] {
        let model = load(checkpoint, options(16)).unwrap();
        let request = GenerateRequest::new(vec![393; 10]).with_ignore_eos(true);
        let done = block_on(model.generate(request).complete()).unwrap();
        assert_eq!(done.finish_reason, Some(FinishReason::Length));
        assert_eq!(done.usage.prompt_tokens + done.usage.generated_tokens, 16);
        let error = block_on(model.generate(GenerateRequest::new(vec![393; 17])).complete()).unwrap_err();
        assert_eq!(error.code(), "context_length_exceeded");
    }
}

#[test]
fn a_context_that_the_model_cannot_hold_is_refused() {
    for checkpoint in [dense(), gguf()] {
        let error = failure(checkpoint, options(513));
        assert!(error.to_string().contains("513") && error.to_string().contains("512"), "{error}");
    }
    let backend = CandleBackend::new();
    assert!(backend.estimate(&dense().info, &options(0)).is_err());
}

#[test]
fn a_kv_cache_of_another_type_than_it_computes_with_is_refused() {
    let supports = |kv| CandleBackend::new().supports(&dense().info, &options(64).with_kv_cache(kv));
    for kv in [KvCacheType::Auto, KvCacheType::F32] {
        assert!(matches!(supports(kv), Support::Yes(_)), "{kv}");
    }
    for kv in [KvCacheType::F16, KvCacheType::Bf16, KvCacheType::Q8, KvCacheType::Q4] {
        let Support::No(why) = supports(kv) else { panic!("{kv} is not refused") };
        assert!(why.contains(&format!("kv_cache is {kv};")) && why.contains("f32"), "{why}");
    }
}

#[test]
fn progress_is_told_tensor_by_tensor() {
    for (checkpoint, tensors) in [(dense(), 38), (gguf(), 38)] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let events = heard.clone();
        let hear = move |event: &ProgressEvent| events.lock().unwrap().push(event.clone());
        load(checkpoint, options(64).with_progress(Arc::new(hear))).unwrap();
        let expected: Vec<_> = (1..=tensors).map(|done| ProgressEvent::loading(done, tensors)).collect();
        assert_eq!(*heard.lock().unwrap(), expected);
    }
}

/// A source that changes what one tensor gives, or cancels when it is asked for.
struct Tampered {
    inner: Arc<dyn TensorSource>,
    entries: Vec<TensorEntry>,
    name: &'static str,
    act: Act,
}

enum Act {
    /// Counts what is read after that.
    Cancel(CancellationToken, Arc<AtomicUsize>),
    Fail,
    /// Every tensor whose name ends so.
    FailAll(&'static str),
    Panic,
    Zeros,
    As(&'static str),
}

impl TensorSource for Tampered {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        match &self.act {
            Act::Cancel(token, late) if token.is_cancelled() => drop(late.fetch_add(1, Ordering::Relaxed)),
            Act::FailAll(end) if name.ends_with(end) => {
                return Err(llm_local_core::Error::load(name, "the disk is gone"));
            }
            _ => {}
        }
        if name == self.name {
            match &self.act {
                Act::Cancel(token, _) => token.cancel(),
                Act::FailAll(_) => {}
                Act::Fail => return Err(llm_local_core::Error::load(name, "the disk is gone")),
                Act::Panic => panic!("the disk is on fire"),
                Act::As(other) => return self.inner.read(other, want),
                Act::Zeros => return Ok(TensorData::Bytes(vec![0; 896 * 128 * 2])),
            }
        }
        self.inner.read(name, want)
    }
}

fn tampered(c: Checkpoint, name: &'static str, act: Act) -> Checkpoint {
    let mut entries = c.tensors.entries().to_vec();
    if !entries.iter().any(|e| e.name == name) {
        entries.push(TensorEntry::new(name, vec![896, 128], Encoding::Float(FloatType::Bf16)));
    }
    let mut changed = c;
    changed.info = Arc::new(ModelInfo::new(changed.info.id.clone(), changed.info.format.clone(), entries.clone()));
    changed.tensors = Arc::new(Tampered { inner: changed.tensors, entries, name, act });
    changed
}

#[test]
fn a_load_is_cancelled_between_tensors() {
    for (checkpoint, name) in [(dense(), "model.layers.1.mlp.up_proj.weight"), (gguf(), "blk.1.ffn_up.weight")] {
        let done = Arc::new(Mutex::new(0));
        let count = done.clone();
        let o = options(64).with_progress(Arc::new(move |_: &ProgressEvent| *count.lock().unwrap() += 1));
        let late = Arc::new(AtomicUsize::new(0));
        let cancelling = tampered(checkpoint, name, Act::Cancel(o.cancel.clone(), late.clone()));
        assert_eq!(failure(cancelling, o).code(), "cancelled");
        // At least what comes behind it in its own layer is not read.
        let done = *done.lock().unwrap();
        assert!(done < 38, "{done} tensors were read");
        // With a thread for each of the four layers and one for what is of none, four others may just be beginning one.
        let late = late.load(Ordering::Relaxed);
        assert!(late <= 4, "{late} tensors were begun after the load was cancelled");
    }
}

#[test]
fn a_tensor_that_cannot_be_read_is_named() {
    for (checkpoint, name) in [(dense(), "model.layers.1.mlp.up_proj.weight"), (gguf(), "blk.1.ffn_up.weight")] {
        let error = failure(tampered(checkpoint, name, Act::Fail), options(64));
        assert_eq!(error.code(), "load_failed");
        assert!(error.to_string().contains(name) && error.to_string().contains("disk is gone"), "{error}");
    }
    let error = failure(tampered(dense(), "model.norm.weight", Act::Panic), options(64));
    assert!(error.to_string().starts_with("loading `tiny-llama` failed"), "{error}");
    assert!(error.to_string().contains("the disk is on fire"), "{error}");
}

#[test]
fn of_several_broken_layers_the_first_is_named() {
    for _ in 0..20 {
        for (checkpoint, end, first) in [
            (dense(), "mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight"),
            (gguf(), "ffn_down.weight", "blk.0.ffn_down.weight"),
        ] {
            let error = failure(tampered(checkpoint, first, Act::FailAll(end)), options(64)).to_string();
            assert!(error.contains(first) && error.contains("disk is gone"), "{error}");
        }
    }
}

#[test]
fn a_broken_tokenizer_is_named_and_not_the_weights_beside_it() {
    let mut checkpoint = tampered(dense(), "model.layers.1.mlp.up_proj.weight", Act::Fail);
    let files = BTreeMap::from([("tokenizer.json".to_owned(), fixture("models/tiny-llama/config.json"))]);
    checkpoint.text = TextFiles::from_files(files);
    let error = failure(checkpoint, options(64)).to_string();
    assert!(error.contains("tokenizer") && !error.contains("disk is gone"), "{error}");
}

/// A source that notes what is read, and on which thread, and says that the order matters.
struct Ordered {
    inner: Arc<dyn TensorSource>,
    reads: Arc<Mutex<Vec<(String, ThreadId)>>>,
}

impl TensorSource for Ordered {
    fn entries(&self) -> &[TensorEntry] {
        self.inner.entries()
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        self.reads.lock().unwrap().push((name.to_owned(), thread::current().id()));
        self.inner.read(name, want)
    }

    fn depends_on_order(&self) -> bool {
        true
    }
}

#[test]
fn a_source_that_depends_on_the_order_is_read_in_the_same_one_by_one_thread() {
    for checkpoint in [dense, gguf] {
        let order = || {
            let reads = Arc::new(Mutex::new(Vec::new()));
            let mut checkpoint = checkpoint();
            checkpoint.tensors = Arc::new(Ordered { inner: checkpoint.tensors, reads: reads.clone() });
            load(checkpoint, options(64)).unwrap();
            let (names, threads): (Vec<_>, Vec<_>) = reads.lock().unwrap().drain(..).unzip();
            assert_eq!(names.len(), 38);
            assert!(threads.iter().all(|thread| *thread == threads[0]), "{threads:?}");
            names
        };
        let first = order();
        assert!((0..5).all(|_| order() == first));
    }
}

#[test]
fn every_load_of_a_model_computes_the_same_bits() {
    for checkpoint in [dense, gguf] {
        let bits = || {
            let model = load(checkpoint(), options(64)).unwrap();
            let logits = block_on(model.logits(LogitsRequest::new(vec![1, 393, 17, 5]))).unwrap();
            logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let first = bits();
        assert!((0..5).all(|_| bits() == first));
    }
}

/// candle's loader takes any head that cannot be read for a tied one.
#[test]
fn a_gguf_head_that_cannot_be_read_is_no_tied_head() {
    let error = failure(tampered(gguf(), "output.weight", Act::Fail), options(64));
    assert!(error.to_string().contains("output.weight"), "{error}");
}

#[test]
fn giving_a_load_up_leaves_the_callers_token_alone() {
    let o = options(64);
    let token = o.cancel.clone();
    let backend = CandleBackend::new();
    let mut load = backend.load(weights(dense()), o);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let _ = load.as_mut().poll(&mut context);
    drop(load);
    assert!(!token.is_cancelled());
}

#[test]
fn a_second_head_beside_a_tied_one_must_be_the_same() {
    let error = failure(tampered(dense(), "lm_head.weight", Act::Zeros), options(64));
    assert!(error.to_string().contains("tie_word_embeddings"), "{error}");
    load(tampered(dense(), "lm_head.weight", Act::As("model.embed_tokens.weight")), options(64)).unwrap();
}

#[test]
fn what_is_not_supported_is_not_loaded() {
    let checkpoint = tampered(gguf(), "blk.0.attn_sinks.weight", Act::Panic);
    let error = failure(checkpoint, options(64));
    assert_eq!(error.code(), "unsupported_model_format");
    assert!(error.to_string().contains("blk.0.attn_sinks.weight"), "{error}");
    let without = ModelWeights::new(dense().info, None, dense().text);
    let error = block_on(CandleBackend::new().load(without, options(64))).err().unwrap();
    assert!(error.to_string().contains("tensors"), "{error}");
}

/// What a tokenizer takes of the heap, measured in a process of its own, where nothing else is allocated meanwhile.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod text_memory {
    use std::{env, process::Command, sync::Arc};

    use llm_local_backend_common::text::TextPipeline;
    use llm_local_core::{Encoding, FloatType, GgufMetadata, GgufValue, ModelFormat};

    use super::*;

    const SEEN: &str = "LLM_LOCAL_TEST_TEXT";
    const MEASURED: &str = "bytes of text: ";

    fn heap() -> u64 {
        // SAFETY: it takes nothing, and only counts.
        let info = unsafe { libc::mallinfo2() };
        (info.uordblks + info.hblkhd) as u64
    }

    /// SmolLM2's tokenizer, as GGUF metadata.
    fn smollm2() -> GgufMetadata {
        let text = std::fs::read(fixture("tokenizers/smollm2-135m.gguf.json")).unwrap();
        let Value::Object(all) = serde_json::from_slice(&text).unwrap() else { panic!("no object") };
        let value = |v: &Value| match v {
            Value::String(s) => Some(GgufValue::String(s.clone())),
            Value::Bool(b) => Some(GgufValue::Bool(*b)),
            Value::Number(n) => n.as_i64().map(|n| GgufValue::Int(n.into())),
            Value::Array(a) if a.iter().all(Value::is_string) => {
                Some(GgufValue::Strings(a.iter().map(|s| s.as_str().unwrap().to_owned()).collect()))
            }
            Value::Array(a) => Some(GgufValue::Ints(a.iter().filter_map(Value::as_i64).collect())),
            _ => None,
        };
        all.iter().filter_map(|(key, v)| Some((key.clone(), value(v)?))).collect()
    }

    /// A `tokenizer.json` of `tokens` tokens of one or two letters, and a merge to each of the latter.
    fn bpe(tokens: usize) -> String {
        let letter = |i: usize| char::from_u32(0x4e00 + i as u32).unwrap();
        let mut vocab: Vec<String> = (0..512).map(|i| letter(i).to_string()).collect();
        let mut merges = Vec::new();
        for i in 0..tokens - 512 {
            let (a, b) = (i / 512, i % 512);
            vocab.push(format!("{}{}", letter(a), letter(b)));
            merges.push([letter(a).to_string(), letter(b).to_string()]);
        }
        let vocab: serde_json::Map<String, Value> = vocab.into_iter().enumerate().map(|(i, t)| (t, i.into())).collect();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges }
        });
        json.to_string()
    }

    #[allow(clippy::print_stdout)] // the child's answer
    #[test]
    fn the_text_side_takes_about_what_is_estimated() {
        if let Ok(which) = env::var(SEEN) {
            let text = match which.as_str() {
                "smollm2" => TextFiles::from_gguf(Arc::new(smollm2())),
                "tiny" => dense().text,
                path => TextFiles::from_files(BTreeMap::from([("tokenizer.json".to_owned(), PathBuf::from(path))])),
            };
            let before = heap();
            let pipeline = TextPipeline::open(&which, &text).unwrap();
            println!("{MEASURED}{}", heap() - before);
            drop(pipeline);
            return;
        }
        let measured = |which: &str| -> u64 {
            let name = "text_memory::the_text_side_takes_about_what_is_estimated";
            let mut child = Command::new(env::current_exe().unwrap());
            let output = child.args(["--exact", name, "--nocapture"]).env(SEEN, which).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let at = text.find(MEASURED).unwrap_or_else(|| panic!("{which}: {text}")) + MEASURED.len();
            text[at..].lines().next().unwrap().parse().unwrap()
        };
        let estimated = |info: &ModelInfo| CandleBackend::new().estimate(info, &options(16)).unwrap().text;
        // A description of that vocabulary around the tokenizer, of which the estimate sees nothing else.
        let of_vocab = |vocab: usize| {
            let c = dense();
            let ModelFormat::Safetensors { config } = &c.info.format else { panic!("no config") };
            let mut config = Value::clone(config);
            config["vocab_size"] = vocab.into();
            let mut tensors = c.info.tensors.to_vec();
            let embedding = tensors.iter_mut().find(|t| t.name == "model.embed_tokens.weight").unwrap();
            *embedding = TensorEntry::new(&embedding.name, vec![vocab, 128], Encoding::Float(FloatType::Bf16));
            ModelInfo::new("m", ModelFormat::Safetensors { config: Arc::new(config) }, tensors)
        };
        let folder = env::temp_dir().join(format!("llm-local-text-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let written = |name: &str, json: String| {
            let path = folder.join(name);
            std::fs::write(&path, json).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let cases = [
            ("tiny".to_owned(), dense().info.as_ref().clone()),
            ("smollm2".to_owned(), of_vocab(49_152)),
            (written("32k.json", bpe(32_000)), of_vocab(32_000)),
            (written("150k.json", bpe(150_000)), of_vocab(150_000)),
        ];
        for (which, info) in cases {
            let (measured, estimated) = (measured(&which), estimated(&info));
            // Found: 0.2 MB, 8.9, 7.6 and 32.0, and estimated 1.3, 10.7, 9.7 and 36.9: a constant part of 1 MiB and two merges per
            // token are more than these have.
            let most = measured * 6 / 5 + (1 << 20) + (1 << 17);
            assert!(measured <= estimated && estimated <= most, "{which}: {measured} found, {estimated} estimated");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
