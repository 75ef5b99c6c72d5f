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

#[test]
fn tensors_without_a_config_are_run_and_converted_with_what_is_said_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/pirate");
    std::fs::copy(sample.join("adapter_model.safetensors"), folder.join("bare.safetensors")).unwrap();
    let config = std::fs::read_to_string(sample.join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let scale = (config["lora_alpha"].as_f64().unwrap() / config["r"].as_f64().unwrap()).to_string();
    let said = ["--scale", &scale, "--adapter-format", "peft"];
    let pirate = answer(folder, "sample");

    let report = run(folder, &["adapter", "inspect", "./bare.safetensors"]);
    assert!(report.contains("unusable") && report.contains("`--scale` and `--adapter-format`"), "{report}");
    let report = run(folder, &[&["adapter", "inspect", "./bare.safetensors"], &said[..]].concat());
    assert!(report.contains(&format!("{scale}, as stored")) && !report.contains("unusable"), "{report}");
    let error = fail(folder, &["run", "--adapter", "./bare.safetensors", QUESTION]);
    assert!(
        error.contains("bare.safetensors") && error.contains("`scale` and `format` of the adapter in a spec"),
        "{error}"
    );
    let bare = ["run", "--adapter", "./bare.safetensors", "--max-tokens", "24", QUESTION];
    assert_eq!(run(folder, &[&bare, &said[..]].concat()), pirate);
    let json = format!(r#"{{"ref": "./bare.safetensors", "scale": {scale}, "format": "peft"}}"#);
    assert_eq!(run(folder, &["run", "--adapter", &json, "--max-tokens", "24", QUESTION]), pirate);
    run(folder, &[&["adapter", "check", "sample", "./bare.safetensors"], &said[..]].concat());
    let convert = ["adapter", "convert", "./bare.safetensors", "--to", "mlx-lm", "--base", "sample", "mlx"];
    run(folder, &[&convert, &said[..]].concat());
    assert_eq!(answer(folder, "./mlx"), pirate);
    // One half is not enough, and what files say is not overruled.
    let error = fail(folder, &["adapter", "convert", "./bare.safetensors", "--to", "mlx-lm", "other", "--scale", "2"]);
    assert!(error.contains("no format is given"), "{error}");
    let error = fail(folder, &["run", "--adapter", "sample", "--scale", "2", QUESTION]);
    assert!(error.contains("has its own"), "{error}");
}

#[test]
fn adapters_are_combined_and_put_into_the_model_as_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pirate = answer(folder, "sample");
    let half = r#"{"ref": "sample:pirate", "weight": 0.5}"#;
    let plan = |args: &[&str]| run(folder, &[&["plan", "--adapter", half, "--adapter", half], args].concat());
    let halves = ["run", "--adapter", half, "--adapter", half, "--max-tokens", "24"];
    // Two halves side by side are the whole; of values with one sign, half of all are not.
    for how in [&["--combination", "cat"][..], &["--combination", "sum", "--adapter-policy", "keep-unmerged"]] {
        assert_eq!(run(folder, &[&halves, how, &[QUESTION]].concat()), pirate, "{how:?}");
    }
    assert_ne!(run(folder, &[&halves[..], &["--combination", "ties:density=0.05", QUESTION]].concat()), pirate);
    assert!(plan(&["--combination", r#"{"ties":{"density":0.5}}"#]).contains("combined ties:density=0.5"));
    assert!(plan(&["--adapter-policy", "keep-unmerged"]).contains("beside   28 tensors"));
}
