//! Models that candle-transformers computes, through the whole engine, against transformers in f32. What the decoder
//! computes is tested beside it.

#![cfg(all(feature = "candle", feature = "local"))]

use crate::common::{engine, fixture_ref, max_difference, reference};
use llm_local::{ComputeDtype, ContextLength, Engine, GenerateRequest, LogitsRequest, ModelSpec, TurnOptions};
use pollster::block_on;

const MODELS: [&str; 5] = ["phi", "starcoder2", "stablelm", "mixtral", "olmo"];

fn spec(model: &str) -> ModelSpec {
    ModelSpec::new(fixture_ref(&format!("models/arch-{model}")))
}

fn logits(engine: &Engine, spec: &ModelSpec, ids: &[u32]) -> Vec<f32> {
    block_on(engine.logits(spec, LogitsRequest::new(ids.to_vec()))).unwrap()
}

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    let engine = engine();
    for model in MODELS {
        for case in &reference(&format!("arch-{model}")).cases {
            let difference = max_difference(&logits(&engine, &spec(model), &case.prompt_ids), &case.logits);
            assert!(difference <= 1e-4, "{model}: {difference}");
            let request = GenerateRequest::new(case.prompt.as_deref().unwrap())
                .with_max_tokens(case.greedy_ids.len())
                .with_ignore_eos(true);
            let completion =
                block_on(async { engine.generate(&spec(model), request).await?.complete().await }).unwrap();
            assert_eq!(completion.tokens, case.greedy_ids, "{model}: {:?}", case.prompt);
        }
    }
}

#[test]
fn adapters_are_merged_into_them() {
    let engine = engine();
    let spec = spec("phi").with_adapter(fixture_ref("adapters/arch-phi-lora"));
    assert_eq!(block_on(engine.plan(&spec)).unwrap().model.unwrap().merged_tensors, 3 * 6);
    for case in &reference("arch-phi__arch-phi-lora").cases {
        let difference = max_difference(&logits(&engine, &spec, &case.prompt_ids), &case.logits);
        assert!(difference <= 1e-4, "{difference}");
    }
}

#[test]
fn plans_say_how_much_context_and_memory_they_take() {
    let engine = engine();
    let plan = |spec: &ModelSpec| block_on(engine.plan(spec)).unwrap();
    for (name, context) in [("phi", 256), ("starcoder2", 128)] {
        let plan = plan(&spec(name));
        let model = plan.model.as_ref().unwrap();
        assert_eq!((plan.backend.as_str(), model.context_length), ("candle", context), "{name}");
        assert!(!model.capabilities.sessions && model.estimate.weights > 0);
    }
    let short = spec("phi").with_context_length(ContextLength::Tokens(40));
    let model = plan(&short).model.unwrap();
    assert_eq!(model.context_length, 40);
    assert!(model.estimate.total() < plan(&spec("phi")).model.unwrap().estimate.total());
    assert_eq!(block_on(engine.load(&short)).unwrap().info().context_length, 40);
}

#[test]
fn a_chat_with_a_model_that_keeps_no_session_computes_all_of_it_each_time() {
    let engine = engine();
    let mut session = engine.session(&spec("phi"));
    let options = || TurnOptions::new().with_max_tokens(4);
    block_on(async {
        session.complete("The cat", options()).await.unwrap();
        let second = session.complete("was", options()).await.unwrap();
        assert_eq!(second.usage.cached_tokens, 0);
        let model = engine.load(&spec("phi")).await.unwrap();
        assert!(!model.keeps_sessions());
    });
}

#[test]
fn what_they_cannot_be_is_said_by_name() {
    let engine = engine();
    let error = block_on(engine.load(&spec("phi").with_dtype(ComputeDtype::F16))).unwrap_err().to_string();
    assert!(error.contains("dtype is f16") && error.contains("phi"), "{error}");
}
