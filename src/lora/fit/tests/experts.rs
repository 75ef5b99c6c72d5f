//! Mixtures of experts.

use std::collections::BTreeSet;

use llm_local_core::{
    Allowance, Encoding, FloatType, LoraAdapter, LoraModule, ModelFormat, ModelInfo, TensorEntry,
    lora::{DeclaredTargets, ModuleSelector},
};
use serde_json::json;

use super::*;
use crate::lora::{CompatibilityReport, TensorState};

const LAYERS: usize = 2;
const EXPERTS: usize = 3;

/// A mixture as checkpoints of Mixtral and of Qwen name it, or as it is in memory: of 4 features, and 6 within experts.
fn mixture(naming: &str) -> ModelInfo {
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        tensors.push(TensorEntry::new(name, shape.to_vec(), Encoding::Float(FloatType::F32)));
    };
    for layer in 0..LAYERS {
        let layer = format!("model.layers.{layer}");
        add(format!("{layer}.self_attn.q_proj.weight"), &[4, 4]);
        let (block, [gate, up, down]) = match naming {
            "mixtral" => ("block_sparse_moe", ["w1", "w3", "w2"]),
            _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
        };
        add(format!("{layer}.{block}.gate.weight"), &[EXPERTS, 4]);
        if naming == "stacked" {
            add(format!("{layer}.mlp.experts.gate_up_proj"), &[EXPERTS, 12, 4]);
            add(format!("{layer}.mlp.experts.down_proj"), &[EXPERTS, 4, 6]);
            continue;
        }
        for expert in 0..EXPERTS {
            add(format!("{layer}.{block}.experts.{expert}.{gate}.weight"), &[6, 4]);
            add(format!("{layer}.{block}.experts.{expert}.{up}.weight"), &[6, 4]);
            add(format!("{layer}.{block}.experts.{expert}.{down}.weight"), &[4, 6]);
        }
    }
    let config = Arc::new(json!({"model_type": "test"}));
    ModelInfo::new("mixture", ModelFormat::Safetensors { config }, tensors)
}

fn pair(name: String, inputs: usize, outputs: usize) -> LoraModule {
    LoraModule::new(name, (1, inputs, outputs), vec![1.0; inputs], vec![1.0; outputs], 1.0)
}

/// The pairs of a bare parameter of the layer.
fn stacked(layer: usize, name: &str, experts: usize, inputs: usize, outputs: usize) -> LoraModule {
    let (a, b) = (vec![1.0; experts * inputs], vec![1.0; experts * outputs]);
    LoraModule::of_experts(format!("model.layers.{layer}.mlp.experts.{name}"), experts, (1, inputs, outputs), a, b, 1.0)
        .of_parameter()
}

fn down(layer: usize) -> LoraModule {
    stacked(layer, "down_proj", EXPERTS, 6, 4)
}

fn of_parameters(modules: Vec<LoraModule>, parameters: &[&str]) -> LoraAdapter {
    let parameters = parameters.iter().map(|name| (*name).to_owned()).collect();
    let targets = DeclaredTargets::new(ModuleSelector::Names(Vec::new())).with_parameters(parameters);
    LoraAdapter::new("experts", "", modules).with_targets(targets)
}

fn allowances(adapter: &LoraAdapter, base: &ModelInfo) -> Vec<Option<Allowance>> {
    let report = CompatibilityReport::new(adapter, 1.0, &BTreeSet::new(), base);
    report.defects.iter().map(|defect| defect.allowance).collect()
}

#[test]
fn declared_parameters_and_their_tensors_must_agree() {
    for naming in ["mixtral", "qwen", "stacked"] {
        let base = mixture(naming);
        let whole = of_parameters(vec![down(0), down(1)], &["mlp.experts.down_proj"]);
        let report = CompatibilityReport::new(&whole, 1.0, &BTreeSet::new(), &base);
        assert!(report.fits, "{naming}: {report}");
        let covered: Vec<_> = report.targets.iter().map(|t| (t.module.as_str(), t.is_covered)).collect();
        assert_eq!(
            covered,
            [0, 1]
                .map(|l| format!("model.layers.{l}.mlp.experts.down_proj"))
                .iter()
                .map(|n| (n.as_str(), true))
                .collect::<Vec<_>>()
        );

        let half = of_parameters(vec![down(0)], &["mlp.experts.down_proj"]);
        assert_eq!(allowances(&half, &base), [Some(Allowance::MissingTensors)], "{naming}");
        let error = fit_unread(half, &base).unwrap_err();
        assert_names(
            naming,
            &error,
            &["1 target that", "`model.layers.1.mlp.experts.down_proj`", "`target_parameters`"],
        );
        let more = of_parameters(vec![down(0), down(1)], &["experts.down_proj", "experts.gate_up_proj"]);
        assert_names(
            naming,
            &fit_unread(more, &base).unwrap_err(),
            &["2 targets", "layers.0.mlp.experts.gate_up_proj"],
        );

        let other = of_parameters(vec![down(0), down(1)], &["experts.gate_up_proj"]);
        assert!(allowances(&other, &base).contains(&Some(Allowance::UndeclaredTensors)), "{naming}");
        assert_names(
            naming,
            &fit_unread(other, &base).unwrap_err(),
            &["layers.0.mlp.experts.down_proj`, which `target_parameters` does not name"],
        );

        // A name that nothing has is reported beside others, and refused alone.
        let unmatched = of_parameters(vec![down(0), down(1)], &["experts.down_proj", "experts.w9"]);
        let report = CompatibilityReport::new(&unmatched, 1.0, &BTreeSet::new(), &base);
        assert!(report.fits && report.unmatched_targets == ["experts.w9"], "{naming}: {report}");
    }
    let mut alone = of_parameters(vec![pair("model.layers.0.self_attn.k_proj".into(), 4, 4)], &["experts.w9"]);
    alone.targets.as_mut().unwrap().modules = ModuleSelector::Names(vec!["k_proj".into()]);
    assert_names(
        "alone",
        &fit_unread(alone, &mixture("qwen")).unwrap_err(),
        &["`target_parameters` declares `experts.w9`"],
    );
}

#[test]
fn routers_have_the_names_that_they_have_in_memory() {
    for naming in ["mixtral", "qwen", "stacked"] {
        let base = mixture(naming);
        let router = |layer| pair(format!("model.layers.{layer}.mlp.gate.weight"), 4, EXPERTS).of_parameter();
        let report = fit_unread(of_parameters(vec![router(0), router(1)], &["mlp.gate.weight"]), &base).unwrap();
        let block = if naming == "mixtral" { "block_sparse_moe" } else { "mlp" };
        assert_eq!(report.touched[0].name, format!("model.layers.0.{block}.gate.weight"));
        let error = fit_unread(of_parameters(vec![router(0)], &["mlp.gate.weight"]), &base).unwrap_err();
        assert_names(naming, &error, &["1 target that", "`model.layers.1.mlp.gate.weight`"]);
    }
    // As older versions of transformers, and the checkpoint, call it.
    let stored = |layer| pair(format!("model.layers.{layer}.block_sparse_moe.gate"), 4, EXPERTS);
    fit_unread(LoraAdapter::new("x", "", vec![stored(0), stored(1)]), &mixture("mixtral")).unwrap();
}

#[test]
fn pairs_of_fewer_or_more_experts_than_the_base_has_are_misshaped() {
    for naming in ["mixtral", "qwen", "stacked"] {
        for count in [1, EXPERTS - 1, EXPERTS + 1] {
            let adapter = LoraAdapter::new("x", "", vec![stacked(0, "gate_up_proj", count, 4, 12)]);
            let report = CompatibilityReport::new(&adapter, 1.0, &BTreeSet::new(), &mixture(naming));
            assert!(report.defects.iter().all(|defect| defect.allowance.is_none()), "{naming}: {report}");
            assert!(report.defects[0].reason.contains(&format!("need ({count}, out, in)")), "{naming}: {report}");
            let states: Vec<_> = report.tensors.iter().map(|tensor| tensor.state.clone()).collect();
            let expected = [vec![EXPERTS, 1, 4], vec![EXPERTS, 12, 1]];
            assert_eq!(states, expected.map(|expected| TensorState::Misshaped { expected }), "{naming}");
        }
    }
}

#[test]
fn all_linear_means_experts_and_routers_where_the_adapter_has_one_of_them() {
    let attention = || (0..LAYERS).map(|layer| pair(format!("model.layers.{layer}.self_attn.q_proj"), 4, 4));
    let all_linear = |modules: Vec<LoraModule>| {
        LoraAdapter::new("x", "", modules).with_targets(DeclaredTargets::new(ModuleSelector::AllLinear))
    };
    for (naming, block, [gate, up, down]) in
        [("mixtral", "block_sparse_moe", ["w1", "w3", "w2"]), ("qwen", "mlp", ["gate_proj", "up_proj", "down_proj"])]
    {
        let base = mixture(naming);
        fit_unread(all_linear(attention().collect()), &base).unwrap();
        let expert = |layer: usize, expert: usize| {
            let path = format!("model.layers.{layer}.{block}.experts.{expert}");
            [
                pair(format!("{path}.{gate}"), 4, 6),
                pair(format!("{path}.{up}"), 4, 6),
                pair(format!("{path}.{down}"), 6, 4),
            ]
        };
        let experts = (0..LAYERS).flat_map(|layer| (0..EXPERTS).flat_map(move |e| expert(layer, e)));
        let mut whole: Vec<_> = attention().chain(experts).collect();
        fit_unread(all_linear(whole.clone()), &base).unwrap();
        whole.pop();
        let error = fit_unread(all_linear(whole.clone()), &base).unwrap_err();
        assert_names(naming, &error, &["1 target that", &format!("layers.1.{block}.experts.2.{down}`")]);
        let router = pair(format!("model.layers.0.{block}.gate"), 4, EXPERTS);
        let error = fit_unread(all_linear(attention().chain([router]).collect()), &base).unwrap_err();
        assert_names(naming, &error, &["1 target that", &format!("`model.layers.1.{block}.gate`")]);
    }
    fit_unread(all_linear(attention().collect()), &mixture("stacked")).unwrap();
    let error = fit_unread(all_linear(attention().take(1).collect()), &mixture("stacked")).unwrap_err();
    assert_names("stacked", &error, &["1 target that", "`model.layers.1.self_attn.q_proj`"]);
}
