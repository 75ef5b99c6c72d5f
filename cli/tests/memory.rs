//! Memory as a user meets it: what the machine has, what a model takes, and what is refused. The sample takes more than
//! 10 MB with the 512 tokens that it was made for, and less with fewer.

#![cfg(all(feature = "candle", feature = "local"))]

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// Runs the program with a cache folder of its own, and a budget from outside that applies where no argument says one.
fn llm_local_with(cache: &Path, budget: Option<&str>, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-local"));
    command.args(args).env("LLM_LOCAL_CACHE", cache).env("HF_HUB_CACHE", cache.join("hub")).stdin(Stdio::null());
    match budget {
        Some(budget) => command.env("LLM_LOCAL_MEMORY_BUDGET", budget),
        None => command.env_remove("LLM_LOCAL_MEMORY_BUDGET"),
    };
    command.output().unwrap()
}

fn llm_local(cache: &Path, args: &[&str]) -> Output {
    llm_local_with(cache, None, args)
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn contains_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

fn json(output: &Output) -> Value {
    let (out, err) = texts(output);
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"))
}

fn lines_of<'a>(text: &'a str, label: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.starts_with(&format!("{label:<8} "))).collect()
}

#[test]
fn doctor_says_what_there_is_and_that_the_sample_fits() {
    let cache = tempfile::tempdir().unwrap();
    let output = llm_local(cache.path(), &["doctor"]);
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}{err}");
    contains_all(
        &out,
        &["0.8 of what there is", "of candle: memory", "tokens at most where none is asked for", "no model is kept"],
    );
    for label in ["memory", "limit", "budget", "device", "pressure", "cache", "fits"] {
        assert_eq!(lines_of(&out, label).len(), 1, "{label}: {out}");
    }
    assert!(lines_of(&out, "cache")[0].contains(cache.path().to_str().unwrap()), "{out}");
    // Polling is to be had everywhere.
    assert!(lines_of(&out, "pressure")[0].contains("polling"), "{out}");

    let (out, _) = texts(&llm_local(cache.path(), &["doctor", "sample"]));
    contains_all(lines_of(&out, "fits")[0], &["sample:tiny-llama: ", "context 512 tokens: the model was made for 512"]);
}

#[test]
fn doctor_tells_programs_the_same_as_people() {
    let cache = tempfile::tempdir().unwrap();
    let report = json(&llm_local(cache.path(), &["doctor", "--json", "--memory-budget", "0.5", "sample"]));
    let (total, device) = (report["memory"]["total"].as_u64().unwrap(), &report["devices"][0]);
    assert!(report["memory"]["available"].as_u64().unwrap() <= total);
    assert_eq!(
        (device["backend"].as_str(), device["id"].as_str(), device["kind"].as_str()),
        (Some("candle"), Some("cpu"), Some("cpu"))
    );
    let usable = device["memory"].as_u64().unwrap();
    let limit = report["memory"]["limit"]["bytes"].as_u64();
    assert_eq!(usable, limit.map_or(total, |limit| limit.min(total)));
    assert_eq!((&report["budget"]["share"], device["budget"].as_u64()), (&0.5.into(), Some(usable / 2)));
    assert!(device["room"].as_u64().unwrap() <= usable / 2);
    assert_eq!(device["promised"], 0);
    // The table's rows, by what is fitted.
    let expected = if usable.div_ceil(1_000_000_000) < 12 { 2048 } else { 4096 };
    assert_eq!(device["context_length"], expected);
    assert!(device["context_reason"].as_str().unwrap().contains(&expected.to_string()));
    let sources = report["pressure"].as_array().unwrap();
    assert!(sources.iter().any(|s| s["source"] == "polling" && s["missing"].is_null()), "{report}");
    assert!(report["cache"]["free"].is_u64() && report["cache"]["bytes"] == 0, "{report}");
    let model = &report["models"][0];
    assert_eq!(
        (&model["model"], &model["fits"], &model["asked"]),
        (&"sample:tiny-llama".into(), &"now".into(), &true.into())
    );
    assert_eq!(model["context_length"], 512);
    assert!(model["required"].as_u64().unwrap() <= model["room"].as_u64().unwrap());
}

#[test]
fn doctor_judges_what_is_kept_and_fails_for_what_was_asked_alone() {
    let cache = tempfile::tempdir().unwrap();
    assert!(llm_local(cache.path(), &["pull", "sample:tiny-llama"]).status.success());
    let kept = llm_local(cache.path(), &["doctor", "--memory-budget", "1MB"]);
    let (out, _) = texts(&kept);
    assert!(kept.status.success(), "nobody asked for it: {out}");
    contains_all(
        lines_of(&out, "no")[0],
        &["sample:tiny-llama", "MB at least, and 1.0 MB there are now", "the budget is 1.0 MB"],
    );

    let asked = llm_local(cache.path(), &["doctor", "--memory-budget", "1MB", "sample", "--json"]);
    assert!(!asked.status.success());
    let models = &json(&asked)["models"];
    assert_eq!(models.as_array().unwrap().len(), 1, "once, though it is kept too: {models}");
    assert_eq!((&models[0]["fits"], &models[0]["budget"]), (&"no".into(), &1_000_000.into()));
    assert!(models[0]["required_for_whole_context"].as_u64() > models[0]["required"].as_u64(), "{models}");

    // What is not there is told in its place, and what is beside it is still judged.
    let missing = llm_local(cache.path(), &["doctor", "/no/such/model", "gopher:x", "sample"]);
    let (out, err) = texts(&missing);
    assert!(!missing.status.success() && err.is_empty(), "{err}");
    contains_all(lines_of(&out, "error")[0], &["file:/no/such/model", "not found"]);
    contains_all(lines_of(&out, "error")[1], &["no model source named `gopher`"]);
    assert_eq!(lines_of(&out, "fits").len(), 1, "{out}");
}

#[test]
fn plan_shows_the_estimate_by_part_also_of_what_does_not_fit() {
    let cache = tempfile::tempdir().unwrap();
    let args = ["plan", "--adapter", "sample", "--adapter-policy", "keep-unmerged"];
    let (out, _) = texts(&llm_local(cache.path(), &args));
    contains_all(
        &out,
        &[
            "at most, of",
            "weights 3.6 MB",
            "KV cache 1.0 MB",
            "working ",
            "adapters ",
            "tokenizer ",
            "beside   28 tensors",
        ],
    );

    let short = llm_local(cache.path(), &["plan", "--memory-budget", "1MB"]);
    let (out, err) = texts(&short);
    assert!(!short.status.success());
    contains_all(
        &out,
        &[" MB at most, which is more than the 1.0 MB that there are now", "weights 3.6 MB", "KV cache 1.0 MB"],
    );
    assert!(err.starts_with("error: not enough memory: ") && err.contains("MB required, 1.0 MB available; "), "{err}");
    contains_all(&err, &["256 tokens", "not even one of 1 fits"]);
}

#[test]
fn a_budget_shortens_the_context_or_refuses_with_what_would_fit() {
    let cache = tempfile::tempdir().unwrap();
    let required = |context: &str| {
        let plan = llm_local(cache.path(), &["plan", "--context-length", context]);
        let (out, err) = texts(&plan);
        assert!(plan.status.success(), "{err}");
        assert!(out.contains(&format!("context  {context} tokens: the spec asks for {context}")), "{out}");
        let line = lines_of(&out, "memory")[0].to_owned();
        line["memory   ".len()..].split_once(" MB").unwrap().0.parse::<f64>().unwrap()
    };
    // Between what 320 and what 512 tokens take.
    let budget = format!("{:.0}kB", 500.0 * (required("320") + required("512")));
    let run = |how: &[&str]| {
        let how = [&["run", "--memory-budget", &budget], how, &["--max-tokens", "4", "Tell me a story."]].concat();
        llm_local(cache.path(), &how)
    };
    let short = run(&[]);
    let (out, err) = texts(&short);
    assert!(short.status.success() && !out.is_empty(), "{err}");
    contains_all(&err, &["tokens: what fits into", "512 tokens would take"]);
    let tokens: usize = err.split_once("context of ").unwrap().1.split_once(" tokens").unwrap().0.parse().unwrap();
    assert!((320..512).contains(&tokens), "{err}");

    // What is asked for is had, or refused.
    let (_, err) = texts(&run(&["--context-length", "320"]));
    contains_all(&err, &["context of 320 tokens: the spec asks for 320"]);
    let refused = run(&["--context-length", "512"]);
    let (out, err) = texts(&refused);
    assert_eq!((refused.status.code(), out.as_str()), (Some(1), ""), "{err}");
    assert!(err.starts_with("error: not enough memory: "), "{err}");
    contains_all(&err, &["a context of 512 tokens", &format!("{tokens} would fit")]);
}

#[test]
fn a_context_that_is_asked_for_is_bounded_by_the_model_alone_and_that_is_told() {
    let cache = tempfile::tempdir().unwrap();
    let why = "context of 512 tokens: the spec asks for 9000, but the model was made for 512";
    let asked = ["--context-length", "9000"];
    let (_, err) = texts(&llm_local(cache.path(), &[&["run"], &asked[..], &["--max-tokens", "1", "x"]].concat()));
    contains_all(&err, &[why]);
    // Also where nothing came of it, because the prompt is longer.
    let long = "word ".repeat(900);
    let failed = llm_local(cache.path(), &[&["run"], &asked[..], &[&long]].concat());
    assert!(!failed.status.success());
    contains_all(&texts(&failed).1, &[why, "error: the prompt has"]);
}

#[test]
fn a_budget_from_outside_is_taken_where_no_argument_says_one() {
    let cache = tempfile::tempdir().unwrap();
    let doctor = |budget, args: &[&str]| {
        json(&llm_local_with(cache.path(), Some(budget), &[&["doctor", "--json"], args].concat()))["budget"].clone()
    };
    assert_eq!(doctor("64MB", &[])["bytes"], 64_000_000);
    assert_eq!(doctor("64MB", &["--memory-budget", "0.25"])["share"], 0.25);
    assert_eq!(doctor("", &[])["share"], 0.8);
    let wrong = llm_local_with(cache.path(), Some("plenty"), &["run", "x"]);
    let (out, err) = texts(&wrong);
    assert_eq!((wrong.status.code(), out.as_str()), (Some(1), ""));
    contains_all(&err, &["error: invalid LLM_LOCAL_MEMORY_BUDGET: it is `plenty`", "512MiB"]);
}

#[test]
fn a_budget_that_cannot_be_meant_is_refused_with_what_can() {
    let cache = tempfile::tempdir().unwrap();
    for (command, text) in [("run", "0"), ("chat", "1.5"), ("plan", "-1"), ("doctor", "4XB"), ("plan", "half")] {
        let output = llm_local(cache.path(), &[command, "--memory-budget", text]);
        let (out, err) = texts(&output);
        assert_eq!((output.status.code(), out.as_str()), (Some(2), ""), "{command} {text}");
        contains_all(&err, &["--memory-budget", &format!("`{text}`"), "a share above 0 and at most 1", "4GB"]);
    }
}
