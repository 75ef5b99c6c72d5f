//! Adapters that a spec combines, against what PEFT combines them into (`tests/fixtures/combined`).

#![cfg(all(feature = "candle", feature = "local"))]

use std::{collections::BTreeMap, fs, path::PathBuf};

use crate::common::{engine, fixture, max_difference};
use llm_local::{
    AdapterLimits, AdapterPolicy, ArtifactRef, Engine, GenerateRequest, LogitsRequest, ModelSpec, Result,
    core::Allowance,
};
use pollster::block_on;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Map, Value, json};

/// Largest difference of logits, which are below 5, where factors are equal to the bit: merged, sums of f32 in one order or
/// another. Found: 6.0e-7.
const SAME: f32 = 3e-6;
/// The same where deltas were decomposed, which is exact to 1.3e-5 of the largest value. Found: 7.4e-6.
const DECOMPOSED: f32 = 4e-5;

const HIDDEN: usize = 16;
const INNER: usize = 24;
const VOCABULARY: usize = 90;

/// A folder that tests write their model and adapters to.
struct World {
    folder: tempfile::TempDir,
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

impl World {
    /// With the model that the adapters of the fixture are for (`make_combined.py`), of weights that are like random ones.
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        let mut tensors = Tensors::new();
        let mut put = |name: &str, shape: &[usize]| {
            let norm = shape.len() == 1;
            let value = |i: usize| {
                // The fraction of a multiple of the golden ratio is spread evenly; so is that of its sum with a name's.
                let start: u32 = name.bytes().fold(7, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
                let part = (f64::from(start % 9973) * 0.37 + i as f64 * 0.618_033_988_75).fract();
                if norm { 1.0 } else { ((part - 0.5) * 0.6) as f32 }
            };
            tensors.insert(name.into(), (shape.to_vec(), (0..shape.iter().product()).map(value).collect()));
        };
        put("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]);
        put("model.norm.weight", &[HIDDEN]);
        put("lm_head.weight", &[VOCABULARY, HIDDEN]);
        for layer in 0..2 {
            for (name, shape) in [
                ("self_attn.q_proj", &[HIDDEN, HIDDEN][..]),
                ("self_attn.k_proj", &[8, HIDDEN]),
                ("self_attn.v_proj", &[8, HIDDEN]),
                ("self_attn.o_proj", &[HIDDEN, HIDDEN]),
                ("mlp.gate_proj", &[INNER, HIDDEN]),
                ("mlp.up_proj", &[INNER, HIDDEN]),
                ("mlp.down_proj", &[HIDDEN, INNER]),
                ("input_layernorm", &[HIDDEN]),
                ("post_attention_layernorm", &[HIDDEN]),
            ] {
                put(&format!("model.layers.{layer}.{name}.weight"), shape);
            }
        }
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "max_position_embeddings": 2048, "tie_word_embeddings": false, "torch_dtype": "float32",
        });
        world.write("model", "config.json", &config, "model.safetensors", &tensors);
        let tokenizer = fixture("models/tiny-llama/tokenizer.json");
        fs::copy(tokenizer, world.folder.path().join("model/tokenizer.json")).unwrap();
        world
    }

    fn write(&self, name: &str, config_name: &str, config: &Value, weights: &str, tensors: &Tensors) -> ArtifactRef {
        let folder = self.folder.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(config_name), config.to_string()).unwrap();
        let bytes: BTreeMap<_, Vec<u8>> = tensors
            .iter()
            .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let views = tensors.iter().map(|(name, (shape, _))| {
            (name.clone(), TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap())
        });
        fs::write(folder.join(weights), safetensors::serialize(views, None).unwrap()).unwrap();
        ArtifactRef::file(&folder).unwrap()
    }

    /// What PEFT made of a case, as an adapter whose pairs have a scale of 1.
    fn peft(&self, index: usize, file: &SafeTensors<'_>) -> ArtifactRef {
        let (mut tensors, mut ranks, mut rank_pattern) = (Tensors::new(), Vec::new(), Map::new());
        let prefix = format!("{index}/");
        for (key, tensor) in file.tensors() {
            let Some((module, factor)) = key.strip_prefix(&prefix).and_then(|key| key.rsplit_once('/')) else {
                continue;
            };
            let name = match (module.ends_with("embed_tokens"), factor) {
                (true, factor) => format!("base_model.model.{module}.lora_embedding_{factor}"),
                (false, factor) => format!("base_model.model.{module}.lora_{factor}.weight"),
            };
            let values = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            if factor == "A" {
                ranks.push(module.to_owned());
                rank_pattern.insert(module.replace('.', r"\."), tensor.shape()[0].into());
            }
            tensors.insert(name, (tensor.shape().to_vec(), values));
        }
        let config = json!({
            "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ranks,
            "alpha_pattern": rank_pattern, "rank_pattern": rank_pattern,
        });
        self.write(&format!("peft-{index}"), "adapter_config.json", &config, "adapter_model.safetensors", &tensors)
    }

    fn base(&self) -> ModelSpec {
        ModelSpec::new(ArtifactRef::file(self.folder.path().join("model")).unwrap())
    }
}

/// A case of the fixture.
struct Case {
    adapters: Vec<(String, f32)>,
    /// The combination as a spec has it.
    combination: Value,
    is_decomposed: bool,
    /// Whether nothing is left of any value.
    is_nothing: bool,
    is_llama: bool,
}

fn cases() -> Vec<Case> {
    let json: Value = serde_json::from_slice(&fs::read(fixture("combined/cases.json")).unwrap()).unwrap();
    let case = |case: &Value| {
        let names = case["adapters"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
        let weights = case["weights"].as_array().unwrap().iter().map(|weight| weight.as_f64().unwrap() as f32);
        let adapters: Vec<_> = names.zip(weights).collect();
        let kind = case["kind"].as_str().unwrap();
        let mut fields = Map::new();
        for (theirs, value) in case["fields"].as_object().unwrap() {
            let ours = match theirs.as_str() {
                "majority_sign_method" => "majority_sign",
                "svd_rank" => "rank",
                "svd_clamp" => "clamp",
                "density" => "density",
                _ => continue,
            };
            fields.insert(ours.into(), value.clone());
        }
        fields.extend(case["seed"].as_u64().map(|seed| ("seed".to_owned(), json!(seed))));
        let name = kind.replace('_', "-");
        let combination = if ["linear", "cat"].contains(&kind) { json!(name) } else { json!({ name: fields }) };
        Case {
            is_llama: !adapters[0].0.starts_with("gpt2"),
            adapters,
            combination,
            is_decomposed: kind.ends_with("svd"),
            is_nothing: case["fields"]["density"].as_f64().is_some_and(|density| density < 0.05)
                && kind == "magnitude_prune",
        }
    };
    json["cases"].as_array().unwrap().iter().map(case).collect()
}

impl Case {
    /// The spec, as an application would write it down.
    fn spec(&self, base: &ModelSpec, policy: AdapterPolicy) -> ModelSpec {
        let adapters = self.adapters.iter().map(|(name, weight)| json!({ "ref": path(name), "weight": weight }));
        let json = json!({
            "base": base.base, "adapters": adapters.collect::<Vec<_>>(), "combination": self.combination,
            "adapter_policy": policy,
        });
        serde_json::from_value(json).unwrap()
    }
}

fn path(adapter: &str) -> PathBuf {
    fixture("combined").join(adapter)
}

fn logits(engine: &Engine, spec: &ModelSpec) -> Result<Vec<f32>> {
    let logits = block_on(engine.logits(spec, LogitsRequest::new(vec![1, 17, 42, 5, 88])));
    block_on(engine.unload(spec))?;
    logits
}

/// Asserts that what combines to zeros is refused, unless each adapter may do nothing.
fn refused_as_nothing(engine: &Engine, case: &Case, base: &ModelSpec, base_logits: &[f32]) {
    for policy in [AdapterPolicy::Auto, AdapterPolicy::KeepUnmerged] {
        let mut spec = case.spec(base, policy);
        let error = logits(engine, &spec).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed");
        assert!(error.to_string().contains("would do nothing"), "{error}");
        spec.adapters = spec.adapters.into_iter().map(|adapter| adapter.allowing(Allowance::NoEffect)).collect();
        assert_eq!(logits(engine, &spec).unwrap(), base_logits);
    }
}

#[test]
fn every_combination_of_a_spec_gives_the_logits_of_pefts_result_merged_and_beside() {
    let (world, engine) = (World::new(), engine());
    let bytes = fs::read(fixture("combined/combined.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let base = logits(&engine, &world.base()).unwrap();
    let mut kinds = Vec::new();
    for (index, case) in cases().iter().enumerate().filter(|(_, case)| case.is_llama) {
        if case.is_nothing {
            refused_as_nothing(&engine, case, &world.base(), &base);
            continue;
        }
        let peft = world.base().with_adapter(world.peft(index, &file));
        let expected = logits(&engine, &peft).unwrap();
        assert!(max_difference(&expected, &base) > 0.05, "case {index} does nothing");
        for policy in [AdapterPolicy::Auto, AdapterPolicy::KeepUnmerged] {
            let spec = case.spec(&world.base(), policy);
            let found = logits(&engine, &spec).unwrap();
            let (difference, bound) =
                (max_difference(&found, &expected), if case.is_decomposed { DECOMPOSED } else { SAME });
            assert!(difference <= bound, "case {index}, {}, {policy}: {difference:e}", case.combination);
            kinds.push(spec.combination.name());
        }
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), 11, "all but the sum: {kinds:?}");
}

/// Asserts that `spec` is refused as an adapter's trouble, in these words, by its plan and by its load.
#[track_caller]
fn refused(engine: &Engine, spec: &ModelSpec, words: &[&str]) {
    for error in [block_on(engine.plan(spec)).unwrap_err(), block_on(engine.load(spec)).map(drop).unwrap_err()] {
        assert_eq!(error.code(), "adapter_merge_failed", "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
    }
}

fn spec(base: &ModelSpec, adapters: &[(&str, f32)], combination: Value) -> ModelSpec {
    let adapters = adapters.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
    let case = Case { adapters, combination, is_decomposed: false, is_nothing: false, is_llama: true };
    case.spec(base, AdapterPolicy::Auto)
}

#[test]
fn what_cannot_be_combined_is_refused_before_a_weight_is_read() {
    let (world, engine) = (World::new(), engine());
    let base = world.base();
    let ranks = spec(&base, &[("a", 1.0), ("rank2-rslora", 1.0)], json!("linear"));
    refused(&engine, &ranks, &["rank2-rslora", "equal ranks", "`cat`"]);
    // Each must fit for itself.
    let other = fixture("adapters/tiny-llama-lora-peft");
    let unfit = base.clone().with_adapter(ArtifactRef::file(path("a")).unwrap());
    let unfit = unfit.with_adapter(ArtifactRef::file(&other).unwrap()).with_combination("cat".parse().unwrap());
    refused(&engine, &unfit, &["tiny-llama-lora-peft", "expected ("]);
    let dora = ModelSpec::new(crate::common::fixture_ref("models/tiny-llama"))
        .with_adapter(crate::common::fixture_ref("adapters/tiny-llama-lora-peft"))
        .with_adapter(crate::common::fixture_ref("adapters/tiny-llama-lora-dora"))
        .with_combination("svd:rank=4".parse().unwrap());
    refused(&engine, &dora, &["tiny-llama-lora-dora", "DoRA", "`sum`"]);
    let error =
        serde_json::from_value::<ModelSpec>(json!({ "base": "./m", "combination": { "ties": {} } })).unwrap_err();
    assert!(error.to_string().contains("density"), "{error}");
}

#[test]
fn limits_hold_for_the_adapters_and_for_what_they_are_combined_into() {
    let world = World::new();
    let within = |limits: AdapterLimits| {
        let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cache");
        Engine::builder().cache_dir(cache).adapter_limits(limits).build().unwrap()
    };
    let cat = spec(&world.base(), &[("a", 1.0), ("b", 1.0)], json!("cat"));
    refused(&within(AdapterLimits::none().with_rank(7)), &cat, &["cat(", "its largest rank is 8", "`rank` of 7"]);
    refused(&within(AdapterLimits::none().with_count(1)), &cat, &["2 adapters", "`count` of 1"]);
    block_on(within(AdapterLimits::none().with_rank(8)).plan(&cat)).unwrap();
}

#[test]
fn plan_statistics_and_digest_tell_the_adapters_and_what_they_are_combined_into() {
    let (world, engine) = (World::new(), engine());
    let of = |combination: Value| spec(&world.base(), &[("a", 0.5), ("b", -1.0)], combination);
    let cat = of(json!({ "ties": { "density": 0.5 } }));
    let plan = block_on(engine.plan(&cat)).unwrap();
    assert_eq!(plan.combination, cat.combination);
    let text = plan.to_string();
    assert!(text.contains("weight 0.5\n") && text.contains("weight -1\n"), "{text}");
    assert!(text.contains("combined ties:density=0.5,majority_sign=total\n"), "{text}");
    let mut digests = Vec::new();
    for combination in [json!("sum"), json!("linear"), json!("cat"), json!({ "ties": { "density": 0.5 } })] {
        let spec = of(combination);
        let request = GenerateRequest::new(vec![1u32, 2]).with_max_tokens(1);
        let model = block_on(engine.load(&spec)).unwrap();
        let stats = block_on(model.generate(request).complete()).unwrap().stats;
        let used: Vec<_> = stats.adapters.iter().map(|used| used.weight).collect();
        assert_eq!(used, [0.5, -1.0]);
        digests.push(block_on(model.digest()).unwrap().adapters);
    }
    assert_eq!(digests[0].matches('*').count(), 2, "the sum is of both: {digests:?}");
    assert!(digests[1..].iter().all(|digest| digest.ends_with("*1") && digest.len() == 66), "{digests:?}");
    assert!((1..4).all(|i| !digests[..i].contains(&digests[i])), "{digests:?}");
}
