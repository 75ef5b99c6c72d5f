//! Reports of whether adapters fit bases, as an application gets them, and what it lets pass.

#![cfg(feature = "local")]

use std::{collections::BTreeSet, fs};

use crate::common::{fixture, fixture_ref};
use llm_local::{
    AdapterSpec, Engine,
    core::Allowance,
    lora::{CompatibilityReport, IdentityVerdict, TensorState},
};
use pollster::block_on;

fn engine() -> Engine {
    Engine::builder().cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap()
}

fn check(adapter: AdapterSpec) -> llm_local::Result<CompatibilityReport> {
    block_on(engine().adapters().check(&fixture_ref("models/tiny-llama"), &adapter))
}

#[test]
fn each_broken_adapter_is_named_by_an_error_or_by_its_report() {
    let mut reported = BTreeSet::new();
    for folder in fs::read_dir(fixture("bad-adapters")).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        match check(AdapterSpec::new(fixture_ref(&format!("bad-adapters/{name}")))) {
            Ok(report) => {
                assert_eq!(report.fits, name == "_control-good", "{name}: {report}");
                assert_eq!(report.fits, report.defects.is_empty(), "{name}: {report}");
                reported.insert(name);
            }
            Err(error) => assert_eq!(error.code(), "adapter_merge_failed", "{name}: {error}"),
        }
    }
    // What is no whole adapter has no tensors that could be reported.
    let expected = ["_control-good", "unknown-target-modules", "wrong-base-hidden96"];
    assert_eq!(reported.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn a_report_knows_the_base_by_its_name_config_and_architecture_and_the_adapter_by_its_alpha() {
    let report = check(AdapterSpec::new(fixture_ref("adapters/tiny-llama-lora-peft"))).unwrap();
    assert!(report.fits, "{report}");
    assert_eq!((report.alpha, &report.ranks[..], &report.scales[..]), (Some(16.0), &[8][..], &[2.0][..]));
    assert!(report.effects.is_none());
    let identity = &report.identity;
    assert_eq!(identity.config_digest.verdict, IdentityVerdict::Unknown);
    assert_eq!(identity.config_digest.base.as_ref().map(String::len), Some(64));
    assert_eq!(identity.architecture.base.as_deref(), Some("llama"));
    assert_eq!(identity.vocabulary.base.as_deref(), Some("896"));
    let wrong = check(AdapterSpec::new(fixture_ref("bad-adapters/wrong-base-hidden96"))).unwrap();
    assert_eq!(wrong.identity.name.adapter.as_deref(), Some("other/tiny-llama-96"));
    let query = wrong.tensors.iter().find(|tensor| tensor.name.ends_with("q_proj.lora_A")).unwrap();
    assert_eq!(query.state, TensorState::Misshaped { expected: vec![8, 128] });
}

#[test]
fn the_effect_is_measured_only_where_it_is_asked_for() {
    let adapter = AdapterSpec::new(fixture_ref("adapters/tiny-llama-lora-dora"));
    let report = block_on(engine().adapters().measure(&fixture_ref("models/tiny-llama"), &adapter)).unwrap();
    let effects = report.effects.as_ref().unwrap();
    assert!(!effects.is_empty() && effects.iter().all(|effect| effect.ratio.is_some_and(|ratio| ratio > 0.0)));
    assert!(report.to_string().contains(&effects[0].name));
    let unfit = AdapterSpec::new(fixture_ref("bad-adapters/wrong-base-hidden96"));
    let report = block_on(engine().adapters().measure(&fixture_ref("models/tiny-llama"), &unfit)).unwrap();
    assert!(!report.fits && report.effects.is_none());
}

#[cfg(feature = "candle")]
mod run {
    use std::path::Path;

    use llm_local::{AdapterPolicy, ArtifactRef, LogitsRequest, ModelSpec};
    use serde_json::{Map, Value, json};

    use super::*;

    /// The logits of tiny-llama with what `adapter` says.
    fn logits(adapter: Option<AdapterSpec>, policy: AdapterPolicy) -> llm_local::Result<Vec<f32>> {
        let mut spec = ModelSpec::new(fixture_ref("models/tiny-llama")).with_adapter_policy(policy);
        if let Some(adapter) = adapter {
            spec = spec.with_adapter_spec(adapter);
        }
        block_on(engine().logits(&spec, LogitsRequest::new(vec![1, 5, 9])))
    }

    #[test]
    fn a_model_runs_with_what_its_spec_lets_pass_of_an_adapter_and_not_without() {
        let unknown = AdapterSpec::new(fixture_ref("bad-adapters/unknown-target-modules"));
        for policy in [AdapterPolicy::Auto, AdapterPolicy::KeepUnmerged] {
            let error = logits(Some(unknown.clone()), policy).unwrap_err();
            assert!(error.to_string().contains("target_modules"), "{error}");
            let all = Allowance::ALL.into_iter().fold(unknown.clone(), AdapterSpec::allowing);
            assert!(check(all.clone()).unwrap().fits);
            assert_eq!(logits(Some(all), policy).unwrap(), logits(None, policy).unwrap());
        }
    }

    /// The adapter `tiny-llama-lora-peft` in `folder`, with `field` in its config, and with zeros as its values if it is to do
    /// nothing.
    fn changed(folder: &Path, field: Option<(&str, Value)>, is_zero: bool) -> AdapterSpec {
        let from = fixture("adapters/tiny-llama-lora-peft");
        let config = fs::read_to_string(from.join("adapter_config.json")).unwrap();
        let mut config: Map<String, Value> = serde_json::from_str(&config).unwrap();
        config.extend(field.map(|(name, value)| (name.to_owned(), value)));
        fs::write(folder.join("adapter_config.json"), Value::Object(config).to_string()).unwrap();
        let mut weights = fs::read(from.join("adapter_model.safetensors")).unwrap();
        if is_zero {
            let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
            weights[8 + header..].fill(0);
        }
        fs::write(folder.join("adapter_model.safetensors"), weights).unwrap();
        AdapterSpec::new(ArtifactRef::file(folder).unwrap())
    }

    const POLICIES: [AdapterPolicy; 2] = [AdapterPolicy::Auto, AdapterPolicy::KeepUnmerged];

    #[test]
    fn fields_that_are_not_known_are_reported_and_pass_where_they_are_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let adapter = changed(folder.path(), Some(("use_tomorrow", json!([3]))), false);
        let report = check(adapter.clone()).unwrap();
        let unknown = report.defects.iter().find(|defect| defect.allowance == Some(Allowance::UnknownFields));
        let reason = &unknown.unwrap_or_else(|| panic!("{report}")).reason;
        assert!(!report.fits && reason.contains("`use_tomorrow` is [3]"), "{reason}");
        let allowed = adapter.clone().allowing(Allowance::UnknownFields);
        let report = check(allowed.clone()).unwrap();
        assert!(report.fits && report.defects.len() == 1, "{report}");
        assert!(report.to_string().contains("let pass (unknown-fields)  the unknown field `use_tomorrow`"), "{report}");
        let whole = AdapterSpec::new(fixture_ref("adapters/tiny-llama-lora-peft"));
        for policy in POLICIES {
            let error = logits(Some(adapter.clone()), policy).unwrap_err().to_string();
            for part in ["`use_tomorrow` is [3]", "remove it", "`unknown-fields`"] {
                assert!(error.contains(part), "{error}");
            }
            assert_eq!(logits(Some(allowed.clone()), policy).unwrap(), logits(Some(whole.clone()), policy).unwrap());
        }
        // What is false, null or empty asks for nothing.
        for nothing in [json!(null), json!(false), json!([]), json!({}), json!("")] {
            let report = check(changed(folder.path(), Some(("use_tomorrow", nothing)), false)).unwrap();
            assert!(report.fits && report.defects.is_empty(), "{report}");
        }
    }

    #[test]
    fn an_adapter_of_zeros_is_reported_and_passes_where_it_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let zeros = changed(folder.path(), None, true);
        let report = check(zeros.clone()).unwrap();
        let allowances: Vec<_> = report.defects.iter().map(|defect| defect.allowance).collect();
        assert!(!report.fits && allowances == [Some(Allowance::NoEffect)], "{report}");
        let allowed = zeros.clone().allowing(Allowance::NoEffect);
        assert!(check(allowed.clone()).unwrap().fits);
        for policy in POLICIES {
            let error = logits(Some(zeros.clone()), policy).unwrap_err().to_string();
            assert!(error.contains("would do nothing"), "{error}");
            assert_eq!(logits(Some(allowed.clone()), policy).unwrap(), logits(None, policy).unwrap());
        }
    }
}
