//! Whether an adapter fits a model, by the program.

#![cfg(all(feature = "candle", feature = "local"))]

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

fn fixture(path: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(path);
    folder.to_str().unwrap().to_owned()
}

fn run(args: &[&str]) -> (Output, String) {
    let store = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-local"));
    command.args(["adapter", "check"]).args(args).env("LLM_LOCAL_CACHE", store.path()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output, text)
}

#[test]
fn an_adapter_that_fits_is_reported_with_its_effect_as_text_and_as_data() {
    let (model, adapter) = (fixture("models/tiny-llama"), fixture("adapters/tiny-llama-lora-peft"));
    let (output, text) = run(&[&model, &adapter, "--effect"]);
    assert_eq!(output.status.code(), Some(0), "{text}{output:?}");
    assert!(text.contains("verdict   it fits\n"), "{text}");
    assert!(text.contains("effect    norm of the change / norm of the weight\n"), "{text}");
    // Of this model no file is on this machine, and none comes to it.
    let (output, text) = run(&["sample", "sample", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&report["fits"], &report["effects"]), (&true.into(), &serde_json::Value::Null));
}

#[test]
fn one_that_does_not_is_reported_and_fails_the_program_unless_it_is_let_pass() {
    let (model, adapter) = (fixture("models/tiny-llama"), fixture("bad-adapters/unknown-target-modules"));
    let (output, text) = run(&[&model, &adapter]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("verdict   it does not fit\n") && text.contains("unused-tensors would let it pass"),
        "{text}"
    );
    let allow = ["--allow", "unused-tensors", "--allow", "undeclared-tensors", "--allow", "no-effect"];
    let (output, text) = run(&[&[model.as_str(), adapter.as_str()], &allow[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{text}{output:?}");
    assert!(text.contains("let pass (no-effect)"), "{text}");
    let (output, _) = run(&[&model, &adapter, "--allow", "everything"]);
    assert_eq!(output.status.code(), Some(2), "clap refuses it");
    assert!(String::from_utf8(output.stderr).unwrap().contains("unused-tensors"));
}
