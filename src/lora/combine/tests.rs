//! Against PEFT: `tests/fixtures/combined/make_combined.py` says how its results were made.

use std::{collections::BTreeMap, fs, sync::Arc};

use llm_local_core::{
    LoraAdapter, LoraModule,
    lora::{AdapterFeature, Combination, MajoritySign, ModuleSelector, ReplacedRows, ReplacementTensor},
    model::{DecoderConfig, Layout},
};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        outline::AdapterOutline,
        testing::{fixture, read_folder},
    },
    combine, combine_left, combined_outline, module_order,
    pair::Pair,
};

/// What products may differ by where deltas are decomposed, as a share of the largest value. Found: 1.3e-5, as much as torch
/// itself differs there between f32 and f64: singular values close to each other at the cut make vectors inexact.
const DECOMPOSED: f64 = 4e-5;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
    order: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Case {
    adapters: Vec<String>,
    weights: Vec<f32>,
    kind: String,
    seed: Option<u64>,
    fields: BTreeMap<String, Value>,
    scale: f64,
}

impl Case {
    /// As our own data, from PEFT's arguments.
    fn combination(&self) -> Combination {
        let kind = self.kind.replace('_', "-");
        let ours = |name: &str| match name {
            "majority_sign_method" => Some("majority_sign"),
            "svd_rank" => Some("rank"),
            "svd_clamp" => Some("clamp"),
            "svd_full_matrices" => None,
            _ => Some("density"),
        };
        let seed = self.seed.map(|seed| ("seed", json!(seed)));
        let given = self.fields.iter().filter_map(|(name, value)| Some((ours(name)?, value.clone())));
        let fields: serde_json::Map<_, _> = given.chain(seed).map(|(name, value)| (name.to_owned(), value)).collect();
        let is_plain = ["linear", "cat"].contains(&self.kind.as_str());
        serde_json::from_value(if is_plain { json!(kind) } else { json!({kind: fields}) }).unwrap()
    }

    fn run(&self, order: &[String]) -> LoraAdapter {
        let adapters: Vec<_> =
            self.adapters.iter().zip(&self.weights).map(|(name, weight)| (adapter(name), *weight)).collect();
        combine(&adapters, &self.combination(), order).unwrap()
    }

    fn base(&self) -> &'static str {
        if self.adapters[0].starts_with("gpt2") { "gpt2" } else { "llama" }
    }
}

fn cases() -> Cases {
    serde_json::from_slice(&fs::read(fixture("combined/cases.json")).unwrap()).unwrap()
}

fn adapter(name: &str) -> Arc<LoraAdapter> {
    Arc::new(read_folder(&fixture("combined").join(name)).unwrap())
}

fn product(pair: &Pair) -> Vec<f64> {
    let Pair { rank, inputs, outputs, a, b } = pair;
    let term = |out: usize, input: usize, k: usize| f64::from(b[out * rank + k]) * f64::from(a[k * inputs + input]);
    let value = |out, input| (0..*rank).map(|k| term(out, input, k)).sum();
    (0..*outputs).flat_map(|out| (0..*inputs).map(move |input| value(out, input))).collect()
}

/// PEFT's pairs of a case, by module.
fn expected(tensors: &SafeTensors<'_>, case: usize) -> BTreeMap<String, Pair> {
    let floats = |name: &str| -> (Vec<f32>, Vec<usize>) {
        let tensor = tensors.tensor(name).unwrap();
        let values = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        (values, tensor.shape().to_vec())
    };
    let modules = tensors
        .names()
        .into_iter()
        .filter_map(|name| name.strip_prefix(&format!("{case}/"))?.strip_suffix("/A").map(str::to_owned));
    modules
        .map(|module| {
            let (a, a_shape) = floats(&format!("{case}/{module}/A"));
            let (b, b_shape) = floats(&format!("{case}/{module}/B"));
            (module, Pair { rank: a_shape[0], inputs: a_shape[1], outputs: b_shape[0], a, b })
        })
        .collect()
}

/// The largest difference, as a share of the largest value.
fn difference(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0f64, |most, value| most.max(value.abs()));
    ours.iter().zip(theirs).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max) / largest.max(f64::MIN_POSITIVE)
}

/// Combinations of factors to the bit, whatever the pruning.
#[test]
fn every_combination_equals_that_of_peft() {
    let bytes = fs::read(fixture("combined/combined.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let Cases { cases, order } = cases();
    assert_eq!(cases.len(), 29);
    let mut kinds: Vec<_> = cases.iter().map(|case| case.combination().name()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), 11, "all but the sum");
    for (index, case) in cases.iter().enumerate() {
        let result = case.run(&order[case.base()]);
        let expected = expected(&tensors, index);
        let text = format!("case {index}: {:?} of {:?}", case.combination(), case.adapters);
        assert_eq!(expected.len(), result.modules.len(), "{text}");
        for (name, theirs) in &expected {
            let module = result.module(name).unwrap_or_else(|| panic!("{text} lacks {name}"));
            assert_eq!(module.scale, 1.0, "{text}");
            let ours = Pair::of(module);
            let works_on_deltas = case.kind.ends_with("svd");
            if !works_on_deltas && theirs.rank == ours.rank {
                assert_eq!(ours.a, theirs.a, "{text}: A of {name}");
                assert_eq!(ours.b, theirs.b, "{text}: B of {name}");
            }
            let tolerance = if works_on_deltas { DECOMPOSED } else { 0.0 };
            let difference = difference(&product(&ours), &product(theirs));
            assert!(difference <= tolerance, "{text}: {name} differs by {difference:e}");
        }
    }
}

#[test]
fn the_outline_of_a_combination_is_that_of_what_comes_out() {
    let Cases { cases, order } = cases();
    let mut checked = 0;
    for case in &cases {
        let result = case.run(&order[case.base()]);
        let outline = |(name, weight): (&String, &f32)| (AdapterOutline::from(&*adapter(name)), *weight);
        let outlines: Vec<_> = case.adapters.iter().zip(&case.weights).map(outline).collect();
        let outline = combined_outline(&outlines, outlines.len(), &case.combination()).unwrap();
        assert_eq!(outline, AdapterOutline::from(&result), "{:?} of {:?}", case.combination(), case.adapters);
        checked += 1;
        let sum = combined_outline(&outlines, outlines.len(), &Combination::Sum).unwrap();
        let cat = combined_outline(&outlines, outlines.len(), &Combination::Cat).unwrap();
        assert_eq!((sum.modules, sum.bytes), (cat.modules, cat.bytes));
    }
    assert_eq!(checked, 29);
    let plain = (AdapterOutline::from(&*adapter("a")), 1.0);
    let mut tied = plain.clone();
    tied.0.features.push(AdapterFeature::WeightTying);
    let error = combined_outline(&[plain, tied], 2, &Combination::Linear).unwrap_err().to_string();
    assert!(error.contains("ensure_weight_tying"), "{error}");
}

#[test]
fn the_scale_is_1_where_peft_multiplies_with_the_root_of_the_rank() {
    let Cases { cases, order } = cases();
    let case = cases.iter().find(|case| case.scale != 1.0).unwrap();
    assert!(case.adapters[0] == "rank2-rslora" && (case.scale - 6f64.sqrt()).abs() < 1e-9);
    let result = case.run(&order["llama"]);
    assert!(result.modules.iter().all(|module| module.scale == 1.0));
    // That the scale is right is that the result is the sum of the deltas.
    let name = "model.layers.0.self_attn.v_proj";
    let mut sum = vec![0.0; 8 * 16];
    for (adapter_name, weight) in case.adapters.iter().zip(&case.weights) {
        let adapter = adapter(adapter_name);
        let module = adapter.module(name).unwrap();
        let delta = product(&Pair::of(module));
        sum.iter_mut().zip(delta).for_each(|(sum, value)| *sum += f64::from(*weight) * module.scale * value);
    }
    assert!(difference(&product(&Pair::of(result.module(name).unwrap())), &sum) < 3e-7);
}

#[test]
fn the_sum_is_that_of_cat_even_for_one_adapter() {
    let both = [(adapter("a"), 0.7), (adapter("b"), -0.4)];
    let none: [&str; 0] = [];
    let sum = combine(&both, &Combination::Sum, &none).unwrap();
    assert_eq!(sum.modules, combine(&both, &Combination::Cat, &none).unwrap().modules);
    let one = combine(&both[..1], &Combination::Sum, &none).unwrap();
    let module = &one.modules[0];
    assert_eq!(Pair::of(module).b, Pair::of(&both[0].0.modules[0]).b);
}

#[test]
fn the_result_says_what_it_is() {
    let adapters = [(adapter("a"), 0.5), (adapter("rank2-rslora"), 1.0)];
    let none: [&str; 0] = [];
    let of = |adapters: &[_], combination| combine(adapters, &combination, &none).unwrap();
    let result = of(&adapters, Combination::Cat);
    let references: Vec<_> = adapters.iter().map(|(adapter, _)| adapter.reference.clone()).collect();
    assert_eq!(result.reference, format!("cat({} * 0.5 + {} * 1)", references[0], references[1]));
    assert_eq!(result.features, [AdapterFeature::RankPattern, AdapterFeature::Embedding]);
    let Some(ModuleSelector::Names(names)) = result.targets.as_ref().map(|targets| &targets.modules) else { panic!() };
    assert!(names.iter().eq(result.modules.iter().map(|module| &module.name)));
    assert_eq!(result.base, adapters[0].0.base);
    let digests = [
        result.digest.clone(),
        of(&adapters, Combination::Sum).digest,
        of(&[(adapters[0].0.clone(), 0.25), adapters[1].clone()], Combination::Cat).digest,
        of(&adapters[..1], Combination::Cat).digest,
        of(&adapters, Combination::Svd { rank: None, clamp: None }).digest,
        of(&adapters, Combination::Svd { rank: Some(3), clamp: None }).digest,
    ];
    assert!(digests.iter().enumerate().all(|(i, digest)| digest.len() == 64 && !digests[..i].contains(digest)));
}

#[test]
fn one_that_is_left_of_several_is_another_than_one_alone() {
    let (left, none): (_, [&str; 0]) = ([(adapter("a"), 0.5)], []);
    let pruned = Combination::MagnitudePrune { density: 0.5 };
    let [alone, of_two] = [1, 2].map(|asked| combine_left(&left, asked, &pruned, &none).unwrap());
    assert_ne!(alone.digest, of_two.digest);
    let [alone, of_two] = [alone, of_two].map(|adapter| Pair::of(&adapter.modules[0]).a);
    let zeros = |a: &[f32]| a.iter().filter(|value| **value == 0.0).count();
    assert_eq!((zeros(&alone), zeros(&of_two)), (0, of_two.len() / 2));
}

#[test]
fn adapters_of_other_bases_are_combined_with_a_note() {
    let mut other = (*adapter("b")).clone();
    other.base.name = Some("elsewhere".into());
    let none: [&str; 0] = [];
    let result = combine(&[(adapter("a"), 1.0), (Arc::new(other), 1.0)], &Combination::Linear, &none).unwrap();
    assert_eq!(result.notes.len(), 1);
    assert!(result.notes[0].contains("elsewhere") && result.notes[0].contains("tiny"), "{}", result.notes[0]);
}

#[test]
fn module_orders_are_those_of_transformers() {
    let Cases { order, .. } = cases();
    let mut checked = 0;
    for (name, expected) in order.iter().filter(|(name, _)| name.contains('-')) {
        let config = fs::read(fixture("models").join(name).join("config.json")).unwrap();
        // Architectures that are not described have no order of ours.
        let Ok(config) = DecoderConfig::from_config(name, &serde_json::from_slice(&config).unwrap()) else { continue };
        assert_eq!(module_order(&config), *expected, "{name}");
        checked += 1;
    }
    assert!(checked >= 10, "{checked}");
}

/// What is said of `adapters`, with weights of 1, that cannot be combined.
fn refusal(adapters: Vec<LoraAdapter>, combination: Combination) -> String {
    let adapters: Vec<_> = adapters.into_iter().map(|adapter| (Arc::new(adapter), 1.0)).collect();
    combine(&adapters, &combination, &["other"]).unwrap_err().to_string()
}

#[test]
fn what_is_no_plain_pair_is_refused_by_its_name() {
    type Change = fn(&mut LoraAdapter);
    let changes: [(Change, &str); 9] = [
        (|a| a.modules[0].magnitude = Some(vec![1.0; 90]), "DoRA (`model.embed_tokens`)"),
        (|a| a.modules[0].bias = Some(vec![1.0; 90]), "lora_bias (`model.embed_tokens`)"),
        (|a| a.modules[0].experts = Some(1), "experts (`model.embed_tokens`)"),
        (|a| a.modules[0].is_parameter = true, "target_parameters (`model.embed_tokens`)"),
        (
            |a| a.replacements = vec![ReplacementTensor::new("lm_head.weight", vec![1], vec![1.0])],
            "modules_to_save or bias (`lm_head.weight`)",
        ),
        (
            |a| a.rows = vec![ReplacedRows::new("model.embed_tokens.weight", vec![3], vec![1.0])],
            "trainable_token_indices (`model.embed_tokens.weight`)",
        ),
        (|a| a.features.push(AdapterFeature::WeightTying), "ensure_weight_tying"),
        (|a| a.modules.clear(), "no low-rank pair"),
        (|a| a.row_order = Layout::Gguf, "in the order of GGUF"),
    ];
    for (change, expected) in changes {
        let mut changed = (*adapter("a")).clone();
        change(&mut changed);
        let message = refusal(vec![(*adapter("b")).clone(), changed.clone()], Combination::Linear);
        assert!(message.starts_with(&format!("adapter {}", changed.reference)), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn pairs_that_do_not_fit_each_other_are_refused() {
    let change_first = |change: fn(&mut LoraModule)| {
        let mut changed = (*adapter("a")).clone();
        change(&mut changed.modules[0]);
        vec![(*adapter("b")).clone(), changed]
    };
    let embedding = |rank, vocabulary, values: f32| {
        let (a, b) = (vec![values; rank * 16], vec![values; vocabulary * rank]);
        LoraModule::new("model.embed_tokens", (rank, 16, vocabulary), a, b, 1.0)
    };
    let with = |module: LoraModule| vec![(*adapter("b")).clone(), LoraAdapter::new("x", "x", vec![module])];
    let linear = |adapters| refusal(adapters, Combination::Linear);
    let message = linear(with(embedding(2, 90, 1.0)));
    assert!(message.contains("`model.embed_tokens` is 2") && message.contains("`cat`"), "{message}");
    let message = linear(with(embedding(4, 89, 1.0)));
    assert!(message.contains("(89, 16)") && message.contains("(90, 16)"), "{message}");
    let message = linear(change_first(|module| module.transposed = true));
    assert!(message.contains("fan_in_fan_out"), "{message}");
    let message = linear(change_first(|module| module.rank = 3));
    assert!(message.contains("do not fit its rank"), "{message}");
    let message = linear(change_first(|module| module.scale = f64::INFINITY));
    assert!(message.contains("has the scale inf"), "{message}");
    let message = linear(with(embedding(4, 90, f32::NAN)));
    assert!(message.contains("A of `model.embed_tokens` holds NaN at index 0"), "{message}");
    let message = linear(with(embedding(4, 90, 3e38)).into_iter().cycle().skip(1).take(3).collect());
    assert!(message.contains("combined holds inf"), "{message}");
    let other_ranks = with(embedding(2, 90, 1.0)).into_iter().map(|adapter| (Arc::new(adapter), 1.0));
    assert!(combine(&other_ranks.collect::<Vec<_>>(), &Combination::Cat, &["x"]).is_ok());
}

#[test]
fn a_random_combination_needs_the_order_of_each_module() {
    let random = Combination::DareLinear { density: 0.5, seed: 1 };
    let message = refusal(vec![(*adapter("a")).clone(), (*adapter("b")).clone()], random);
    assert!(message.contains("lacks `model.embed_tokens`"), "{message}");
}

#[test]
fn weights_and_fields_out_of_range_are_refused() {
    let none: [&str; 0] = [];
    let message = combine(&[(adapter("a"), f32::NAN)], &Combination::Cat, &none).unwrap_err().to_string();
    assert!(message.contains("weight is NaN"), "{message}");
    assert!(combine(&[], &Combination::Cat, &none).unwrap_err().to_string().contains("at least one"));
    let majority_sign = MajoritySign::Total;
    for (combination, expected) in [
        (
            Combination::Ties { density: 0.0, majority_sign },
            "density of the combination ties: expected a share above 0",
        ),
        (Combination::DareLinear { density: 1.5, seed: 0 }, "found 1.5"),
        (Combination::MagnitudePrune { density: f64::NAN }, "found NaN"),
        (Combination::Svd { rank: Some(0), clamp: None }, "rank of the combination svd: expected 1 or more"),
        (Combination::Svd { rank: None, clamp: Some(1.1) }, "clamp of the combination svd: expected a quantile"),
    ] {
        let message = combine(&[(adapter("a"), 1.0)], &combination, &none).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn combinations_are_written_in_kebab_case() {
    let read = |text: &str| serde_json::from_str::<Combination>(text);
    let text = r#"{"dare-ties-svd": {"density": 0.5, "majority_sign": "frequency", "seed": 3, "rank": 8}}"#;
    let combination = Combination::DareTiesSvd {
        density: 0.5,
        majority_sign: MajoritySign::Frequency,
        seed: 3,
        rank: Some(8),
        clamp: None,
    };
    assert_eq!(read(text).unwrap(), combination);
    assert_eq!(serde_json::to_value(combination).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    assert_eq!(serde_json::to_value(Combination::Cat).unwrap(), "cat");
    let defaults = Combination::Ties { density: 0.5, majority_sign: MajoritySign::Total };
    assert_eq!(read(r#"{"ties": {"density": 0.5}}"#).unwrap(), defaults);
    assert_eq!(read(r#""sum""#).unwrap(), Combination::default());
    let refused = |text: &str| read(text).unwrap_err().to_string();
    assert!(refused(r#"{"dare-linear": {"density": 0.5}}"#).contains("seed"));
    assert!(refused(r#"{"svd": {"density": 0.5}}"#).contains("density"));
    assert!(read(r#"{"cat": {"rank": 3}}"#).is_err() && read(r#""ties""#).is_err() && read(r#""slerp""#).is_err());
}
