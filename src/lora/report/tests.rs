use std::{collections::BTreeSet, sync::Arc};

use llm_local_core::{
    Allowance, LoraAdapter, LoraModule, TensorSource,
    lora::{DeclaredTargets, Floats, ModuleSelector, ReplacedRows, ReplacementTensor},
};
use serde_json::json;

use super::{BaseFacts, CompatibilityReport, IdentityVerdict, ModuleEffect, TensorState};
use crate::lora::{
    MergedSource, fit, fit_allowing, floats,
    testing::{TestAdapter, Unreadable, fixture, read_folder, tiny_llama, tiny_llama_info},
};

fn allowed(all: &[Allowance]) -> BTreeSet<Allowance> {
    all.iter().copied().collect()
}

fn report(adapter: &LoraAdapter, allow: &[Allowance]) -> CompatibilityReport {
    let report = CompatibilityReport::new(adapter, 1.0, &allowed(allow), &tiny_llama_info(|_| {}));
    // The report and the check never differ, and no weight is read by either.
    let adapters = [(Arc::new(adapter.clone()), 1.0)];
    let info = tiny_llama_info(|_| {});
    let fitted = fit_allowing(&adapters, &[allowed(allow)], &info);
    assert_eq!(report.fits, fitted.is_ok(), "{fitted:?}\n{report}");
    let base = Arc::new(Unreadable(info.tensors.clone()));
    let merged = MergedSource::allowing(base, adapters.to_vec(), &[allowed(allow)], &info);
    assert_eq!(merged.err().map(|e| e.to_string()), fitted.err().map(|e| e.to_string()));
    report
}

/// Asserts that each of `kinds` refuses `adapter` until it is allowed, with `word` in what is said.
fn needs(label: &str, adapter: &LoraAdapter, kinds: &[Allowance], word: &str) -> CompatibilityReport {
    for left_out in kinds {
        let others: Vec<_> = Allowance::ALL.into_iter().filter(|kind| kind != left_out).collect();
        let refused = report(adapter, &others);
        assert!(!refused.fits, "{label} without {left_out}\n{refused}");
        let defect = refused.defects.iter().find(|defect| defect.allowance == Some(*left_out)).unwrap();
        assert!(refused.to_string().contains(&format!("error ({left_out} would let it pass)  {}", defect.reason)));
    }
    let passed = report(adapter, kinds);
    assert!(passed.fits, "{label}\n{passed}");
    let said: BTreeSet<_> = passed.defects.iter().map(|defect| defect.allowance.unwrap()).collect();
    assert_eq!(said, allowed(kinds), "{label}");
    assert!(passed.defects.iter().any(|defect| defect.reason.contains(word)), "{label}: {passed}");
    let info = tiny_llama_info(|_| {});
    let fitted = fit_allowing(&[(Arc::new(adapter.clone()), 1.0)], &[allowed(kinds)], &info).unwrap();
    assert_eq!(fitted.adapters[0].let_pass, passed.defects, "{label}");
    passed
}

#[test]
fn a_good_adapter_is_applied_in_every_tensor_and_covers_what_it_declares() {
    let good = read_folder(&fixture("bad-adapters/_control-good")).unwrap();
    let report = report(&good, &[]);
    assert!(report.fits && report.defects.is_empty(), "{report}");
    assert!(report.tensors.iter().all(|t| t.state == TensorState::Applied && t.changes.len() == 1));
    assert_eq!(report.tensors.len(), 2 * good.modules.len());
    assert_eq!(report.targets.len(), good.modules.len());
    assert!(report.targets.iter().all(|target| target.is_covered));
    let data = serde_json::to_value(&report).unwrap();
    assert_eq!(data["fits"], true);
    assert_eq!(data["tensors"][0]["state"], "applied");
    assert_eq!(data["identity"]["config_digest"]["verdict"], "unknown");
}

#[test]
fn the_text_of_a_report_says_all_of_it() {
    let mut adapter = TestAdapter::new();
    adapter.at(&TestAdapter::key(2, "q_proj", "lora_A")).2 = vec![2, 96];
    adapter.at(&TestAdapter::key(2, "q_proj", "lora_A")).3 = vec![0; 4 * 2 * 96];
    adapter.pair("model.layers.9.self_attn.q_proj", 2, 128, 128);
    adapter.set("layers_to_transform", json!([2, 3, 9]));
    let mut read = adapter.read().unwrap();
    read.modules.retain(|module| !module.name.ends_with("3.self_attn.v_proj"));
    read.targets.as_mut().unwrap().layers = vec![2, 3];
    let facts = BaseFacts { repository: Some("org/tiny-llama".into()), ..BaseFacts::default() };
    let info = tiny_llama_info(|_| {});
    let report = CompatibilityReport::new(&read, 0.5, &allowed(&[Allowance::MissingTensors]), &info);
    let report = report.with_facts(&read, &info, &facts).with_alpha(Some(4.0));
    let text = report.to_string().replace(&read.reference, "REF");
    let expected = "\
adapter   REF
base      tiny-llama
verdict   it does not fit
  error  `model.layers.2.self_attn.q_proj.lora_A` has the shape (2, 96); expected (2, 128), since the base tensor \
`model.layers.2.self_attn.q_proj.weight` has the shape (128, 128)
  error (unused-tensors would let it pass)  `model.layers.9.self_attn.q_proj.lora_A` and `.lora_B` belong to the tensor \
`model.layers.9.self_attn.q_proj.weight`, which `tiny-llama` does not have; was the adapter trained on another base?
  error (undeclared-tensors would let it pass)  it has tensors for the module `model.layers.9.self_attn.q_proj`, which \
`layers_to_transform` leaves out
  let pass (missing-tensors)  it declares 1 target that it has no tensors for: `model.layers.3.self_attn.v_proj`; it is \
incomplete, or `target_modules` (or `target_parameters`) covers more than was trained
format    peft
features  plain pairs alone
rank      2
alpha     4
scale     1
base by                  verdict   trained on -> this one
          name           match     tiny-llama -> org/tiny-llama
          revision       unknown   ? -> ?
          config digest  unknown   ? -> ?
          vocabulary     unknown   ? -> 896
          architecture   unknown   ? -> llama
tensors   4 applied, 2 unused, 1 misshaped, 1 refused
  misshaped  model.layers.2.self_attn.q_proj.lora_A (2, 96), expected (2, 128)
  refused    model.layers.2.self_attn.q_proj.lora_B (128, 2)
  unused     model.layers.9.self_attn.q_proj.lora_A (2, 128)
  unused     model.layers.9.self_attn.q_proj.lora_B (128, 2)
targets   3 with tensors, 1 without
  without    model.layers.3.self_attn.v_proj
";
    assert_eq!(text, expected);
}

#[test]
fn every_defect_of_an_adapter_is_in_the_report_and_not_the_first_few() {
    let wrong = read_folder(&fixture("bad-adapters/wrong-base-hidden96")).unwrap();
    let report = report(&wrong, &Allowance::ALL);
    let misshaped = |suffix: &str| {
        let is = |state: &TensorState| matches!(state, TensorState::Misshaped { .. });
        report.tensors.iter().filter(|t| t.name.ends_with(suffix) && is(&t.state)).count()
    };
    assert!(wrong.modules.len() > 3);
    assert_eq!(report.defects.len(), wrong.modules.len(), "{report}");
    assert_eq!((misshaped("lora_A"), misshaped("q_proj.lora_B")), (wrong.modules.len(), 2), "{report}");
    let query = report.tensors.iter().find(|tensor| tensor.name.ends_with("q_proj.lora_A")).unwrap();
    assert_eq!(query.state, TensorState::Misshaped { expected: vec![8, 128] });
}

#[test]
fn tensors_that_the_base_has_nothing_for_are_left_out_only_where_that_is_allowed() {
    let mut adapter = TestAdapter::new().read().unwrap();
    adapter.modules.push(LoraModule::new(
        "model.layers.9.self_attn.q_proj",
        (1, 2, 2),
        vec![1.0; 2],
        vec![1.0; 2],
        1.0,
    ));
    adapter.replacements.push(ReplacementTensor::new("score.weight", vec![2, 2], vec![0.0; 4]));
    let passed = needs("unused", &adapter, &[Allowance::UnusedTensors], "layers.9");
    let unused: Vec<_> = passed.not_applied().map(|t| (t.name.as_str(), &t.state)).collect();
    let unused_names: Vec<_> = unused.iter().map(|(name, _)| *name).collect();
    let expected = ["model.layers.9.self_attn.q_proj.lora_A", "model.layers.9.self_attn.q_proj.lora_B", "score.weight"];
    assert_eq!(unused_names, expected);
    assert!(unused.iter().all(|(_, state)| **state == TensorState::Unused));

    let info = tiny_llama_info(|_| {});
    let adapters = [(Arc::new(adapter), 1.0)];
    let allow = [allowed(&[Allowance::UnusedTensors])];
    let fitted = &fit_allowing(&adapters, &allow, &info).unwrap().adapters[0];
    assert_eq!((fitted.modules, fitted.replaced, fitted.ranks), (4, 0, (2, 2)));
    // What a backend gets to run beside the weights has them no more.
    let given = crate::lora::for_backend(&adapters, &allow, &info).unwrap();
    assert_eq!((given[0].0.modules.len(), given[0].0.replacements.len()), (4, 0));
    assert!(fit(&given, &info).is_ok());
}

#[test]
fn tensors_that_are_not_declared_and_declared_ones_that_are_missing_pass_only_where_that_is_allowed() {
    let mut undeclared = TestAdapter::new();
    undeclared.set("target_modules", json!(["q_proj"]));
    let passed = needs("undeclared", &undeclared.read().unwrap(), &[Allowance::UndeclaredTensors], "v_proj");
    assert!(passed.tensors.iter().all(|tensor| tensor.state == TensorState::Applied));
    let unknown = read_folder(&fixture("bad-adapters/unknown-target-modules")).unwrap();
    let kinds = [Allowance::UndeclaredTensors, Allowance::UnusedTensors, Allowance::NoEffect];
    needs("nothing declared", &unknown, &kinds, "no module of the base matches");
    let mut missing = TestAdapter::new();
    missing.set("target_modules", json!(["q_proj", "v_proj", "o_proj"]));
    let passed = needs("missing", &missing.read().unwrap(), &[Allowance::MissingTensors], "o_proj");
    assert_eq!(passed.targets.iter().filter(|target| !target.is_covered).count(), 2);
}

#[test]
fn an_effect_of_nothing_passes_only_where_that_is_allowed() {
    let mut zero = TestAdapter::new();
    zero.set("lora_alpha", json!(1e-300));
    needs("zero", &zero.read().unwrap(), &[Allowance::NoEffect], "too small for f32");
    let empty = LoraAdapter::new("empty", "", Vec::new());
    needs("empty", &empty, &[Allowance::NoEffect], "no low-rank pairs");
    let other = LoraModule::new("h.0.attn", (1, 2, 2), vec![1.0; 2], vec![1.0; 2], 1.0);
    let other = LoraAdapter::new("other", "", vec![other]);
    needs("of another base", &other, &[Allowance::UnusedTensors, Allowance::NoEffect], "none of the tensors");
}

#[test]
fn what_no_allowance_is_for_never_passes() {
    let mut twice = TestAdapter::new().read().unwrap();
    twice.modules.push(twice.modules[0].clone());
    let report = report(&twice, &Allowance::ALL);
    assert!(!report.fits && report.to_string().contains("stands there twice"), "{report}");
}

#[test]
fn the_vocabulary_is_compared_where_the_adapter_has_an_embedding() {
    let rows = |name: &str, rows: usize| {
        let module = LoraModule::new(name, (1, 128, rows), vec![1.0; 128], vec![1.0; rows], 1.0);
        report(&LoraAdapter::new("x", "", vec![module]), &[]).identity.vocabulary
    };
    assert_eq!(rows("model.embed_tokens", 896).verdict, IdentityVerdict::Match);
    let other = rows("lm_head", 900);
    assert_eq!((other.verdict, other.adapter.as_deref()), (IdentityVerdict::Mismatch, Some("900")));
    assert_eq!(rows("model.layers.0.mlp.up_proj", 256).verdict, IdentityVerdict::Unknown);
}

/// What `effects` say, against the difference of merged and base in f64 from a naive sum.
fn effects(adapter: LoraAdapter, weight: f32) -> Vec<ModuleEffect> {
    let info = tiny_llama_info(|_| {});
    let base: Arc<dyn TensorSource> = Arc::new(tiny_llama());
    let adapter = Arc::new(adapter);
    let report = CompatibilityReport::new(&adapter, weight, &allowed(&[]), &info);
    assert!(report.fits, "{report}");
    report.with_effects(&adapter, weight, &base, &info).unwrap().effects.unwrap()
}

fn values(name: &str) -> Vec<f64> {
    let base = tiny_llama();
    let encoding = base.entry(name).unwrap().encoding;
    let llm_local_core::Encoding::Float(stored) = encoding else { panic!("{encoding}") };
    let owned = floats::own(base.read(name, None).unwrap(), stored).unwrap();
    wide(&owned)
}

fn wide(values: &Floats) -> Vec<f64> {
    floats::widened(values).into_iter().map(f64::from).collect()
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// `scale * B @ A`, by the definition.
fn product(module: &LoraModule) -> Vec<f64> {
    let (a, b) = (wide(&module.a), wide(&module.b));
    let (r, columns) = (module.rank, module.in_features);
    let at = |i: usize, j: usize| (0..r).map(|k| b[i * r + k] * a[k * columns + j]).sum::<f64>() * module.scale;
    (0..module.out_features).flat_map(|i| (0..columns).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect()
}

#[track_caller]
fn assert_close(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance * expected.abs(), "{found} instead of {expected}");
}

#[test]
fn the_effect_of_pairs_is_that_of_a_naive_product() {
    let adapter = read_folder(&fixture("adapters/tiny-llama-lora-peft")).unwrap();
    let measured = effects(adapter.clone(), -0.5);
    assert_eq!(measured.len(), adapter.modules.len());
    for (effect, module) in measured.iter().zip(&adapter.modules) {
        assert_eq!(effect.name, module.name);
        let (delta, weight) = (norm(product(module)) * 0.5, norm(values(&module.weight_name())));
        assert_close(effect.delta_norm, delta, 1e-12);
        assert_close(effect.weight_norm, weight, 1e-12);
        assert_close(effect.ratio.unwrap(), delta / weight, 1e-12);
    }
}

#[test]
fn the_effect_of_dora_is_the_difference_that_it_makes() {
    let adapter = read_folder(&fixture("adapters/tiny-llama-lora-dora")).unwrap();
    let measured = effects(adapter.clone(), 0.5);
    assert_eq!(measured.len(), adapter.modules.len());
    for (effect, module) in measured.iter().zip(&adapter.modules) {
        assert_eq!(effect.name, module.name);
        let own = values(&module.weight_name());
        let sum: Vec<_> = own.iter().zip(product(module)).map(|(w, d)| w + d).collect();
        let rows = sum.chunks(module.in_features).zip(own.chunks(module.in_features));
        let magnitudes = module.magnitude.as_ref().unwrap();
        let delta = rows.zip(magnitudes).flat_map(|((sum, own), m)| {
            let factor = f64::from(*m) / norm(sum.iter().copied());
            sum.iter().zip(own).map(move |(v, w)| 0.5 * (factor * v - w)).collect::<Vec<_>>()
        });
        // The merge rounds its result to f32.
        assert_close(effect.delta_norm, norm(delta), 1e-5);
        assert_close(effect.weight_norm, norm(own), 1e-12);
    }
}

#[test]
fn the_effect_of_replacements_and_rows_is_the_difference_that_they_make() {
    let name = "model.layers.1.input_layernorm.weight";
    let replacement = ReplacementTensor::new(name, vec![128], vec![0.25; 128]);
    let rows = ReplacedRows::new("model.embed_tokens.weight", vec![3, 5], vec![0.5; 256]);
    let adapter = LoraAdapter::new("x", "", Vec::new()).with_replacements(vec![replacement]).with_rows(vec![rows]);
    let measured = effects(adapter, 1.0);
    let embedding = values("model.embed_tokens.weight");
    let of_rows = [3, 5].into_iter().flat_map(|row| &embedding[row * 128..][..128]).map(|v| 0.5 - v);
    assert_eq!(measured.len(), 2);
    assert_close(measured[0].delta_norm, norm(of_rows), 1e-6);
    assert_close(measured[0].weight_norm, norm(embedding.clone()), 1e-12);
    assert_eq!(measured[1].name, name);
    assert_close(measured[1].delta_norm, norm(values(name).into_iter().map(|v| 0.25 - v)), 1e-6);
}

#[test]
fn two_pairs_of_one_tensor_are_measured_together() {
    let pair = |name: &str, value: f32| LoraModule::new(name, (1, 128, 896), vec![value; 128], vec![value; 896], 1.0);
    let adapter = LoraAdapter::new("x", "", vec![pair("model.embed_tokens", 0.5), pair("lm_head", 0.25)]);
    let adapter = adapter
        .with_targets(DeclaredTargets::new(ModuleSelector::Names(vec!["embed_tokens".into(), "lm_head".into()])));
    let measured = effects(adapter, 1.0);
    assert_eq!((measured.len(), measured[0].name.as_str()), (1, "model.embed_tokens.weight"));
    let expected = (0.5f64.powi(2) + 0.25f64.powi(2)) * (128.0f64 * 896.0).sqrt();
    assert_close(measured[0].delta_norm, expected, 1e-5);
}
