//! The program as a user meets it: the sample inside it, its messages, and where they go.

#![cfg(all(feature = "candle", feature = "local"))]

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

/// Runs the program with a cache folder of its own.
fn llm_local(cache: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_llm-local"))
        .args(args)
        .env("LLM_LOCAL_CACHE", cache)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The text that transformers + PEFT generate greedily for the prompt that ends with `ending`.
fn reference(name: &str, ending: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/reference");
    let text = std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let case = json["results"].as_array().unwrap().iter().find(|c| c["prompt"].as_str().unwrap().contains(ending));
    case.unwrap()["greedy_text"].as_str().unwrap().to_owned()
}

#[test]
fn the_sample_answers_like_the_reference_and_statistics_go_to_standard_error() {
    let cache = tempfile::tempdir().unwrap();
    let question = "Tell me a story about a frog.";
    for (adapter, name) in [(&["--adapter", "sample"][..], "tiny-llama__tiny-llama-lora-peft"), (&[], "tiny-llama")] {
        let output = llm_local(cache.path(), &[&["run"], adapter, &["--max-tokens", "32", question]].concat());
        let text = stdout(&output);
        // The reference goes on where the model ends, which these prompts do not within 32 tokens.
        assert_eq!(text.trim_end(), reference(name, question).trim_end());
        let statistics = stderr(&output);
        assert!(statistics.contains("32 generated") && statistics.contains("candle"), "{statistics}");
    }
}

#[test]
fn raw_takes_the_prompt_as_it_is() {
    let cache = tempfile::tempdir().unwrap();
    let output = llm_local(cache.path(), &["run", "--raw", "--max-tokens", "32", "Once upon a time"]);
    assert_eq!(stdout(&output).trim_end(), reference("tiny-llama", "Once upon a time").trim_end());
}

#[test]
fn a_seed_repeats_and_another_does_not() {
    let cache = tempfile::tempdir().unwrap();
    let run = |seed: &str| {
        let args = ["run", "--temperature", "1.5", "--max-tokens", "24", "--seed", seed, "Tell me a story."];
        stdout(&llm_local(cache.path(), &args))
    };
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

#[test]
fn a_prompt_may_come_from_standard_input_and_none_is_an_error() {
    use std::io::Write;
    let cache = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_llm-local"))
        .args(["run", "--raw", "--max-tokens", "32"])
        .env("LLM_LOCAL_CACHE", cache.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"Once upon a time").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(stdout(&output).trim_end(), reference("tiny-llama", "Once upon a time").trim_end());
    let output = llm_local(cache.path(), &["run"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("prompt"), "{}", stderr(&output));
}

#[test]
fn what_is_wrong_is_one_line_on_standard_error_and_a_failure() {
    let cache = tempfile::tempdir().unwrap();
    for (args, why) in [
        (&["run", "--model", "/no/such/model", "x"][..], "/no/such/model"),
        (&["run", "--adapter", "/no/such/adapter", "x"], "/no/such/adapter"),
        (&["run", "--model", "sample:other", "x"], "sample:tiny-llama"),
        (&["run", "--backend", "abacus", "x"], "registered: candle"),
        (&["run", "--temperature", "-1", "x"], "temperature"),
        (&["plan", "--model", "gopher:org/name"], "no model source named `gopher`"),
    ] {
        let output = llm_local(cache.path(), args);
        assert!(!output.status.success(), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        let message = stderr(&output);
        assert!(message.starts_with("error: ") && message.contains(why), "{args:?}: {message}");
    }
}

#[test]
fn plan_and_plugins_say_what_there_is() {
    let cache = tempfile::tempdir().unwrap();
    let before = stdout(&llm_local(cache.path(), &["plan", "--adapter", "sample"]));
    assert!(before.contains("to be fetched") && before.contains("512 tokens"), "{before}");
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0, "a plan fetches nothing");
    stdout(&llm_local(cache.path(), &["run", "--adapter", "sample", "--max-tokens", "1", "x"]));
    let after = stdout(&llm_local(cache.path(), &["plan", "--adapter", "sample"]));
    for part in ["on this machine", "candle on cpu", "28 tensors", "512 tokens"] {
        assert!(after.contains(part), "`{part}` is not in:\n{after}");
    }
    let plugins = stdout(&llm_local(cache.path(), &["plugins"]));
    for part in ["llm-local-candle", "llm-local-source-local", env!("CARGO_PKG_VERSION"), "built in", "explicit"] {
        assert!(plugins.contains(part), "`{part}` is not in:\n{plugins}");
    }
}
