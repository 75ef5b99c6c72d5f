//! Weights that are stored as (in, out).

use llm_local_core::{Allowance, Encoding, FloatType, LoraAdapter, LoraModule, ModelFormat, ModelInfo, TensorEntry};
use serde_json::json;

use super::*;
use crate::lora::CompatibilityReport;

fn base(kind: &str, name: &str, shape: [usize; 2]) -> ModelInfo {
    let config = Arc::new(json!({"model_type": kind}));
    let entry = TensorEntry::new(format!("{name}.weight"), shape.to_vec(), Encoding::Float(FloatType::F32));
    ModelInfo::new("base", ModelFormat::Safetensors { config }, vec![entry])
}

/// A pair of rank 1 of the module, of so many inputs and outputs.
fn pair(name: &str, inputs: usize, outputs: usize, transposed: bool) -> LoraAdapter {
    let module = LoraModule::new(name, (1, inputs, outputs), vec![1.0; inputs], vec![1.0; outputs], 1.0);
    LoraAdapter::new("pair", "", vec![module.with_transposed(transposed)])
}

#[test]
fn a_square_weight_that_may_be_stored_either_way_is_refused() {
    let square = base("test", "m", [4, 4]);
    let error = fit_unread(pair("m", 4, 4, true), &square).unwrap_err();
    assert_names(
        "square",
        &error,
        &["`m.weight` is square", "`fan_in_fan_out`", "`base`", "set `fan_in_fan_out` to false"],
    );
    // Nothing lets that pass: the one way is as wrong as the other.
    let everything = [Allowance::ALL.into_iter().collect()];
    super::super::fit_allowing(&[(Arc::new(pair("m", 4, 4, true)), 1.0)], &everything, &square).unwrap_err();
    fit_unread(pair("m", 4, 4, false), &square).unwrap();
    // A head is linear everywhere, and shapes that differ tell the order.
    fit_unread(pair("lm_head", 4, 4, true), &base("test", "lm_head", [4, 4])).unwrap();
    fit_unread(pair("m", 4, 6, true), &base("test", "m", [4, 6])).unwrap();
    fit_unread(pair("m", 4, 6, true), &base("test", "m", [6, 4])).unwrap();
}

#[test]
fn layers_of_gpt_2_are_stored_as_in_out_whatever_an_adapter_says() {
    for (kind, name) in [
        ("gpt2", "transformer.h.0.attn.c_proj"),
        ("openai-gpt", "h.0.attn.c_attn"),
        ("imagegpt", "h.0.mlp.c_fc"),
        ("decision_transformer", "h.0.crossattention.q_attn"),
    ] {
        for said in [true, false] {
            let (report, changes) =
                super::super::fit_changes(&[(Arc::new(pair(name, 4, 4, said)), 1.0)], &[], &base(kind, name, [4, 4]))
                    .unwrap();
            assert_eq!(report.touched.len(), 1);
            let is_turned = matches!(changes[0].terms[0].kind, super::super::TermKind::Pair { transposed: true, .. });
            assert!(is_turned, "{kind} {name}");
            fit_unread(pair(name, 4, 6, said), &base(kind, name, [4, 6])).unwrap();
        }
        let wrong = pair(name, 4, 6, true);
        let report = CompatibilityReport::new(&wrong, 1.0, &[].into(), &base(kind, name, [6, 4]));
        assert!(report.defects[0].reason.contains("stored as (in, out), has the shape (6, 4)"), "{report}");
        let shapes: Vec<_> = report.tensors.iter().map(|tensor| &tensor.state).collect();
        let misshaped = |expected: [usize; 2]| crate::lora::TensorState::Misshaped { expected: expected.to_vec() };
        assert_eq!(shapes, [&misshaped([1, 6]), &misshaped([4, 1])]);
    }
    let error = fit_unread(pair("score", 4, 4, true), &base("gpt2", "score", [4, 4])).unwrap_err();
    assert_names("another layer", &error, &["`score.weight` is square"]);
}
