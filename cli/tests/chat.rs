//! A chat over standard input, with the sample inside the program.

#![cfg(all(feature = "candle", feature = "local"))]

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

/// Standard output and standard error of a chat with these lines.
fn chat(cache: &Path, args: &[&str], lines: &str) -> (bool, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_llm-local"))
        .args([&["chat", "--max-tokens", "24"], args].concat())
        .env("LLM_LOCAL_CACHE", cache)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// What the statistics say of one turn.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    prompt: usize,
    cached: usize,
    /// Of prompt and answer together: the last token of an answer is computed only if the model then ended.
    computed: usize,
}

fn turns(statistics: &str) -> Vec<Turn> {
    let number_before = |line: &str, what: &str| -> Option<usize> {
        line.split_once(what).map(|(before, _)| before.rsplit(' ').next().unwrap().parse().unwrap())
    };
    let turn = |line: &str| {
        let prompt = number_before(line, " prompt tokens")?;
        let cached = number_before(line, " of them cached").unwrap_or(0);
        let generated = number_before(line, " generated").unwrap();
        Some(Turn { prompt, cached, computed: prompt + generated - usize::from(!line.ends_with("the model ended")) })
    };
    statistics.lines().filter_map(turn).collect()
}

#[test]
fn a_second_turn_costs_only_its_new_tokens_also_after_a_restart() {
    let cache = tempfile::tempdir().unwrap();
    let lines = ["Tell me a story about a frog.\n", "And then?\n", "Who was that?\n"];
    let (ok, whole, statistics) = chat(cache.path(), &["--adapter", "sample"], &lines.concat());
    assert!(ok, "{statistics}");
    let all = turns(&statistics);
    let cached: Vec<_> = all.iter().map(|turn| turn.cached).collect();
    assert_eq!(cached, [0, all[0].computed, all[1].computed], "{statistics}");
    let file = cache.path().join("chat.safetensors");
    let args = ["--adapter", "sample", "--session", file.to_str().unwrap()];
    let (ok, first, statistics) = chat(cache.path(), &args, &lines[..2].concat());
    assert!(ok && file.is_file(), "{statistics}");
    let (ok, second, statistics) = chat(cache.path(), &args, lines[2]);
    assert!(ok, "{statistics}");
    assert_eq!(turns(&statistics), all[2..]);
    assert_eq!(format!("{first}{second}"), whole);
    let (ok, _, message) = chat(cache.path(), &["--session", file.to_str().unwrap()], lines[2]);
    assert!(!ok && message.starts_with("error: ") && message.contains("adapters are"), "{message}");
    // In the program's own words, and these help.
    assert!(message.contains("(--messages-only)") && !message.contains("Engine::"), "{message}");
    let (ok, _, statistics) = chat(cache.path(), &["--session", file.to_str().unwrap(), "--messages-only"], "Why?\n");
    let turn = &turns(&statistics)[0];
    assert!(ok && turn.cached == 0 && turn.prompt > all[2].prompt, "{statistics}");
    // It has no chat to offer for a file that is none.
    std::fs::write(&file, "Once upon a time there was a file.").unwrap();
    let (ok, _, message) = chat(cache.path(), &["--session", file.to_str().unwrap()], "Why?\n");
    assert!(!ok && message.contains("session file") && !message.contains("--messages-only"), "{message}");
    let (ok, _, message) = chat(cache.path(), &["--messages-only"], "Why?\n");
    assert!(!ok && message.contains("--session"), "{message}");
}

#[test]
fn commands_change_the_chat_and_what_is_wrong_does_not_end_it() {
    let cache = tempfile::tempdir().unwrap();
    let file = cache.path().join("saved.safetensors");
    let lines =
        format!("/frog\nHello.\n/undo\n\nHello.\n/reset\nHello.\n/system Be brief.\n/save {}\n", file.display());
    let (ok, answers, messages) = chat(cache.path(), &[], &lines);
    assert!(!ok && messages.contains("/frog") && messages.contains("/system TEXT"), "{messages}");
    let third = answers.len() / 3;
    assert_eq!(answers, answers[..third].repeat(3), "each of them is the first turn of its chat");
    assert!(file.is_file());
    let (ok, _, messages) = chat(cache.path(), &["--session", file.to_str().unwrap()], "Hello.\n");
    assert!(ok, "{messages}");
    let alone = turns(&chat(cache.path(), &[], "Hello.\n").2)[0].prompt;
    assert!(turns(&messages)[0].prompt > 2 * alone, "{messages}");
}

#[test]
fn a_chat_is_saved_also_if_its_model_has_changed_meanwhile_and_the_program_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/tiny-llama")).unwrap()
    {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let file = folder.path().join("chat.safetensors");
    let (model_arg, file_arg) = (model.to_str().unwrap(), file.to_str().unwrap());
    let args = ["--model", model_arg, "--session", file_arg];
    let mut child = Command::new(env!("CARGO_BIN_EXE_llm-local"))
        .args([&["chat", "--max-tokens", "24"], &args[..]].concat())
        .env("LLM_LOCAL_CACHE", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    stdin.write_all(b"Hello.\n").unwrap();
    stderr.find(|line| line.contains(" generated at ")).unwrap();
    let config = std::fs::read(model.join("config.json")).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    drop(stdin);
    let messages: Vec<_> = stderr.collect();
    assert!(child.wait().unwrap().success(), "{messages:?}");
    let warned = messages.iter().any(|m| m.starts_with("warning: ") && m.contains("config.json has changed since"));
    assert!(warned, "{messages:?}");
    std::fs::write(model.join("config.json"), config).unwrap();
    let (ok, _, message) = chat(folder.path(), &args, "Why?\n");
    assert!(!ok && message.contains("(--messages-only)"), "{message}");
    let (ok, _, statistics) = chat(folder.path(), &[&args[..], &["--messages-only"]].concat(), "Why?\n");
    assert!(ok, "{statistics}");
    let alone = turns(&chat(folder.path(), &["--model", model_arg], "Why?\n").2)[0].prompt;
    assert!(turns(&statistics)[0].prompt > alone, "{statistics}");
    // And it is whole again.
    let (ok, _, message) = chat(folder.path(), &args, "");
    assert!(ok, "{message}");
}
