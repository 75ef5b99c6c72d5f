//! A model with its adapter, written by the program as a folder: it answers as before.

#![cfg(all(feature = "candle", feature = "local"))]

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

fn llm_local(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-local"));
    command.args(args).env("LLM_LOCAL_CACHE", folder.join("store")).stdin(Stdio::null());
    command.current_dir(folder).output().unwrap()
}

fn answer(folder: &Path, args: &[&str]) -> String {
    let how = ["--dtype", "f32", "--max-tokens", "24", "Tell me a story about a frog."];
    let output = llm_local(folder, &[&["run"], args, &how].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_exported_model_answers_as_with_its_adapter_and_is_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let export = || llm_local(folder, &["export", "--adapter", "sample", "--dtype", "f32", "out/pirate"]);
    let first = export();
    let said = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(first.status.success() && said.contains("of them merged") && said.contains("out/pirate"), "{said}");
    assert!(first.stdout.is_empty());
    let pirate = answer(folder, &["--adapter", "sample"]);
    assert_ne!(pirate, answer(folder, &[]));
    assert_eq!(answer(folder, &["--model", "./out/pirate"]), pirate);

    let again = export();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(1) && said.contains("not empty"), "{said}");
}
