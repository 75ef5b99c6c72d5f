//! The backend as an application sees it: loads, logits, generations, and what goes wrong.
#![cfg(mlx)]

mod common;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    thread,
};

use common::{checkpoint, dense, fixture, load, packed, reference, weights};
use llm_local_core::{
    CancellationToken, DeviceKind, Encoding, Error, FinishReason, FloatType, GenerateRequest, GenerationEvent,
    InferenceBackend, KvCacheType, LoadOptions, LogitsRequest, LoraAdapter, LoraModule, ModelInfo, ModelWeights,
    ProgressEvent, Result, Support, TensorData, TensorEntry, TensorSource, TextFiles, lora::Floats,
};
use llm_local_mlx::MlxBackend;
use llm_local_testkit::{
    conformance::{self, UnmergedCase},
    fakes::CountingTensorSource,
};
use llm_local_weights::{Checkpoint, SafetensorsSource};
use pollster::block_on;

fn options(context: usize) -> LoadOptions {
    LoadOptions::new(context)
}

fn failure(c: Checkpoint, o: LoadOptions) -> Error {
    load(c, o).err().expect("the load should fail")
}

#[test]
fn a_loaded_model_generates_what_transformers_does() {
    let (prompt, greedy) = reference("tiny-llama");
    let model = load(dense(), options(512)).unwrap();
    let info = model.info();
    assert_eq!((info.backend.as_str(), info.vocab_size, info.context_length), ("mlx", 896, 512));
    let device = MlxBackend::new().devices().unwrap().remove(0);
    assert_eq!((&info.device, info.reads_at_once), (&device, 1));
    let request = GenerateRequest::new(prompt.clone()).with_max_tokens(greedy.len()).with_ignore_eos(true);
    let done = block_on(model.generate(request).complete()).unwrap();
    assert!(done.text.starts_with(" there was a happy cat named Lily."), "{}", done.text);
    let logits = block_on(model.logits(LogitsRequest::new(prompt))).unwrap();
    assert_eq!(logits.len(), 896);
    assert_eq!((0..896).max_by(|a, b| logits[*a].total_cmp(&logits[*b])), Some(greedy[0] as usize));
    if device.kind == DeviceKind::Cpu {
        assert_eq!((info.dtype, done.tokens), (FloatType::F32, greedy));
        assert_eq!(model.memory().weights, 902_272 * 4);
    }
    block_on(model.unload()).unwrap();
}

#[test]
fn a_model_that_mlx_quantized_generates_what_mlx_lm_does() {
    for bits in ["4bit", "8bit"] {
        let (prompt, greedy) = reference(&format!("mlx__tiny-llama-mlx-{bits}.quant.f32"));
        let model = load(checkpoint(&format!("tiny-llama-mlx-{bits}")), options(512)).unwrap();
        let request = GenerateRequest::new(prompt).with_max_tokens(greedy.len()).with_ignore_eos(true);
        assert_eq!(block_on(model.generate(request).complete()).unwrap().tokens, greedy, "{bits}");
        assert!(model.memory().weights < 902_272 * 4 / 3, "{}", model.memory().weights);
    }
}

#[test]
fn the_backend_keeps_the_contract_for_every_kind_of_model() {
    // Dense, quantized, and with windows and two rotary tables.
    for name in ["tiny-llama", "tiny-llama-mlx-4bit", "arch-gemma3"] {
        let Support::Yes(capabilities) = MlxBackend::new().supports(&checkpoint(name).info, &options(96)) else {
            panic!("{name} is not supported");
        };
        assert!(capabilities.sessions && capabilities.unmerged && capabilities.replaces_tensors);
        let model = load(checkpoint(name), options(96)).unwrap();
        block_on(async {
            conformance::sessions(model.as_ref(), &capabilities, "Once upon a time there was a").await;
            conformance::loaded_model(model.as_ref(), "Once upon a time there was a").await;
        });
    }
}

#[test]
fn quantized_keys_and_values_keep_the_contract() {
    for kv_cache in [KvCacheType::Q8, KvCacheType::Q4] {
        let model = load(dense(), options(96).with_kv_cache(kv_cache)).unwrap();
        block_on(conformance::loaded_model(model.as_ref(), "Once upon a time there was a"));
    }
}

/// The main adapter of tiny-llama: plain pairs of rank 8, alpha 16.
fn pirate() -> Arc<LoraAdapter> {
    let source = SafetensorsSource::open(&fixture("adapters/tiny-llama-lora-peft/adapter_model.safetensors")).unwrap();
    let modules = source.entries().iter().filter_map(|a| {
        let module = a.name.strip_suffix(".lora_A.weight")?;
        let b = source.entry(&format!("{module}.lora_B.weight"))?;
        let shape = (a.shape[0], a.shape[1], b.shape[0]);
        let name = module.strip_prefix("base_model.model.")?;
        let floats = |name: &str| floats(&source, name);
        Some(LoraModule::new(name, shape, floats(&a.name), floats(&b.name), 16.0 / shape.0 as f64))
    });
    Arc::new(LoraAdapter::new("file:/pirate", "pirate", modules.collect()))
}

fn floats(source: &dyn TensorSource, name: &str) -> Vec<f32> {
    let data = source.read(name, Some(FloatType::F32)).unwrap();
    let mut bytes = vec![0; data.byte_len()];
    data.copy_to(&mut bytes);
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A base with the sum of weight and delta in place of some weights, in f32 whatever is asked for.
struct Merged {
    base: Arc<dyn TensorSource>,
    sums: HashMap<String, Vec<f32>>,
}

impl Merged {
    fn new(base: Arc<dyn TensorSource>, adapter: &LoraAdapter) -> Self {
        let base_floats = |name: &str| floats(base.as_ref(), name);
        let sums = adapter.modules.iter().map(|m| {
            let name = format!("{}.weight", m.name);
            let mut sum = base_floats(&name);
            let (Floats::F32(a), Floats::F32(b)) = (&m.a, &m.b) else { panic!("other floats than f32") };
            for (i, row) in sum.chunks_mut(m.in_features).enumerate() {
                for (j, w) in row.iter_mut().enumerate() {
                    let delta: f64 =
                        (0..m.rank).map(|r| f64::from(b[i * m.rank + r]) * f64::from(a[r * m.in_features + j])).sum();
                    *w = (f64::from(*w) + m.scale * delta) as f32;
                }
            }
            (name, sum)
        });
        let sums = sums.collect();
        Self { base, sums }
    }
}

impl TensorSource for Merged {
    fn entries(&self) -> &[TensorEntry] {
        self.base.entries()
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        match self.sums.get(name) {
            Some(sum) => Ok(TensorData::F32(sum.clone())),
            None => self.base.read(name, want),
        }
    }
}

#[test]
fn adapters_beside_the_weights_keep_the_contract() {
    let adapter = pirate();
    let base = || weights(dense());
    let merged = || {
        let mut c = dense();
        c.tensors = Arc::new(Merged::new(c.tensors, &adapter));
        weights(c)
    };
    let case = UnmergedCase::new(&base, &merged, adapter.clone(), "Once upon a time there was a");
    let options = options(96).with_dtype(llm_local_core::ComputeDtype::F32);
    block_on(conformance::unmerged(&MlxBackend::new(), &options, &case.with_tokens(896)));
}

#[test]
fn generation_ends_with_the_context_and_a_longer_prompt_is_an_error() {
    for checkpoint in [dense(), packed()] {
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
fn what_the_model_or_the_device_cannot_do_is_refused_by_name() {
    let error = failure(dense(), options(513));
    assert_eq!(error.code(), "invalid_spec");
    assert!(error.to_string().contains("513") && error.to_string().contains("512"), "{error}");
    let backend = MlxBackend::new();
    assert!(backend.estimate(&dense().info, &options(0)).is_err());
    let error = failure(dense(), options(64).with_device("tpu:3"));
    assert_eq!(error.code(), "unsupported_model_format");
    assert!(error.to_string().contains("tpu:3") && error.to_string().contains("backend mlx"), "{error}");
    assert_eq!(backend.device_memory("tpu:3").unwrap_err().code(), "backend_unavailable");
    assert_eq!(backend.set_memory_budget("tpu:3", 1).unwrap_err().code(), "backend_unavailable");
    let name = "tiny-llama-q8_0.gguf";
    let gguf = Checkpoint::open(name, &BTreeMap::from([(name.to_owned(), fixture("gguf").join(name))])).unwrap();
    let Support::No(why) = backend.supports(&gguf.info, &options(64)) else { panic!("GGUF is supported") };
    assert!(why.contains("GGUF") && why.contains("candle"), "{why}");
    let without = ModelWeights::new(dense().info, None, dense().text);
    let error = block_on(backend.load(without, options(64))).err().unwrap();
    assert!(error.to_string().contains("tensors"), "{error}");
}

#[test]
fn progress_is_told_tensor_by_tensor() {
    for checkpoint in [dense(), packed()] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let events = heard.clone();
        let hear = move |event: &ProgressEvent| events.lock().unwrap().push(event.clone());
        load(checkpoint, options(64).with_progress(Arc::new(hear))).unwrap();
        let expected: Vec<_> = (1..=38).map(|done| ProgressEvent::loading(done, 38)).collect();
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
    Panic,
    Short,
    Zeros,
    As(&'static str),
}

impl TensorSource for Tampered {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        if let Act::Cancel(token, late) = &self.act
            && token.is_cancelled()
        {
            late.fetch_add(1, Ordering::Relaxed);
        }
        if name == self.name {
            match &self.act {
                Act::Cancel(token, _) => token.cancel(),
                Act::Fail => return Err(Error::load(name, "the disk is gone")),
                Act::Panic => panic!("the disk is on fire"),
                Act::Short => return Ok(TensorData::Bytes(vec![0; 7])),
                Act::Zeros => return Ok(TensorData::Bytes(vec![0; 896 * 128 * 2])),
                Act::As(other) => return self.inner.read(other, want),
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

const UP: &str = "model.layers.1.mlp.up_proj.weight";

#[test]
fn a_load_is_cancelled_between_tensors() {
    for checkpoint in [dense(), packed()] {
        let done = Arc::new(AtomicUsize::new(0));
        let count = done.clone();
        let hear = move |_: &ProgressEvent| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let o = options(64).with_progress(Arc::new(hear));
        let late = Arc::new(AtomicUsize::new(0));
        let cancelling = tampered(checkpoint, UP, Act::Cancel(o.cancel.clone(), late.clone()));
        assert_eq!(failure(cancelling, o).code(), "cancelled");
        assert!(done.load(Ordering::Relaxed) < 38);
        assert_eq!(late.load(Ordering::Relaxed), 0, "tensors were read after the load was cancelled");
    }
}

#[test]
fn a_tensor_that_cannot_be_read_is_named() {
    for (act, said) in [(Act::Fail, "disk is gone"), (Act::Short, "7 bytes")] {
        for checkpoint in [dense, packed] {
            let name = if said == "7 bytes" { "model.layers.1.mlp.down_proj.weight" } else { UP };
            let act = if matches!(act, Act::Fail) { Act::Fail } else { Act::Short };
            let error = failure(tampered(checkpoint(), name, act), options(64));
            assert_eq!(error.code(), "load_failed");
            assert!(error.to_string().contains(name) && error.to_string().contains(said), "{error}");
        }
    }
    let error = failure(tampered(packed(), "model.layers.0.self_attn.k_proj.scales", Act::Fail), options(64));
    assert!(error.to_string().contains("k_proj.scales"), "{error}");
    let error = failure(tampered(dense(), "model.norm.weight", Act::Panic), options(64));
    assert!(error.to_string().starts_with("loading `tiny-llama` failed"), "{error}");
    assert!(error.to_string().contains("the disk is on fire"), "{error}");
    // Other models live on.
    load(dense(), options(64)).unwrap();
}

#[test]
fn a_broken_tokenizer_is_named_and_not_the_weights_beside_it() {
    let mut checkpoint = tampered(dense(), UP, Act::Fail);
    let files = BTreeMap::from([("tokenizer.json".to_owned(), fixture("models/tiny-llama/config.json"))]);
    checkpoint.text = TextFiles::from_files(files);
    let error = failure(checkpoint, options(64)).to_string();
    assert!(error.contains("tokenizer") && !error.contains("disk is gone"), "{error}");
}

#[test]
fn a_second_head_beside_a_tied_one_must_be_the_same() {
    let error = failure(tampered(dense(), "lm_head.weight", Act::Zeros), options(64));
    assert!(error.to_string().contains("tie_word_embeddings"), "{error}");
    load(tampered(dense(), "lm_head.weight", Act::As("model.embed_tokens.weight")), options(64)).unwrap();
}

/// Names of tensors, each with the thread that read it.
type Reads = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// A source that notes what is read, and on which thread, and says that the order matters.
struct Ordered {
    inner: Arc<dyn TensorSource>,
    reads: Reads,
}

impl TensorSource for Ordered {
    fn entries(&self) -> &[TensorEntry] {
        self.inner.entries()
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        self.reads.lock().unwrap().push((name.to_owned(), thread::current().name().map(str::to_owned)));
        self.inner.read(name, want)
    }

    fn depends_on_order(&self) -> bool {
        true
    }
}

#[test]
fn tensors_are_read_once_in_the_same_order_on_mlxs_thread() {
    for checkpoint in [dense, packed] {
        let order = || {
            let reads = Arc::new(Mutex::new(Vec::new()));
            let mut checkpoint = checkpoint();
            let entries = checkpoint.tensors.entries().len();
            checkpoint.tensors = Arc::new(Ordered { inner: checkpoint.tensors, reads: reads.clone() });
            load(checkpoint, options(64)).unwrap();
            let (names, threads): (Vec<_>, Vec<_>) = reads.lock().unwrap().drain(..).unzip();
            assert_eq!(names.len(), entries);
            assert!(threads.iter().all(|thread| thread.as_deref() == Some("llm-mlx")), "{threads:?}");
            names
        };
        let first = order();
        assert!((0..3).all(|_| order() == first));
    }
}

#[test]
fn every_load_of_a_model_computes_the_same_bits() {
    for checkpoint in [dense, packed] {
        let bits = || {
            let model = load(checkpoint(), options(64)).unwrap();
            let logits = block_on(model.logits(LogitsRequest::new(vec![1, 393, 17, 5]))).unwrap();
            logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let first = bits();
        assert!((0..3).all(|_| bits() == first));
    }
}

#[test]
fn giving_a_load_up_leaves_the_callers_token_alone_and_reads_no_more() {
    let o = options(64);
    let token = o.cancel.clone();
    let mut checkpoint = dense();
    let counting = Arc::new(CountingTensorSource::new(checkpoint.tensors));
    checkpoint.tensors = counting.clone();
    let backend = MlxBackend::new();
    let mut given_up = backend.load(weights(checkpoint), o);
    let _ = given_up.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(given_up);
    assert!(!token.is_cancelled());
    // What was given up is gone by the time that another load, which comes behind it in line, has ended.
    block_on(load(dense(), options(64)).unwrap().unload()).unwrap();
    assert!(counting.reads() < 38, "{} tensors were read", counting.reads());
    assert_eq!(Arc::strong_count(&counting), 1);
}

#[test]
fn nothing_is_computed_once_a_generation_is_cancelled() {
    let model = load(dense(), options(512)).unwrap();
    let cancel = CancellationToken::new();
    let request = GenerateRequest::new(vec![393; 40]).with_ignore_eos(true).with_cancel(cancel.clone());
    let mut running = model.generate(request);
    for _ in 0..3 {
        assert!(matches!(block_on(running.next()), Some(Ok(GenerationEvent::Token { .. }))));
    }
    cancel.cancel();
    let done = block_on(running.complete()).unwrap();
    assert_eq!(done.finish_reason, Some(FinishReason::Cancelled));
    let steps = model.counters().forward_steps;
    // A later request is computed, and nothing else was: one step for the prompt, and none for a single token.
    let other = GenerateRequest::new(vec![1, 2]).with_max_tokens(1).with_ignore_eos(true);
    block_on(model.generate(other).complete()).unwrap();
    assert_eq!(model.counters().forward_steps, steps + 1);
    // Nor is anything of a prompt whose token was cancelled before.
    let request = GenerateRequest::new(vec![393; 40]).with_cancel(cancel);
    assert_eq!(block_on(model.generate(request).complete()).unwrap().finish_reason, Some(FinishReason::Cancelled));
    assert_eq!(model.counters().forward_steps, steps + 1);
}

#[test]
fn models_take_turns_on_one_thread_and_one_is_unloaded_beside_another() {
    let (prompt, greedy) = reference("tiny-llama");
    let request = || GenerateRequest::new(prompt.clone()).with_max_tokens(greedy.len()).with_ignore_eos(true);
    let (one, other) = (load(dense(), options(512)).unwrap(), load(dense(), options(512)).unwrap());
    let mut first = one.generate(request());
    let second = other.generate(request());
    assert!(matches!(block_on(first.next()), Some(Ok(GenerationEvent::Token { .. }))));
    block_on(one.unload()).unwrap();
    let error = block_on(first.complete()).unwrap_err();
    assert_eq!(error.code(), "model_not_loaded");
    let done = block_on(second.complete()).unwrap();
    assert_eq!(done.tokens.len(), greedy.len());
}
