//! What the policy allows to be asked, and how large what comes may be, unpacked too.

use std::{
    io::Write,
    sync::{Arc, OnceLock},
};

use llm_local::{
    ArtifactRef, Policy,
    core::{AdapterSource, Plugin, PluginContext, Result, Want},
    policy::WeightFormat,
};
use llm_local_source_common::network::Network;
use llm_local_source_github::GitHub;
use llm_local_testkit::github::{Host, Release};
use pollster::block_on;

use crate::world::{World, adapter_files, assert_adapter_error, loose, spec};

const ADAPTER: &str = "github:acme/lora@v1";

/// A release whose archive is small, and holds an adapter and this many spaces.
fn inflating(spaces: usize) -> Release {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    let files = adapter_files("peft").into_iter().chain([("tokenizer.json".to_owned(), vec![b' '; spaces])]);
    for (name, bytes) in files {
        zip.start_file(name, options).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    Release::new("v1").with_file("pirate.zip", zip.finish().unwrap().into_inner())
}

#[test]
fn a_host_that_is_not_allowed_is_not_asked_though_one_that_is_redirects_to_it() {
    let world = World::new(loose("v1", "peft"));
    let hosts = [world.github.api_address().to_string(), world.github.web_address().to_string()];
    let policy = Policy::new().allow_hosts(hosts.clone());
    let engine = world.builder().policy(policy).build().unwrap();
    let reference: ArtifactRef = ADAPTER.parse().unwrap();
    let cdn = world.github.cdn_address().to_string();
    let result = block_on(engine.download_artifact(&reference, Want::Adapter, None));
    assert_adapter_error(result, "not_allowed", &[&cdn, "Policy::allow_hosts"]);
    let requests = world.github.wait_until_idle();
    assert!(requests.iter().any(|r| r.host == Host::Web), "{requests:?}");
    assert!(requests.iter().all(|r| r.host != Host::Cdn), "{requests:?}");
    let policy = Policy::new().allow_hosts(hosts).allow_hosts([cdn]);
    let engine = world.builder().policy(policy).build().unwrap();
    block_on(engine.download_artifact(&reference, Want::Adapter, None)).unwrap();
}

static API: OnceLock<String> = OnceLock::new();

fn made(context: &PluginContext) -> Result<Arc<dyn AdapterSource>> {
    let network = context.get::<Network>().unwrap().clone();
    Ok(Arc::new(GitHub::builder().token("").api(API.get().unwrap()).network(network).build()?))
}

#[test]
fn a_source_that_the_engine_makes_of_a_plugin_asks_allowed_hosts_alone() {
    let world = World::new(loose("v1", "peft"));
    API.set(world.github.api_url()).unwrap();
    let plugin: Plugin = llm_local::core::plugin!("made").with_adapter_source("github", made);
    let reference: ArtifactRef = ADAPTER.parse().unwrap();
    let api = world.github.api_address().to_string();
    let engine = world.builder().plugin(plugin).policy(Policy::new().allow_hosts(["hub.test"])).build().unwrap();
    let result = block_on(engine.download_artifact(&reference, Want::Adapter, None));
    assert_adapter_error(result, "not_allowed", &[&api, "hub.test"]);
    assert_eq!(world.requests(), 0);
    let engine = world.builder().plugin(plugin).build().unwrap();
    block_on(engine.download_artifact(&reference, Want::Adapter, None)).unwrap();
    assert!(world.requests() > 0);
}

#[test]
fn a_model_that_is_larger_than_allowed_is_refused_by_its_listing() {
    let world = World::new(loose("v1", "peft"));
    let engine = world.builder().policy(Policy::new().max_model_bytes(1_000_000)).build().unwrap();
    let error = block_on(engine.load(&spec(ADAPTER))).unwrap_err();
    assert_eq!(error.code(), "not_allowed", "{error}");
    assert!(error.to_string().contains("a model may have 1000000 bytes, and it has"), "{error}");
    let requests = world.hub.wait_until_idle();
    assert!(!requests.is_empty() && requests.iter().all(|r| r.file.is_none()), "{requests:?}");
    // The adapter is no model, and smaller.
    block_on(engine.download_artifact(&ADAPTER.parse().unwrap(), Want::Adapter, None)).unwrap();
}

#[test]
fn what_comes_out_of_an_archive_counts_for_the_size_that_is_allowed() {
    const ALLOWED: u64 = 1_000_000;
    let world = World::new(inflating(5_000_000));
    let reference: ArtifactRef = ADAPTER.parse().unwrap();
    let listed = world.engine();
    let plan = block_on(listed.plan(&spec(ADAPTER))).unwrap();
    assert!(plan.adapters[0].0.bytes < ALLOWED, "{plan}");
    // One rule is enough for it to be given up while it is unpacked.
    for policy in [Policy::new(), Policy::new().max_model_bytes(100 * ALLOWED)] {
        let engine = world.builder().policy(policy.max_adapter_bytes(ALLOWED)).build().unwrap();
        let given_up = ["tokenizer.json", "1000000 bytes", "no more is allowed by `Policy::max_adapter_bytes`"];
        let result = block_on(engine.download_artifact(&reference, Want::Adapter, None));
        assert_adapter_error(result, "not_allowed", &given_up);
        assert_adapter_error(block_on(engine.load(&spec(ADAPTER))), "not_allowed", &given_up);
        assert!(block_on(engine.adapters().list()).unwrap().is_empty());
        assert_eq!(world.contents(), Vec::<Vec<u8>>::new());
    }
    // It is no model, of which alone there is a rule.
    let engine = world.builder().policy(Policy::new().max_model_bytes(ALLOWED)).build().unwrap();
    block_on(engine.download_artifact(&reference, Want::Adapter, None)).unwrap();
    // Where it is kept already, a plan says the same as a load, and it stays.
    let engine = world.builder().policy(Policy::new().max_adapter_bytes(ALLOWED)).build().unwrap();
    let unpacked = ["an adapter may have 1000000 bytes, and it unpacked has 53"];
    assert_adapter_error(block_on(engine.plan(&spec(ADAPTER))), "not_allowed", &unpacked);
    assert_adapter_error(block_on(engine.download(&spec(ADAPTER), None)), "not_allowed", &unpacked);
    assert_adapter_error(block_on(engine.adapters().update(&reference, None)), "not_allowed", &unpacked);
    assert_eq!(block_on(engine.adapters().list()).unwrap().len(), 1);
}

#[test]
fn what_is_refused_once_it_is_unpacked_is_not_kept() {
    // Each file and all that is unpacked on the way are within bounds; what is left in the end is not.
    let world = World::new(inflating(900_000));
    let reference: ArtifactRef = ADAPTER.parse().unwrap();
    let size = Policy::new().max_adapter_bytes(1_000_000);
    let format = Policy::new().allow_formats([WeightFormat::Gguf]);
    for (policy, says) in [(size, "it unpacked has 12"), (format, "adapter_model.safetensors` is safetensors")] {
        let engine = world.builder().policy(policy).build().unwrap();
        block_on(world.engine().download_artifact(&"hf:org/tiny".parse().unwrap(), Want::Model, None)).unwrap();
        let refused = [
            block_on(engine.download_artifact(&reference, Want::Adapter, None)),
            block_on(engine.adapters().update(&reference, None)).map(drop),
            block_on(engine.adapters().pin(&reference, None, None)).map(drop),
            block_on(engine.adapters().inspect(&reference.clone().into())).map(drop),
        ];
        for refused in refused {
            assert_adapter_error(refused, "not_allowed", &[says]);
            assert!(block_on(engine.adapters().list()).unwrap().is_empty());
            assert_eq!(world.contents(), Vec::<Vec<u8>>::new());
        }
    }
    // A load that is of nothing else either.
    let engine = world.builder().policy(Policy::new().max_adapter_bytes(1_000_000)).build().unwrap();
    assert_adapter_error(block_on(engine.load(&spec(ADAPTER))), "not_allowed", &["it unpacked has 12"]);
    assert_eq!(world.contents(), Vec::<Vec<u8>>::new());
    // What is remembered of a version outlasts a refusal: it was fetched before, when it was allowed.
    block_on(world.engine().download_artifact(&reference, Want::Adapter, None)).unwrap();
    engine.store().evict(0, 0).unwrap();
    assert_adapter_error(block_on(engine.load(&spec(ADAPTER))), "not_allowed", &["it unpacked has 12"]);
    assert!(engine.store().remembered(&reference, Want::Adapter).unwrap().contains("v1"));
}
