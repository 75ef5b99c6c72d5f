//! Whatever is wrong with an adapter is one kind of error, and the policy speaks before anything is asked for.

use llm_local::{
    Adapters, ArtifactRef, Engine, Policy, Result,
    core::{Error, Want},
    policy::WeightFormat,
};
use llm_local_testkit::github::{Asset, Fault, Host, Release, Repository};
use pollster::block_on;

use crate::world::{World, adapter_files, assert_adapter_error, loose, spec, zipped};

/// A world with a release for each way to be wrong.
fn world() -> World {
    let world = World::new(loose("v1", "peft"));
    let broken = |tag: &str| Release::new(tag).with_file("adapter_config.json", adapter_files("peft")[0].1.clone());
    let with_config = |tag: &str, config: &str| {
        let (name, bytes) = adapter_files("peft").swap_remove(1);
        Release::new(tag).with_file("adapter_config.json", config.to_owned()).with_file(name, bytes)
    };
    let digest = format!("sha256:{}", "0".repeat(64));
    let weights = || adapter_files("peft").swap_remove(1);
    let (name, bytes) = weights();
    let releases = [
        broken("no-weights"),
        broken("not-weights").with_file("adapter_model.safetensors", "not weights at all"),
        Release::new("bad-archive").with_file("pirate.zip", "PK but no archive"),
        broken("bad-digest").with_asset(Asset::new(&name, bytes.clone()).with_digest(digest)),
        broken("uploading").with_asset(Asset::new(&name, bytes).uploading()),
        Release::new("model").with_file("notes.txt", "nothing"),
        loose("draft", "peft").draft(),
        with_config("loha", r#"{"peft_type": "LOHA", "r": 8, "alpha": 16, "target_modules": ["q_proj"]}"#),
    ];
    let repository = releases.into_iter().fold(Repository::new("acme/bad"), Repository::with_release);
    world.github.create(repository);
    world
}

/// Every call of the engine that gets an adapter.
fn calls(engine: &Engine, reference: &ArtifactRef) -> Vec<(&'static str, Result<()>)> {
    let (adapters, spec) = (engine.adapters(), spec(&reference.to_string()));
    vec![
        ("load", block_on(engine.load(&spec)).map(drop)),
        ("download", block_on(engine.download(&spec, None))),
        ("download_artifact", block_on(engine.download_artifact(reference, Want::Adapter, None))),
        ("update", block_on(adapters.update(reference, None)).map(drop)),
        ("pin", block_on(adapters.pin(reference, None, None)).map(drop)),
    ]
}

#[test]
fn whatever_keeps_an_adapter_from_being_used_is_the_same_kind_of_error_in_every_call() {
    let world = world();
    let missing = world.folder.path().join("nothing-here").display().to_string();
    // Ref, kind of the cause, and what the message says.
    let table: &[(&str, &str, &str)] = &[
        (&missing, "not_found", "no such file or folder"),
        ("hf:a/b/c", "invalid_spec", "not the name of a repository"),
        ("github:acme", "invalid_spec", "github:owner/repo"),
        ("gopher:x", "not_registered", "gopher"),
        ("hf:org/none", "not_found", "hf:org/none"),
        ("github:acme/none", "not_found", "GitHub shows no repository"),
        ("github:acme/lora@v9", "not_found", "it has github:acme/lora@v1"),
        ("github:acme/lora@v1#none.zip", "not_found", "none.zip"),
        // Without a token, nobody sees a draft.
        ("github:acme/bad@draft", "not_found", "the repository has no release `draft`"),
        ("github:acme/bad@uploading", "download_failed", "upload"),
        ("github:acme/bad@bad-digest", "integrity_failed", "adapter_model.safetensors"),
    ];
    for (reference, cause, part) in table {
        let reference: ArtifactRef = reference.parse().unwrap();
        for (call, result) in calls(&world.engine(), &reference) {
            let result = result.map_err(|e| named(e, call));
            assert_adapter_error(result, cause, &[part]);
        }
    }
}

#[test]
fn what_is_no_adapter_is_the_same_kind_of_error_wherever_it_is_read() {
    let world = world();
    for tag in ["no-weights", "not-weights", "bad-archive", "model", "loha"] {
        let reference = format!("github:acme/bad@{tag}").parse().unwrap();
        for (call, result) in calls(&world.engine(), &reference) {
            // What only a reader can tell is no matter of a download.
            let unread = call == "download_artifact" && ["not-weights", "loha"].contains(&tag);
            match result {
                Err(error) => assert_eq!(error.code(), "adapter_merge_failed", "{call} of {tag}: {error}"),
                Ok(()) => assert!(unread, "{call} of {tag} succeeded"),
            }
        }
    }
}

#[test]
fn what_the_versions_of_an_adapter_cannot_do_is_the_same_kind_of_error() {
    let world = world();
    let engine = world.engine();
    let adapters = engine.adapters();
    type Call = fn(&Adapters, &ArtifactRef) -> Result<()>;
    let calls: [(Call, &str, &str); 6] = [
        (|a, r| block_on(a.versions(r)).map(drop), "not_found", "GitHub shows no repository"),
        (|a, r| block_on(a.is_update_available(r)).map(drop), "not_found", "GitHub shows no repository"),
        (|a, r| block_on(a.rollback(r)).map(drop), "not_found", "an earlier version"),
        (|a, r| block_on(a.delete(r, Some("v1"))).map(drop), "not_found", "no version is kept"),
        (|a, r| block_on(a.inspect(&r.clone().into())).map(drop), "not_found", "GitHub shows no repository"),
        (|a, r| block_on(a.pin(r, Some("v1"), None)).map(drop), "not_found", "GitHub shows no repository"),
    ];
    for (call, cause, part) in calls {
        assert_adapter_error(call(&adapters, &"github:acme/none".parse().unwrap()), cause, &[part]);
    }
    let unknown = "gopher:x".parse().unwrap();
    assert_adapter_error(block_on(adapters.versions(&unknown)), "not_registered", &["gopher"]);
    let kept = block_on(adapters.pin(&"github:acme/lora".parse().unwrap(), Some("v9"), None));
    assert_adapter_error(kept, "not_found", &["it has github:acme/lora@v1"]);
}

#[test]
fn network_trouble_of_an_adapter_stays_retryable() {
    let world = World::new(loose("v1", "peft"));
    let network = llm_local::NetworkConfig::new().with_attempts(1);
    let engine = world.builder().network(network).build().unwrap();
    world.github.fault(Fault::cut(1000).path("adapter_model.safetensors").on(Host::Cdn));
    let error = block_on(engine.load(&spec("github:acme/lora@v1"))).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed");
    assert!(error.is_retryable(), "{error:?}");
    world.github.clear_faults();
    let hour = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 3600;
    world.github.exhaust_rate_limit(hour);
    let limited = block_on(engine.adapters().update(&"github:acme/lora".parse().unwrap(), None));
    assert!(limited.as_ref().unwrap_err().is_retryable(), "{limited:?}");
    assert_adapter_error(limited, "rate_limited", &["try again in"]);
}

#[test]
fn what_the_policy_refuses_is_not_asked_for() {
    let world = World::new(zipped("v1", "peft"));
    let reference: ArtifactRef = "github:acme/lora@v1".parse().unwrap();
    for (policy, part) in [
        (Policy::new().allow_schemes(["hf"]), "its scheme `github`"),
        (Policy::new().allow_owners(["org"]), "its owner `acme`"),
    ] {
        let engine = world.builder().policy(policy).build().unwrap();
        for result in [
            block_on(engine.download_artifact(&reference, Want::Adapter, None)),
            block_on(engine.adapters().update(&reference, None)).map(drop),
            block_on(engine.adapters().pin(&reference, None, None)).map(drop),
            block_on(engine.adapters().versions(&reference)).map(drop),
            block_on(engine.adapters().is_update_available(&reference)).map(drop),
            block_on(engine.adapters().inspect(&reference.clone().into())).map(drop),
        ] {
            assert_adapter_error(result, "not_allowed", &[part]);
        }
        assert_eq!(world.requests(), 0);
    }
    // By the listing, before a byte of a file moves.
    for (policy, part) in [
        (Policy::new().max_adapter_bytes(1000), "an adapter may have 1000 bytes"),
        (Policy::new().allow_licenses(["apache-2.0"]), "its licence `MIT`"),
    ] {
        let engine = world.builder().policy(policy).build().unwrap();
        assert_adapter_error(block_on(engine.adapters().update(&reference, None)), "not_allowed", &[part]);
        assert!(world.github.wait_until_idle().iter().all(|r| r.host == Host::Api));
    }
    // By what comes out of an archive, before it is used.
    let engine = world.builder().policy(Policy::new().allow_formats([WeightFormat::Gguf])).build().unwrap();
    let result = block_on(engine.adapters().update(&reference, None));
    assert_adapter_error(result, "not_allowed", &["is safetensors"]);
    assert!(block_on(engine.adapters().list()).unwrap().iter().all(|a| a.versions.iter().all(|v| !v.current)));
}

/// The same error, with the call in its message.
fn named(error: Error, call: &str) -> Error {
    match error {
        Error::AdapterMergeFailed { adapter, reason, source } => {
            Error::AdapterMergeFailed { adapter, reason: format!("{call}: {reason}"), source }
        }
        other => panic!("{call}: {other:?}"),
    }
}
