//! Adapters in another format, written by the program: they answer as before.

#![cfg(all(feature = "candle", feature = "local"))]

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

const QUESTION: &str = "Tell me a story about a frog.";

fn llm_local(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-local"));
    command.args(args).env("LLM_LOCAL_CACHE", folder.join("store")).stdin(Stdio::null());
    command.current_dir(folder).output().unwrap()
}

#[track_caller]
fn run(folder: &Path, args: &[&str]) -> String {
    let output = llm_local(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fail(folder: &Path, args: &[&str]) -> String {
    let output = llm_local(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn answer(folder: &Path, adapter: &str) -> String {
    run(folder, &["run", "--adapter", adapter, "--max-tokens", "24", QUESTION])
}

#[test]
fn an_adapter_answers_the_same_in_every_format_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pirate = answer(folder, "sample");
    assert_ne!(pirate, run(folder, &["run", "--max-tokens", "24", QUESTION]));
    let formats = [("mlx-lm", "mlx", "mlx-lm"), ("gguf", "pirate.gguf", "GGUF"), ("peft", "again", "PEFT")];
    for (format, to, shown) in formats {
        let written = run(folder, &["adapter", "convert", "sample", "--to", format, "--base", "sample", to]);
        assert!(written.lines().all(|file| folder.join(file).is_file()) && !written.is_empty(), "{written}");
        let report = run(folder, &["adapter", "inspect", &format!("./{to}")]);
        assert!(report.contains(&format!("format   {shown}")) && !report.contains("unusable"), "{report}");
        assert_eq!(answer(folder, &format!("./{to}")), pirate, "{format}");
        let back = format!("{to}-back");
        run(folder, &["adapter", "convert", &format!("./{to}"), "--to", "peft", "--base", "sample", &back]);
        assert_eq!(answer(folder, &format!("./{back}")), pirate, "{format} and back");
    }
}

#[test]
fn what_is_missing_or_in_the_way_is_said_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let said = fail(folder, &["adapter", "convert", "sample", "--to", "gguf", "x.gguf"]);
    assert!(said.contains("sample:pirate") && said.contains("base"), "{said}");
    assert!(!folder.join("x.gguf").exists());
    std::fs::write(folder.join("taken"), "mine").unwrap();
    let said = fail(folder, &["adapter", "convert", "sample", "--to", "peft", "taken"]);
    assert!(said.contains("taken") && said.contains("name a new one"), "{said}");
    assert_eq!(std::fs::read_to_string(folder.join("taken")).unwrap(), "mine");
    let said = fail(folder, &["adapter", "convert", "sample", "--to", "gguf", "--base", "./none", "x.gguf"]);
    assert!(said.contains("sample:pirate") && said.contains("none"), "{said}");
}
