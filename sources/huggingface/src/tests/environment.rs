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
    assert_eq!(requests.len(), 3);
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

/// The hub that a test in its own process is to ask.
const HUB: &str = "HF_ENDPOINT";

#[test]
fn the_network_of_the_engine_makes_the_requests_of_both_sources() {
    let name = "the_network_of_the_engine_makes_the_requests_of_both_sources";
    if std::env::var_os(AGAIN).is_none() {
        let lora =
            Repo::new("org/lora").with_file("adapter_config.json", "{}").with_lfs("adapter_model.safetensors", "x");
        let hub = Hub::builder().with_repo(model()).with_repo(lora).start();
        let home = tempfile::tempdir().unwrap();
        within(name, &[(HUB, &hub.endpoint()), ("HF_HOME", home.path().to_str().unwrap()), ("HF_HUB_OFFLINE", "")]);
        let requests = hub.wait_until_idle();
        assert_eq!(requests.len(), 2 + 2 + 1, "{requests:?}");
        for request in requests {
            let agents: Vec<_> = request.header("user-agent").into_iter().collect();
            assert_eq!(agents, ["the engine's/1"], "{request:?}");
        }
        return;
    }
    // As `EngineBuilder::build` gives it to the registry.
    let network = Network::new(NetworkConfig::new().with_user_agent("the engine's/1").with_attempts(1));
    let registry = Registry::discover(&[PLUGIN]).unwrap().with_context(PluginContext::new().with(network));
    let (model, lora): (ArtifactRef, ArtifactRef) = ("hf:org/tiny".parse().unwrap(), "hf:org/lora".parse().unwrap());
    let cx = FetchContext::new();
    let (models, adapters) = (registry.model_source(&model).unwrap(), registry.adapter_source(&lora).unwrap());
    block_on(models.resolve(&model, Want::Model, &cx)).unwrap();
    block_on(adapters.resolve(&lora, Want::Adapter, &cx)).unwrap();
    block_on(adapters.revisions(&lora, &cx)).unwrap();
}

#[test]
fn what_the_network_of_the_engine_may_the_source_may() {
    let name = "what_the_network_of_the_engine_may_the_source_may";
    if std::env::var_os(AGAIN).is_none() {
        // It stands for a proxy: it records what it is asked, and knows nothing of it.
        let proxy = Hub::start();
        let home = tempfile::tempdir().unwrap();
        let variables = [(HUB, "http://hub.test"), ("HF_HOME", home.path().to_str().unwrap()), ("HF_HUB_OFFLINE", "")];
        let proxies = [("http_proxy", proxy.endpoint()), ("no_proxy", String::new()), ("NO_PROXY", String::new())];
        let proxies = proxies.iter().map(|(name, value)| (*name, value.as_str()));
        within(name, &variables.into_iter().chain(proxies).collect::<Vec<_>>());
        let requests = proxy.wait_until_idle();
        assert_eq!(requests.len(), 1, "{requests:?}");
        assert_eq!(requests[0].header("host"), Some("hub.test"));
        return;
    }
    let reference: ArtifactRef = "hf:org/tiny".parse().unwrap();
    let resolve = |insecure: bool| {
        let network = Network::new(NetworkConfig::new().with_insecure_http(insecure).with_attempts(1));
        let registry = Registry::discover(&[PLUGIN]).unwrap().with_context(PluginContext::new().with(network));
        let source = registry.model_source(&reference).unwrap();
        block_on(source.resolve(&reference, Want::Model, &FetchContext::new()))
    };
    said(resolve(false), "invalid_spec", &["hub.test"]);
    said(resolve(true), "not_found", &["hf:org/tiny"]);
}
