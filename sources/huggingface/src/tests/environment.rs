//! What the environment has, in a process of its own: other tests run beside these.

use std::process::Command;

use super::*;

/// Set in the process that runs a test again.
const AGAIN: &str = "LLM_LOCAL_TEST_RUNS_AGAIN";

/// Runs the test `name` again in a process with these variables; `true` there.
fn within(name: &str, variables: &[(&str, &str)]) -> bool {
    if std::env::var_os(AGAIN).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("tests::environment::{name}")]).envs(variables.iter().copied()).env(AGAIN, "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    false
}

#[test]
fn what_is_given_is_not_overruled_by_it() {
    let elsewhere = tempfile::tempdir().unwrap();
    let variables = [
        ("HF_TOKEN", "hf_of_the_environment"),
        ("HF_ENDPOINT", "http://127.0.0.1:9"),
        ("HF_HOME", elsewhere.path().to_str().unwrap()),
        ("HF_HUB_OFFLINE", "1"),
    ];
    if !within("what_is_given_is_not_overruled_by_it", &variables) {
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "something was written there");
        return;
    }
    let setup = setup(Hub::builder().with_repo(model()).start());
    let reference = "hf:org/tiny".parse().unwrap();
    assert_eq!(paths(&setup.resolve("hf:org/tiny").unwrap()), MODEL_FILES);
    block_on(setup.source.revisions(&reference, &FetchContext::new())).unwrap();
    let requests = setup.hub.wait_until_idle();
    assert_eq!(requests.len(), 4);
    assert!(requests.iter().all(|r| r.header("authorization").is_none()), "{requests:?}");
}

#[test]
fn what_is_not_given_is_taken_from_it() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), "hf_of_the_file").unwrap();
    let variables =
        [("HF_ENDPOINT", "https://hub.test/"), ("HF_HOME", home.path().to_str().unwrap()), ("HF_HUB_OFFLINE", "on")];
    let unset = [("HF_TOKEN", ""), ("HF_TOKEN_PATH", ""), ("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", "")];
    let variables: Vec<_> = variables.into_iter().chain(unset).collect();
    if !within("what_is_not_given_is_taken_from_it", &variables) {
        return;
    }
    let source = HuggingFace::from_env().unwrap();
    let shown = format!("{source:?}");
    for word in ["https://hub.test\"", "hub\"", "offline: true", "Some(Token(..))"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let error = block_on(source.resolve(&"hf:a/b".parse().unwrap(), Want::Model, &FetchContext::new())).unwrap_err();
    assert!(matches!(error, Error::Offline { .. }), "{error}");
}
