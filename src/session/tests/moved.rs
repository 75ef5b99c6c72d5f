//! A chat whose spec means another model by now.

use llm_local_core::{AdapterPolicy, ArtifactRef, LogitsRequest, ModelSpec};
use pollster::block_on;

use crate::{Engine, TurnOptions};

fn fixture(path: &str) -> ArtifactRef {
    ArtifactRef::file(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/").to_owned() + path).unwrap()
}

#[test]
fn what_it_has_computed_on_the_model_before_is_freed_there() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::builder().cache_dir(folder.path()).build().unwrap();
    let adapter = fixture("adapters/tiny-llama-lora-peft");
    let spec = ModelSpec::new(fixture("models/tiny-llama"))
        .with_adapter(adapter.clone())
        .with_adapter_policy(AdapterPolicy::KeepUnmerged);
    let options = || TurnOptions::new().with_max_tokens(4);
    let mut session = engine.session(&spec);
    block_on(async {
        session.complete("Hello", options()).await.unwrap();
        // The application has it too.
        let before = engine.load(&spec).await.unwrap();
        assert!(before.memory().kv_cache > 0);
        engine.inner.detach(&adapter, None);
        session.complete("Hello", options()).await.unwrap();
        let now = engine.load(&spec).await.unwrap();
        assert!(!now.is_same(&before) && now.memory().kv_cache > 0);
        // In line behind the end of the session, for which nobody waits.
        before.logits(LogitsRequest::new(vec![1])).await.unwrap();
        assert_eq!(before.memory().kv_cache, 0);
    });
}
