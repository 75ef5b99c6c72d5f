//! What an adapter declares beside pairs, and what it does without parts that are left out.

use std::collections::BTreeSet;

use llm_local_core::{Allowance, LoraAdapter, LoraModule, lora::ReplacementTensor};
use serde_json::json;

use super::*;
use crate::lora::CompatibilityReport;

#[test]
fn modules_that_are_saved_in_full_are_no_targets() {
    let mut adapter = TestAdapter::new();
    adapter.set("target_modules", json!(["q_proj", "v_proj", "k_proj", "up_proj"]));
    misfit("declared", |t| t.config = adapter.config.clone(), &["4 targets", "k_proj", "up_proj"]);
    adapter.set("modules_to_save", json!(["k_proj", "mlp"]));
    for layer in 0..4 {
        adapter.tensor(format!("base_model.model.{}.weight", TestAdapter::module(layer, "k_proj")), &[64, 128]);
        for (name, shape) in [("gate_proj", [384, 128]), ("up_proj", [384, 128]), ("down_proj", [128, 384])] {
            adapter.tensor(format!("base_model.model.model.layers.{layer}.mlp.{name}.weight"), &shape);
        }
    }
    let report = adapter.fit().unwrap();
    assert_eq!((report.adapters[0].modules, report.adapters[0].replaced), (4, 16));
    // PEFT compares whole segments: this is none of `layers.2.self_attn.k_proj`, but is the end of its path.
    adapter.set("modules_to_save", json!(["proj", "k_proj", "mlp"]));
    adapter.fit().unwrap();
}

#[test]
fn a_pair_of_a_module_that_is_saved_in_full_is_not_declared() {
    let mut adapter = TestAdapter::new();
    adapter.set("modules_to_save", json!(["v_proj"]));
    for layer in [2, 3] {
        adapter.tensor(format!("base_model.model.{}.weight", TestAdapter::module(layer, "v_proj")), &[64, 128]);
    }
    let report = CompatibilityReport::new(&adapter.read().unwrap(), 1.0, &BTreeSet::new(), &tiny_llama_info(|_| {}));
    assert_eq!(report.defects.len(), 2, "{report}");
    for defect in &report.defects {
        assert_eq!(defect.allowance, Some(Allowance::UndeclaredTensors));
        assert!(defect.reason.contains("v_proj`, which `modules_to_save` has in full"), "{report}");
    }
    misfit(
        "broken",
        |t| {
            t.set("modules_to_save", json!(["(norm"])).tensor("base_model.model.model.(norm.weight", &[128]);
        },
        &["`modules_to_save`", "`(norm`", "broken"],
    );
}

#[test]
fn what_is_left_out_has_no_effect() {
    let info = tiny_llama_info(|_| {});
    let pair = |layer: usize, b: f32| {
        let name = format!("model.layers.{layer}.self_attn.q_proj");
        LoraModule::new(name, (1, 128, 128), vec![1.0; 128], vec![b; 128], 1.0)
    };
    let unused = [Allowance::UnusedTensors].into();
    let refused = |adapter: LoraAdapter| {
        let error = super::super::fit_allowing(&[(Arc::new(adapter.clone()), 1.0)], &[unused], &info).unwrap_err();
        assert_names("no effect", &error, &["becomes 0 in its one module", "would do nothing", "`no-effect`"]);
        let report = CompatibilityReport::new(&adapter, 1.0, &[Allowance::UnusedTensors].into(), &info);
        assert_eq!(report.defects.last().unwrap().allowance, Some(Allowance::NoEffect), "{report}");
        assert!(!report.fits);
    };
    refused.clone()(LoraAdapter::new("x", "", vec![pair(0, 0.0), pair(9, 1.0)]));
    let elsewhere = ReplacementTensor::new("score.weight", vec![2, 128], vec![1.0; 256]);
    refused(LoraAdapter::new("x", "", vec![pair(0, 0.0)]).with_replacements(vec![elsewhere]));
    // What is applied has an effect, whatever is left out.
    let adapter = LoraAdapter::new("x", "", vec![pair(0, 1.0), pair(9, 0.0)]);
    super::super::fit_allowing(&[(Arc::new(adapter), 1.0)], &[[Allowance::UnusedTensors].into()], &info).unwrap();
}
