//! What is asked of a source before it is known that a spec can be run: configs and heads, and no weight.

#![cfg(feature = "huggingface")]

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use crate::common::{fixture, fixture_ref};
use futures_util::{FutureExt, future::Either};
use llm_local::{
    BackendPreference, Engine, ModelSpec, ProgressEvent, TransferConfig,
    core::{Support, Want},
};
use llm_local_source_huggingface::HuggingFace;
use llm_local_testkit::{
    fakes::FakeBackend,
    hub::{Fault, Host, Hub, Outcome, Recorded, Repo},
};
use pollster::block_on;

/// The folder of a fixture as a repository; weights are in LFS, as on the real Hub.
fn repo(id: &str, folder: &str) -> Repo {
    let mut repo = Repo::new(id);
    for entry in fs::read_dir(fixture(folder)).unwrap() {
        let path = entry.unwrap().path();
        let (name, bytes) = (path.file_name().unwrap().to_str().unwrap(), fs::read(&path).unwrap());
        repo = if name.ends_with(".safetensors") { repo.with_lfs(name, bytes) } else { repo.with_file(name, bytes) };
    }
    repo
}

/// An engine whose backend `fake` runs everything.
fn engine(hub: &Hub, folder: &Path) -> Engine {
    builder(hub, folder, FakeBackend::new("fake")).build().unwrap()
}

fn builder(hub: &Hub, folder: &Path, backend: FakeBackend) -> llm_local::EngineBuilder {
    let source = HuggingFace::builder().endpoint(hub.endpoint()).token("").cache_dir(folder.join("hub"));
    Engine::builder().source(source.build().unwrap()).backend(Arc::new(backend)).cache_dir(folder.join("store"))
}

fn spec(base: &str) -> ModelSpec {
    ModelSpec::new(base.parse().unwrap()).with_backend(BackendPreference::Named("fake".into()))
}

/// A safetensors file of one tensor of `bytes`.
fn weights(tensor: &str, bytes: usize) -> Vec<u8> {
    let header = format!(r#"{{"{tensor}":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + bytes, 7);
    file
}

fn shard(at: usize) -> String {
    format!("model-{at:05}-of-00007.safetensors")
}

/// A model of seven shards, of which those in `broken` are none.
fn sharded(broken: &[usize]) -> Hub {
    let config = fs::read(fixture("models/tiny-llama/config.json")).unwrap();
    let mut repo = Repo::new("org/big").with_file("config.json", config);
    let mut map = serde_json::Map::new();
    for at in 1..=7 {
        map.insert(format!("t{at}"), shard(at).into());
        let content = if broken.contains(&at) { vec![0xff; 64] } else { weights(&format!("t{at}"), 200_000) };
        repo = repo.with_lfs(shard(at), content);
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    Hub::builder().with_repo(repo.with_file(INDEX, index)).start()
}

/// Requests for shards that got as far as their bytes.
fn for_shards(requests: &[Recorded]) -> Vec<&Recorded> {
    requests.iter().filter(|r| r.host == Host::Cdn && r.is_for("model-*")).collect()
}

fn is_open(request: &Recorded) -> bool {
    request.outcome == Outcome::Open
}

/// The name of the index of a sharded model.
const INDEX: &str = "model.safetensors.index.json";

/// An index of two shards, of at least `bytes`.
fn index_of_two(bytes: usize) -> String {
    let mut text = String::from(r#"{"weight_map":{"#);
    for layer in 0.. {
        text += &format!(r#""layers.{layer}.mlp.weight":"model-0000{}-of-00002.safetensors""#, layer % 2 + 1);
        if layer > 0 && text.len() >= bytes {
            return text + "}}";
        }
        text.push(',');
    }
    unreachable!("it ends once it is long enough")
}

#[cfg(feature = "candle")]
#[test]
fn a_model_that_no_backend_can_run_by_its_config_costs_its_config() {
    let config = r#"{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}"#;
    let large = index_of_two(2 << 20);
    assert!(large.len() >= 2 << 20);
    // What is asked for but for the config: an index only where names do not tell what it can name, and then once.
    for (index, more, first) in [
        (None, None, &[][..]),
        (Some(index_of_two(0)), None, &[]),
        (Some(large), None, &[]),
        (Some(index_of_two(0)), Some("more.safetensors"), &[INDEX]),
    ] {
        let mut repo_of_it = Repo::new("org/big")
            .with_file("config.json", config)
            .with_file("tokenizer.json", "{}")
            .with_lfs("model-00001-of-00002.safetensors", weights("v", 1 << 20))
            .with_lfs("model-00002-of-00002.safetensors", weights("w", 1 << 20));
        for (name, content) in [(Some(INDEX), index), (more, Some(String::new()))] {
            if let (Some(name), Some(content)) = (name, content) {
                repo_of_it = repo_of_it.with_lfs(name, content);
            }
        }
        let pirate = repo("org/pirate", "adapters/tiny-llama-lora-peft");
        let hub = Hub::builder().with_repo(repo_of_it).with_repo(pirate).start();
        let folder = tempfile::tempdir().unwrap();
        let source = HuggingFace::builder().endpoint(hub.endpoint()).token("").cache_dir(folder.path().join("hub"));
        let engine = Engine::builder().source(source.build().unwrap()).cache_dir(folder.path().join("store"));
        let engine = engine.build().unwrap();
        let spec = ModelSpec::new("hf:org/big".parse().unwrap()).with_adapter("hf:org/pirate".parse().unwrap());
        for before in [first, &[]] {
            hub.clear();
            let error = block_on(engine.load(&spec)).unwrap_err();
            assert_eq!(error.code(), "no_backend", "{error}");
            assert!(error.to_string().contains("mamba"), "{error}");
            let requests = hub.wait_until_idle();
            let files: Vec<_> =
                requests.iter().filter(|r| r.host == Host::Hub).filter_map(|r| r.file.as_deref()).collect();
            assert_eq!(files, [before, &["config.json"]].concat(), "{requests:?}");
            assert_eq!(hub.bytes_served_for("config.json"), config.len() as u64);
            assert!(requests.iter().map(|r| r.body_bytes_sent).sum::<u64>() < 20_000, "{requests:?}");
        }
    }
}

#[test]
fn an_index_is_asked_for_once_by_whoever_wants_it_first() {
    for more in [None, Some("more.safetensors")] {
        let config = fs::read(fixture("models/tiny-llama/config.json")).unwrap();
        let index = r#"{"weight_map":{"v":"model-00001-of-00002.safetensors","w":"model-00002-of-00002.safetensors"}}"#;
        let mut repo = Repo::new("org/big")
            .with_file("config.json", config)
            .with_file(INDEX, index)
            .with_lfs("model-00001-of-00002.safetensors", weights("v", 1 << 10))
            .with_lfs("model-00002-of-00002.safetensors", weights("w", 1 << 10));
        if let Some(more) = more {
            repo = repo.with_lfs(more, weights("x", 1 << 10));
        }
        let hub = Hub::builder().with_repo(repo).start();
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(&hub, folder.path());
        let plan = block_on(engine.plan(&spec("hf:org/big"))).unwrap();
        assert_eq!(plan.base.files, 4);
        block_on(engine.download(&spec("hf:org/big"), None)).unwrap();
        assert!(block_on(engine.plan(&spec("hf:org/big"))).unwrap().base.present);
        hub.wait_until_idle();
        assert_eq!(hub.requests_for(INDEX).len(), 1, "{:?}", hub.requests());
        assert_eq!(engine.store().list().unwrap().artifacts[0].revision, hub.commit("org/big", "main").unwrap());
        // Nothing of it stays, neither what the source noted.
        engine.store().delete(&"hf:org/big".parse().unwrap()).unwrap();
        assert!(!folder.path().join("hub/models--org--big").exists());
    }
}

#[test]
fn a_backend_with_another_reason_than_the_config_is_asked_again_with_the_tensors() {
    let config = r#"{"model_type": "mamba"}"#;
    let repo =
        Repo::new("org/big").with_file("config.json", config).with_lfs("model.safetensors", weights("w", 1 << 20));
    let hub = Hub::builder().with_repo(repo).start();
    let folder = tempfile::tempdir().unwrap();
    let picky = FakeBackend::new("fake").with_support(Support::No("there is no tensor `w`".into()));
    let engine = builder(&hub, folder.path(), picky).build().unwrap();
    let error = block_on(engine.plan(&spec("hf:org/big"))).unwrap_err();
    assert!(error.to_string().contains("no tensor `w`"), "{error}");
    assert!(hub.requests().iter().any(|r| r.is_for("model.safetensors")), "{:?}", hub.requests());
}

#[test]
fn heads_of_shards_are_read_as_many_at_a_time_as_there_may_be_connections() {
    let (hub, folder) = (sharded(&[]), tempfile::tempdir().unwrap());
    let engine = builder(&hub, folder.path(), FakeBackend::new("fake"));
    let engine = engine.transfer(TransferConfig::new().with_connections(3)).build().unwrap();
    hub.fault(Fault::stall(0).on(Host::Cdn).path("model-*"));
    thread::scope(|scope| {
        let plan = scope.spawn(|| block_on(engine.plan(&spec("hf:org/big"))));
        let other = engine.clone();
        let mut served = 0;
        for wave in [3, 3, 1] {
            hub.wait_until(|requests| {
                let shards = for_shards(requests);
                shards.len() >= served + wave && shards.iter().filter(|r| is_open(r)).count() >= wave
            });
            // Were there no bound, more would have come while these are asked for and answered.
            for _ in 0..10 {
                block_on(other.download_artifact(&"hf:org/none".parse().unwrap(), Want::Model, None)).unwrap_err();
            }
            assert_eq!(for_shards(&hub.requests()).len(), served + wave, "{:?}", hub.requests());
            served += wave;
            hub.release();
        }
        let plan = plan.join().unwrap().unwrap();
        assert_eq!((plan.base.files, plan.base.present), (9, false));
        assert!(plan.model.is_some());
    });
    hub.wait_until_idle();
    assert!(hub.bytes_served_for("model-*") < 7 * 70_000, "{}", hub.bytes_served_for("model-*"));
}

#[test]
fn of_several_broken_heads_the_first_by_name_is_the_error_whichever_comes_first() {
    let (hub, folder) = (sharded(&[2, 4]), tempfile::tempdir().unwrap());
    let engine = engine(&hub, folder.path());
    hub.fault(Fault::stall(0).on(Host::Cdn).path(shard(2)).once());
    let error = thread::scope(|scope| {
        let plan = scope.spawn(|| block_on(engine.plan(&spec("hf:org/big"))));
        hub.wait_until(|requests| {
            let shards = for_shards(requests);
            let of = |at: usize| shards.iter().find(|r| r.is_for(&shard(at)));
            of(4).is_some_and(|r| r.outcome.is_over()) && of(2).is_some_and(|r| is_open(r))
        });
        hub.release();
        plan.join().unwrap().unwrap_err()
    });
    assert_eq!(error.code(), "load_failed");
    let text = error.to_string();
    assert!(text.contains(&format!("{} of hf:org/big", shard(2))) && text.contains("not a safetensors file"), "{text}");
}

#[test]
fn dropping_a_plan_ends_the_requests_for_its_heads() {
    let (hub, folder) = (sharded(&[]), tempfile::tempdir().unwrap());
    let engine = engine(&hub, folder.path());
    hub.fault(Fault::stall(0).on(Host::Cdn).path("model-*"));
    let (tell, told) = tokio::sync::oneshot::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            hub.wait_until(|requests| for_shards(requests).iter().filter(|r| is_open(r)).count() == 7);
            tell.send(()).unwrap();
        });
        let spec = spec("hf:org/big");
        let plan = engine.plan(&spec).boxed();
        let ended = block_on(futures_util::future::select(plan, told));
        assert!(matches!(ended, Either::Right(_)), "the plan ended while all of its requests stall");
    });
    let requests = hub.wait_until_idle();
    assert!(for_shards(&requests).iter().all(|r| r.outcome == Outcome::Aborted), "{requests:?}");
}

#[test]
fn a_base_that_is_here_and_cannot_be_run_is_refused_before_its_adapter_is_asked_for() {
    let hub = Hub::builder().with_repo(repo("org/pirate", "adapters/tiny-llama-lora-peft")).start();
    let folder = tempfile::tempdir().unwrap();
    let never = FakeBackend::new("fake").with_support(Support::No("never".into()));
    let engine = builder(&hub, folder.path(), never).build().unwrap();
    let mut spec = spec("hf:org/none").with_adapter("hf:org/pirate".parse().unwrap());
    spec.base = fixture_ref("models/tiny-llama");
    let error = block_on(engine.load(&spec)).unwrap_err();
    assert_eq!(error.code(), "no_backend", "{error}");
    assert!(hub.requests().iter().all(|r| r.file.is_none()), "{:?}", hub.requests());
}

#[test]
fn an_adapter_that_does_not_fit_costs_no_weight_of_the_base_nor_its_own() {
    let hub = Hub::builder()
        .with_repo(repo("org/tiny", "models/tiny-llama"))
        .with_repo(repo("org/narrow", "bad-adapters/wrong-base-hidden96"))
        .with_repo(repo("org/ia3", "bad-adapters/peft-type-ia3"))
        .start();
    for (adapter, words, heads) in
        [("hf:org/narrow", ["(8, 288)", "expected (8, 384)"], 1), ("hf:org/ia3", ["peft_type", "IA3"], 0)]
    {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(&hub, folder.path());
        let spec = spec("hf:org/tiny").with_adapter(adapter.parse().unwrap());
        for error in [block_on(engine.load(&spec)).unwrap_err(), block_on(engine.download(&spec, None)).unwrap_err()] {
            assert_eq!(error.code(), "adapter_merge_failed", "{error}");
            let text = error.to_string();
            assert!(text.contains(adapter) && words.iter().all(|w| text.contains(w)), "{text}");
        }
        // Twice one head of the base.
        hub.wait_until_idle();
        let base = hub.requests_for("org/tiny/*.safetensors");
        assert!(base.iter().all(|r| r.header("range").is_some()), "{base:?}");
        assert!(hub.bytes_served_for("org/tiny/*.safetensors") < 200_000, "{base:?}");
        let own = hub.requests().into_iter().filter(|r| r.host == Host::Cdn && r.repo.as_deref() != Some("org/tiny"));
        assert_eq!(own.count(), 2 * heads);
        assert!(engine.store().list().unwrap().artifacts.is_empty());
        hub.clear();
    }
}

#[test]
fn a_plan_judges_an_adapter_that_is_not_here_and_fetches_nothing() {
    let hub = Hub::builder()
        .with_repo(repo("org/tiny", "models/tiny-llama"))
        .with_repo(repo("org/pirate", "adapters/tiny-llama-lora-peft"))
        .start();
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(&hub, folder.path());
    let spec = spec("hf:org/tiny").with_adapter("hf:org/pirate".parse().unwrap());
    let plan = block_on(engine.plan(&spec)).unwrap();
    assert_eq!(plan.model.as_ref().unwrap().merged_tensors, 28);
    assert!(!plan.base.present && !plan.adapters[0].0.present);
    assert!(engine.store().list().unwrap().artifacts.is_empty());
    hub.wait_until_idle();
    assert!(hub.bytes_served_for("*.safetensors") < 150_000, "{}", hub.bytes_served_for("*.safetensors"));
    // Half of it here, and then all of it.
    for reference in [(&spec.base, Want::Model), (&spec.adapters[0].reference, Want::Adapter)] {
        block_on(engine.download_artifact(reference.0, reference.1, None)).unwrap();
        assert_eq!(block_on(engine.plan(&spec)).unwrap().model, plan.model);
    }
}

#[test]
fn progress_is_of_base_and_adapters_from_the_start() {
    let hub = Hub::builder()
        .with_repo(repo("org/tiny", "models/tiny-llama"))
        .with_repo(repo("org/pirate", "adapters/tiny-llama-lora-peft"))
        .start();
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(&hub, folder.path());
    let spec = spec("hf:org/tiny").with_adapter("hf:org/pirate".parse().unwrap());
    let plan = block_on(engine.plan(&spec)).unwrap();
    let [base, adapter] = [plan.base.bytes, plan.adapters[0].0.bytes];
    let told = |engine: &Engine| {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = heard.clone();
        let handler = Arc::new(move |event: &ProgressEvent| {
            if let ProgressEvent::Download(progress) = event {
                sink.lock().unwrap().push((progress.completed_bytes, progress.total_bytes, progress.fraction));
            }
        });
        block_on(engine.download(&spec, Some(handler))).unwrap();
        let heard = heard.lock().unwrap().clone();
        assert!(heard.iter().all(|(_, total, _)| *total == base + adapter), "{heard:?}");
        assert!(heard.is_sorted_by(|a, b| a.2 <= b.2), "{heard:?}");
        assert_eq!(heard.iter().filter(|(.., fraction)| *fraction == 1.0).count(), 1);
        assert_eq!(heard.last().unwrap().2, 1.0);
        heard[0].0
    };
    block_on(engine.download_artifact(&spec.adapters[0].reference, Want::Adapter, None)).unwrap();
    assert_eq!(told(&engine), adapter);
    assert_eq!(told(&engine), base + adapter);
}

/// What the store has, by their refs.
fn kept(engine: &Engine) -> Vec<String> {
    engine.store().list().unwrap().artifacts.iter().map(|a| a.reference.to_string()).collect()
}

#[test]
fn a_quota_counts_what_is_missing_and_evicts_nothing_of_the_plan() {
    let hub = Hub::builder()
        .with_repo(repo("org/tiny", "models/tiny-llama"))
        .with_repo(repo("org/old", "adapters/tiny-llama-lora-peft"))
        .with_repo(repo("org/other", "adapters/tiny-llama-lora-qv-last2"))
        .start();
    let folder = tempfile::tempdir().unwrap();
    let open = |quota: u64| builder(&hub, folder.path(), FakeBackend::new("fake")).cache_quota(quota).build().unwrap();
    let engine = open(u64::MAX);
    let spec = spec("hf:org/tiny").with_adapter("hf:org/old".parse().unwrap());
    let plan = block_on(engine.plan(&spec)).unwrap();
    let needed = plan.base.bytes + plan.adapters[0].0.bytes;
    for reference in ["hf:org/old", "hf:org/other"] {
        block_on(engine.download_artifact(&reference.parse().unwrap(), Want::Adapter, None)).unwrap();
    }
    // All of the base but one small file comes.
    hub.fault(Fault::status(404).path("tokenizer_config.json"));
    block_on(engine.download_artifact(&spec.base, Want::Model, None)).unwrap_err();
    hub.clear_faults();

    // There is room for all three if only what is missing counts.
    let roomy = open(needed + 400_000);
    block_on(roomy.download(&spec, None)).unwrap();
    assert_eq!(kept(&roomy), ["hf:org/old", "hf:org/other", "hf:org/tiny"]);

    // There is room for two, and the adapter that was used last is not of the plan.
    block_on(engine.download_artifact(&"hf:org/other".parse().unwrap(), Want::Adapter, None)).unwrap();
    engine.store().delete(&spec.base).unwrap();
    hub.clear();
    let tight = open(needed);
    block_on(tight.download(&spec, None)).unwrap();
    assert_eq!(kept(&tight), ["hf:org/old", "hf:org/tiny"]);
    assert!(hub.requests_for("org/old/*").is_empty(), "{:?}", hub.requests());
}
