//! Adapters merged into quantized GGUF bases whose tensors are quantized again: what that loses of them is measured before
//! the model is handed out, and limited.

#![cfg(all(feature = "candle", feature = "local"))]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use crate::common::{engine, fixture_ref, max_difference, reference};
use futures_util::future::{Either, select};
use llm_local::{
    AdapterPolicy, BackendPreference, ContextLength, Engine, Error, GenerateRequest, LogitsRequest, Message, Model,
    ModelSpec, ProgressEvent,
    core::{
        DeviceInfo, Generation, InferenceBackend, LoadOptions, LoadedInfo, LoadedModel, MemoryEstimate, MemoryReport,
        ModelInfo, ModelWeights, Result, Support, async_trait,
    },
    lora::Combination,
};
use llm_local_testkit::fakes::{FakeBackend, Gate};
use pollster::block_on;

const ADAPTER: &str = "adapters/tiny-llama-lora-peft";

/// tiny-llama with weights of this kind, and an adapter.
fn base(kind: &str) -> ModelSpec {
    ModelSpec::new(fixture_ref(&format!("gguf/tiny-llama-{kind}.gguf")))
}

fn spec(kind: &str, policy: AdapterPolicy) -> ModelSpec {
    base(kind).with_adapter(fixture_ref(ADAPTER)).with_adapter_policy(policy)
}

fn requantized(kind: &str, max_error: f32) -> ModelSpec {
    spec(kind, AdapterPolicy::MergeRequantized { max_error })
}

fn load(spec: &ModelSpec) -> Result<Model> {
    block_on(engine().load(spec))
}

fn lost(spec: &ModelSpec) -> f64 {
    load(spec).unwrap().requantized_error().unwrap()
}

/// `|q - u| / |u - b|` of the logits after `prompts`, as the definition has it.
fn measured(kind: &str, against: AdapterPolicy, prompts: &[&str]) -> f64 {
    let models = [requantized(kind, 10.0), spec(kind, against), base(kind)].map(|spec| load(&spec).unwrap());
    let (mut lost, mut all) = (0f64, 0f64);
    for prompt in prompts {
        let ask = |model: &Model| block_on(model.logits(LogitsRequest::new(vec![Message::user(*prompt)]))).unwrap();
        let [q, u, b] = models.each_ref().map(ask);
        for i in 0..u.len() {
            lost += (f64::from(q[i]) - f64::from(u[i])).powi(2);
            all += (f64::from(u[i]) - f64::from(b[i])).powi(2);
        }
    }
    (lost / all).sqrt()
}

fn refused(error: &Error, parts: &[&str]) {
    assert!(matches!(error, Error::AdapterMergeFailed { .. }), "{error}");
    let text = error.to_string();
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

/// Measured: 0.0053 lost, and logits that differ by 0.060 at most.
#[test]
fn eight_bits_lose_little_and_answer_as_the_unmerged_model_does() {
    let model = load(&requantized("q8_0", 0.05)).unwrap();
    let plan = model.plan().model.clone().unwrap();
    // Quantized again, it takes what the base takes.
    let alone = block_on(engine().plan(&base("q8_0"))).unwrap().model.unwrap();
    assert_eq!((plan.merged_tensors, plan.requantized_tensors, plan.unmerged_tensors), (28, 28, 0));
    assert!(plan.estimate.merge_peak > 0);
    assert_eq!(plan.estimate.with_merge_peak(0), alone.estimate);
    assert_eq!(model.memory().weights, plan.estimate.weights);
    let text = model.plan().to_string();
    assert!(text.contains("28 are quantized again, and what is lost by that is measured"), "{text}");
    let unmerged = load(&spec("q8_0", AdapterPolicy::KeepUnmerged)).unwrap();
    assert_eq!(unmerged.requantized_error(), None);
    let mut same = 0;
    for case in reference("tiny-llama-q8_0.dequantized__tiny-llama-lora-peft").cases {
        let ask = |model: &Model| block_on(model.logits(LogitsRequest::new(case.prompt_ids.clone()))).unwrap();
        let difference = max_difference(&ask(&model), &ask(&unmerged));
        assert!(difference < 0.1, "{difference}");
        if case.min_margin > 2.0 * difference {
            let request = GenerateRequest::new(case.prompt_ids.clone()).with_max_tokens(case.greedy_ids.len());
            let request = request.with_ignore_eos(true);
            let answer = |model: &Model| block_on(model.generate(request.clone()).complete()).unwrap().tokens;
            assert_eq!(answer(&model), answer(&unmerged));
            same += 1;
        }
    }
    assert!(same >= 1, "no answer could be compared");
}

/// A tenth of the adapter, which then changes weights by as little as many trained ones do. Measured: 0.018 lost on 8 bits,
/// 0.97 on 4.
#[test]
fn four_bits_are_refused_by_a_limit_that_eight_bits_keep() {
    let weak = |kind| {
        let policy = AdapterPolicy::MergeRequantized { max_error: 0.1 };
        base(kind).with_weighted_adapter(fixture_ref(ADAPTER), 0.1).with_adapter_policy(policy)
    };
    let of_eight = lost(&weak("q8_0"));
    assert!(of_eight < 0.03, "{of_eight}");
    let error = load(&weak("q4_0")).unwrap_err();
    refused(&error, &["tiny-llama-lora-peft", "quantized again, it loses 0.", "8 probe prompts", "at most 0.1"]);
    refused(&error, &["`keep-unmerged`", "`merge-dequantized`", "`max_error`"]);
}

#[test]
fn what_is_measured_is_what_the_definition_says() {
    const PROMPTS: [&str; 2] = ["Hello", "What is a base model?"];
    for kind in ["q8_0", "q4_0"] {
        let found = lost(&requantized(kind, 10.0).with_probe_prompts(PROMPTS));
        let expected = measured(kind, AdapterPolicy::KeepUnmerged, &PROMPTS);
        assert!((found - expected).abs() < 1e-9, "{kind}: {found}, by the definition {expected}");
        // On other prompts it is another number: the library's own, and one of these.
        for other in [requantized(kind, 10.0), requantized(kind, 10.0).with_probe_prompts([PROMPTS[0]])] {
            let other = lost(&other);
            assert!((found - other).abs() > 1e-6, "{kind}: {found} and {other}");
        }
    }
}

#[test]
fn the_limit_is_kept_to_the_last_bit() {
    let measured = lost(&requantized("q4_0", 10.0));
    let nearest = measured as f32;
    let (below, above) =
        if f64::from(nearest) < measured { (nearest, nearest.next_up()) } else { (nearest.next_down(), nearest) };
    assert_eq!(lost(&requantized("q4_0", above)), measured);
    refused(&load(&requantized("q4_0", below)).unwrap_err(), &["it loses 0.", "at most"]);
}

#[test]
fn several_adapters_are_measured_as_the_one_change_that_they_are() {
    let two = spec("q8_0", AdapterPolicy::MergeRequantized { max_error: 0.05 })
        .with_weighted_adapter(fixture_ref("adapters/tiny-llama-lora-rslora"), 0.5);
    let losses = [Combination::Sum, Combination::Cat].map(|combination| {
        let spec = two.clone().with_combination(combination);
        let lost = lost(&spec);
        let strict = spec.with_adapter_policy(AdapterPolicy::MergeRequantized { max_error: 1e-4 });
        refused(&load(&strict).unwrap_err(), &["tiny-llama-lora-peft", "tiny-llama-lora-rslora", "at most 0.0001"]);
        lost
    });
    // PEFT's `cat` is the exact sum.
    assert!((losses[0] - losses[1]).abs() < 1e-4, "{losses:?}");
}

#[test]
fn specs_as_data_measure_and_limit() {
    let (base, adapter) = (fixture_ref("gguf/tiny-llama-q4_0.gguf"), fixture_ref(ADAPTER));
    let json = |limit: f64| {
        let spec = serde_json::json!({
            "base": base, "adapters": [adapter],
            "adapter_policy": { "merge-requantized": { "max_error": limit } }, "probe_prompts": ["Hello"],
        });
        serde_json::from_value::<ModelSpec>(spec).unwrap()
    };
    refused(&load(&json(0.01)).unwrap_err(), &["after the probe prompt", "at most 0.01"]);
    let toml = format!(
        "base = \"{base}\"\nadapters = [\"{adapter}\"]\nprobe_prompts = [\"Hello\"]\n\
         [adapter_policy.merge-requantized]\nmax_error = 10.0\n"
    );
    let toml = lost(&toml::from_str(&toml).unwrap());
    assert_eq!(toml, lost(&json(10.0)));
    assert_eq!(toml, lost(&requantized("q4_0", 10.0).with_probe_prompts(["Hello"])));
}

#[test]
fn float_weights_are_merged_and_nothing_is_measured() {
    for kind in ["f16", "bf16"] {
        let merged = load(&spec(kind, AdapterPolicy::Auto)).unwrap();
        let model = load(&requantized(kind, 1e-6)).unwrap();
        let plan = model.plan().model.as_ref().unwrap();
        assert_eq!((plan.merged_tensors, plan.requantized_tensors), (28, 0));
        assert_eq!(model.requantized_error(), None);
        let ask = |model: &Model| block_on(model.logits(LogitsRequest::new("Hello"))).unwrap();
        assert_eq!(ask(&model), ask(&merged));
    }
    // Without adapters there is nothing to be lost either.
    assert_eq!(
        load(&base("q4_0").with_adapter_policy(AdapterPolicy::MergeRequantized { max_error: 0.1 }))
            .unwrap()
            .requantized_error(),
        None
    );
}

/// Where a backend cannot run adapters, what they do is told by the merge into dequantized tensors and by the base.
#[test]
fn one_model_at_a_time_is_loaded_and_a_backend_that_runs_no_adapters_is_measured_by_dequantized_tensors() {
    const PROMPTS: [&str; 2] = ["Hello", "What is a base model?"];
    let cases = [(true, AdapterPolicy::KeepUnmerged, 2), (false, AdapterPolicy::MergeDequantized, 3)];
    for (unmerged, against, loads) in cases {
        let (engine, watched) = watched(unmerged);
        let spec = requantized("q4_0", 10.0).with_probe_prompts(PROMPTS);
        let mut spec = spec.with_backend(BackendPreference::Named(NAME.into()));
        let model = block_on(engine.load(&spec)).unwrap();
        let found = model.requantized_error().unwrap();
        let expected = measured("q4_0", against, &PROMPTS);
        assert!((found - expected).abs() < 1e-9, "{against}: {found}, by the definition {expected}");
        assert_eq!((watched.loads(), watched.live(), watched.most()), (loads, 1, 1));
        block_on(engine.unload(&spec)).unwrap();
        // What is refused is not in memory any more.
        spec.adapter_policy = AdapterPolicy::MergeRequantized { max_error: 0.01 };
        refused(&block_on(engine.load(&spec)).unwrap_err(), &["at most 0.01"]);
        assert_eq!((watched.loads(), watched.live(), watched.most()), (2 * loads, 0, 1));
    }
}

#[test]
fn the_loads_are_one_progress() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let seen = seen.clone();
        move |event: &ProgressEvent| {
            if let ProgressEvent::Loading { done, total, .. } = event {
                seen.lock().unwrap().push((*done, *total));
            }
        }
    };
    block_on(engine().load_with_progress(&requantized("q8_0", 0.5), Some(Arc::new(handler)))).unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "{seen:?}");
    let first = seen.iter().filter(|(done, total)| 2 * done <= *total).count();
    assert_eq!(seen.last(), Some(&(seen.len(), seen.len())), "of two loads, one after the other");
    assert_eq!(2 * first, seen.len());
}

#[test]
fn prompts_that_do_not_fit_are_named_and_nothing_stays_in_memory() {
    let (engine, watched) = watched(true);
    let spec = requantized("q8_0", 10.0).with_backend(BackendPreference::Named(NAME.into()));
    let spec = spec.with_context_length(ContextLength::Tokens(4)).with_probe_prompts(["Tell me a story."]);
    let error = block_on(engine.load(&spec)).unwrap_err();
    refused(&error, &["Tell me a story.", "the context holds 4", "`probe_prompts`"]);
    assert_eq!((watched.loads(), watched.live()), (1, 0));
}

/// A fake model answers the same whatever its weights are.
#[test]
fn adapters_without_effect_on_the_prompts_are_refused() {
    let backend = Arc::new(FakeBackend::new("fake"));
    let error = block_on(engine_of(backend.clone()).load(&fake(&requantized("q8_0", 10.0)))).unwrap_err();
    refused(&error, &["are those of the base, bit for bit", "`probe_prompts`"]);
    assert_eq!((backend.calls().loads, backend.calls().live()), (2, 0));
}

#[test]
fn giving_up_while_it_is_measured_leaves_nothing() {
    let gate = Arc::new(Gate::new());
    let backend = Arc::new(FakeBackend::new("fake").with_gate(gate.clone()));
    let engine = engine_of(backend.clone());
    let spec = fake(&requantized("q8_0", 10.0));
    {
        let load = engine.load(&spec);
        let second = async {
            gate.let_through(1);
            backend.when(|calls| calls.loads == 2).await
        };
        let calls = block_on(select(Box::pin(load), Box::pin(second)));
        assert!(matches!(calls, Either::Right(_)), "the load ended before it was given up");
    }
    let calls = backend.calls();
    assert_eq!((calls.loads, calls.loaded, calls.failed, calls.live()), (2, 1, 1, 0));
    // And the next one begins anew.
    gate.open();
    assert!(block_on(engine.load(&spec)).is_err());
    assert_eq!(backend.calls().live(), 0);
}

const NAME: &str = "watched";

fn engine_of(backend: Arc<dyn InferenceBackend>) -> Engine {
    let registry = llm_local::builtin::registry().unwrap().with_backend(backend);
    Engine::builder().registry(registry).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap()
}

fn fake(spec: &ModelSpec) -> ModelSpec {
    spec.clone().with_backend(BackendPreference::Named("fake".into()))
}

/// candle, and whether it can run adapters beside the weights.
fn watched(unmerged: bool) -> (Engine, Arc<Watched>) {
    let candle = llm_local::builtin::registry().unwrap().backend("candle").unwrap();
    let watched = Arc::new(Watched { candle, unmerged, counts: Arc::default() });
    (engine_of(watched.clone()), watched)
}

/// A backend that counts its models.
struct Watched {
    candle: Arc<dyn InferenceBackend>,
    unmerged: bool,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    loads: AtomicUsize,
    live: AtomicUsize,
    most: AtomicUsize,
}

impl Watched {
    /// Loads that began.
    fn loads(&self) -> usize {
        self.counts.loads.load(Ordering::SeqCst)
    }

    /// Models in memory now.
    fn live(&self) -> usize {
        self.counts.live.load(Ordering::SeqCst)
    }

    /// The most of them that there ever were together, one that was being loaded included.
    fn most(&self) -> usize {
        self.counts.most.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl InferenceBackend for Watched {
    fn name(&self) -> &str {
        NAME
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        self.candle.devices()
    }

    fn supports(&self, m: &ModelInfo, o: &LoadOptions) -> Support {
        match self.candle.supports(m, o) {
            Support::Yes(capabilities) => Support::Yes(capabilities.with_unmerged(self.unmerged)),
            no => no,
        }
    }

    fn estimate(&self, m: &ModelInfo, o: &LoadOptions) -> Result<MemoryEstimate> {
        self.candle.estimate(m, o)
    }

    async fn load(&self, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        assert!(self.unmerged || w.adapters.is_empty(), "it cannot run adapters");
        self.counts.loads.fetch_add(1, Ordering::SeqCst);
        let live = self.counts.live.fetch_add(1, Ordering::SeqCst) + 1;
        self.counts.most.fetch_max(live, Ordering::SeqCst);
        let model = self.candle.load(w, o).await.inspect_err(|_| {
            self.counts.live.fetch_sub(1, Ordering::SeqCst);
        })?;
        Ok(Arc::new(Counted {
            model,
            unmerged: self.unmerged,
            counts: self.counts.clone(),
            is_unloaded: Mutex::new(false),
        }))
    }
}

/// A model that is counted until it is unloaded.
struct Counted {
    model: Arc<dyn LoadedModel>,
    unmerged: bool,
    counts: Arc<Counts>,
    is_unloaded: Mutex<bool>,
}

impl Counted {
    fn end(&self) {
        if !std::mem::replace(&mut *self.is_unloaded.lock().unwrap(), true) {
            self.counts.live.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.end();
    }
}

#[async_trait]
impl LoadedModel for Counted {
    fn info(&self) -> LoadedInfo {
        self.model.info()
    }

    fn generate(&self, r: GenerateRequest) -> Generation {
        self.model.generate(r)
    }

    async fn logits(&self, r: LogitsRequest) -> Result<Vec<f32>> {
        assert!(self.unmerged || r.adapters.is_none(), "it cannot run adapters");
        self.model.logits(r).await
    }

    fn memory(&self) -> MemoryReport {
        self.model.memory()
    }

    async fn unload(&self) -> Result<()> {
        let unloaded = self.model.unload().await;
        self.end();
        unloaded
    }
}
