//! How long contexts are by the memory of the device, and that generations end there.

use llm_local::{
    ContextLength, Error, FinishReason, GenerateRequest, ModelSpec, Plan,
    memory::{Budget, ContextTier, ContextTiers, MemoryLimit, SystemMemory},
};
use pollster::block_on;

use crate::world::{GB, MB, Setup, Size, World, spec};

/// A prompt and what is left of the context behind it.
const LEFT: usize = 5;

fn tenths(tenths: u64) -> u64 {
    tenths * GB / 10
}

fn world(total: u64) -> World {
    Setup::new(total, &[("m", Size::of(MB).with_token(1000))]).build()
}

fn planned(plan: &Plan) -> (usize, &str) {
    let model = plan.model.as_ref().unwrap();
    (model.context_length, &model.context_reason)
}

/// Loads `spec`, which gets a context of `tokens` for a reason in which `reason` stands, and generates to its end.
fn ends_at(world: &World, spec: &ModelSpec, tokens: usize, reason: &str) {
    block_on(async {
        let plan = world.engine.plan(spec).await.unwrap();
        let (planned, why) = planned(&plan);
        assert!(planned == tokens && why.contains(reason), "{planned}: {why}");
        let model = world.engine.load(spec).await.unwrap();
        assert_eq!(model.info().context_length, tokens);
        assert_eq!(model.plan().model, plan.model);
        let request = GenerateRequest::new(vec![u32::from(b'x'); tokens - LEFT]).with_ignore_eos(true);
        let completion = model.generate(request).complete().await.unwrap();
        assert_eq!(completion.finish_reason, Some(FinishReason::Length));
        assert_eq!((completion.usage.prompt_tokens, completion.usage.generated_tokens), (tokens - LEFT, LEFT));
        let longer = GenerateRequest::new(vec![u32::from(b'x'); tokens + 1]);
        let error = model.generate(longer).complete().await.unwrap_err();
        assert!(
            matches!(error, Error::ContextLengthExceeded { context_length, .. } if context_length == tokens),
            "{error}"
        );
    });
}

#[test]
fn the_memory_of_the_device_says_how_long_a_context_is_and_a_generation_ends_there() {
    for (gb, tokens, reason) in [
        (40, 2048, "2048 is the most for a device with 4 GB of memory"),
        (80, 2048, "2048 is the most for a device with 8 GB of memory"),
        // Systems report less than is fitted.
        (119, 4096, "4096 is the most for a device with 12 GB of memory"),
        (120, 4096, "4096 is the most for a device with 12 GB of memory"),
        (240, 4096, "4096 is the most for a device with 24 GB of memory"),
    ] {
        ends_at(&world(tenths(gb)), &spec("m"), tokens, reason);
    }
}

#[test]
fn a_control_group_lowers_it_and_a_limit_above_the_machine_does_not() {
    let world = world(24 * GB);
    let limited = |bytes| SystemMemory::new(24 * GB, 20 * GB).with_limit(MemoryLimit::new(bytes, 3 * GB, "a group"));
    for (limit, tokens, gb) in [(tenths(40), 2048, "4 GB"), (tenths(118), 4096, "12 GB"), (64 * GB, 4096, "24 GB")] {
        world.probe.set(limited(limit));
        ends_at(&world, &spec("m"), tokens, gb);
        block_on(world.engine.unload(&spec("m"))).unwrap();
    }
}

#[test]
fn a_spec_that_asks_for_less_gets_that_and_one_that_asks_for_more_what_the_table_has() {
    let asking = |tokens| spec("m").with_context_length(ContextLength::Tokens(tokens));
    ends_at(&world(24 * GB), &asking(300), 300, "the spec asks for 300");
    let more = "the spec asks for 8000, but 2048 is the most for a device with 4 GB of memory; `EngineBuilder::memory`";
    ends_at(&world(4 * GB), &asking(8000), 2048, more);
}

#[test]
fn the_table_can_be_replaced() {
    let tiers = ContextTiers::new([ContextTier::new(0, 100), ContextTier::new(5 * GB, 700)]).unwrap();
    for (total, tokens) in [(4 * GB, 100), (tenths(41), 700), (240 * GB, 700)] {
        let setup = Setup::new(total, &[("m", Size::of(MB))]);
        let world = setup.policy(|policy| policy.with_context_tiers(tiers.clone())).build();
        ends_at(&world, &spec("m"), tokens, "is the most for a device");
        assert_eq!(world.status().devices[0].context_length as usize, tokens);
    }
}

#[test]
fn what_is_not_asked_for_is_shortened_to_what_fits() {
    // 100 MB for weights, and 10 MB for the cache of 1000 tokens, or for 960 in whole steps.
    let setup = Setup::new(4 * GB, &[("m", Size::of(100 * MB).with_token(10_000))]);
    let world = setup.policy(|policy| policy.with_budget(Budget::Bytes(110 * MB))).build();
    ends_at(&world, &spec("m"), 960, "what fits into 110");
}

#[test]
fn a_spec_that_asks_for_more_than_fits_is_told_what_would_and_that_loads() {
    let setup = Setup::new(4 * GB, &[("m", Size::of(100 * MB).with_token(10_000))]);
    let world = setup.policy(|policy| policy.with_budget(Budget::Bytes(110 * MB))).build();
    let asking = |tokens: usize| spec("m").with_context_length(ContextLength::Tokens(u32::try_from(tokens).unwrap()));
    let error = block_on(world.engine.load(&asking(2000))).unwrap_err();
    let Error::InsufficientMemory { required, available, largest_context: Some(largest), .. } = error else {
        panic!("{error}")
    };
    assert_eq!((required, available, largest), (120 * MB, 110 * MB, 960));
    let plan = block_on(world.engine.plan(&asking(2000))).unwrap_err();
    assert_eq!(plan.to_string(), error.to_string());
    assert_eq!(world.backend.calls().loads, 0);
    ends_at(&world, &asking(largest), largest, "the spec asks for 960");
}

#[test]
fn where_not_even_the_shortest_fits_nothing_is_loaded() {
    let sizes = [("short", Size::of(109 * MB).with_token(10_000)), ("none", Size::of(110 * MB).with_token(10_000))];
    let world = Setup::new(4 * GB, &sizes).policy(|policy| policy.with_budget(Budget::Bytes(110 * MB))).build();
    let error = |name: &str| block_on(world.engine.load(&spec(name))).unwrap_err();
    // 100 tokens would fit: as many as a whole step has are told.
    assert!(
        matches!(error("short"), Error::InsufficientMemory { largest_context: Some(64), .. }),
        "{}",
        error("short")
    );
    assert!(matches!(error("none"), Error::InsufficientMemory { largest_context: None, .. }), "{}", error("none"));
    let asking = spec("short").with_context_length(ContextLength::Tokens(64));
    ends_at(&world, &asking, 64, "the spec asks for 64");
}

#[cfg(all(feature = "candle", feature = "local"))]
mod real {
    use super::*;
    use crate::common::fixture;
    use llm_local::{ArtifactRef, Engine, memory::ScriptedProbe};

    /// An engine on a machine with 4 GB.
    fn engine() -> Engine {
        let probe = ScriptedProbe::new(SystemMemory::new(4 * GB, 3 * GB));
        let cache = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("memory");
        Engine::builder().cache_dir(cache).memory_probe(probe).build().unwrap()
    }

    #[test]
    fn a_model_that_was_made_for_less_gets_that() {
        let spec = ModelSpec::new(ArtifactRef::file(fixture("models/tiny-llama")).unwrap());
        let plan = block_on(engine().plan(&spec)).unwrap();
        assert_eq!(planned(&plan), (512, "the model was made for 512"));
    }

    #[test]
    fn the_candle_backend_ends_a_generation_at_2048_tokens() {
        let folder = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(fixture("models/tiny-llama")).unwrap() {
            let file = file.unwrap();
            std::fs::write(folder.path().join(file.file_name()), std::fs::read(file.path()).unwrap()).unwrap();
        }
        let config = folder.path().join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        let raised = text.replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 8192");
        assert_ne!(raised, text);
        std::fs::write(config, raised).unwrap();
        let spec = ModelSpec::new(ArtifactRef::file(folder.path()).unwrap());
        block_on(async {
            let model = engine().load(&spec).await.unwrap();
            assert_eq!(model.info().context_length, 2048);
            let prompt: Vec<u32> = (0..2048 - LEFT).map(|i| 5 + u32::try_from(i % 800).unwrap()).collect();
            let completion =
                model.generate(GenerateRequest::new(prompt).with_ignore_eos(true)).complete().await.unwrap();
            assert_eq!(completion.finish_reason, Some(FinishReason::Length));
            let usage = completion.usage;
            assert_eq!((usage.prompt_tokens, usage.generated_tokens), (2048 - LEFT, LEFT));
        });
    }
}
