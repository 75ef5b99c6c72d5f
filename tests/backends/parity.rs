//! Every backend of this build, on every model of the fixtures that it runs, from a spec to logits and tokens: against
//! transformers, PEFT and mlx-lm, and where both run a spec, against each other.

use std::{collections::BTreeSet, fs};

use llm_local::{
    BackendPreference, ComputeDtype, Engine, Error, GenerateRequest, LogitsRequest, Message, ModelSpec, TurnOptions,
    core::Sampling,
};
use pollster::block_on;

use super::{
    common::{Case, engine, fixture, has_token, max_difference, tiny},
    rows::{self, Row},
};

/// The backends of this build.
const BACKENDS: &[&str] = if HAS_MLX { &["candle", "mlx"] } else { &["candle"] };
const ON_APPLE_SILICON: bool = cfg!(all(target_vendor = "apple", target_arch = "aarch64"));
const HAS_MLX: bool = cfg!(feature = "mlx-linux-cpu") || (cfg!(feature = "mlx") && ON_APPLE_SILICON);

/// The spec on a backend; candle on the CPU everywhere, which the bounds are for.
fn on(backend: &str, spec: &ModelSpec) -> ModelSpec {
    let device = if backend == "mlx" && ON_APPLE_SILICON { "metal" } else { "cpu" };
    spec.clone().with_backend(BackendPreference::Named(backend.into())).with_device(device)
}

/// What was compared of some rows.
#[derive(Default)]
struct Compared {
    /// Specs against a reference, for each backend, and the largest difference.
    specs: [(usize, f32); 2],
    /// Specs of one backend against the other, and the largest difference.
    pairs: (usize, f32),
    refused: usize,
    answers: usize,
    /// Greedy tokens equal to the reference's.
    tokens: usize,
    /// Answers that left the reference's where the two best logits are nearer than the backend's may be off.
    left: usize,
}

/// Compares all rows, and says how many there were and how far apart.
#[expect(clippy::print_stdout, reason = "the bounds of `rows` are set by what it prints")]
fn compare(what: &str, rows: &[Row]) -> Compared {
    let mut compared = Compared::default();
    for row in rows {
        let name = format!("{} ({:?}, {:?})", row.name, row.spec.adapter_policy, row.spec.dtype);
        let mut logits: Vec<Vec<Vec<f32>>> = Vec::new();
        for (i, backend) in BACKENDS.iter().enumerate() {
            let (spec, engine) = (on(backend, &row.spec), engine());
            let Some(bound) = [row.bounds.candle, row.bounds.mlx][i] else {
                let error = block_on(engine.load(&spec)).unwrap_err();
                assert!(matches!(error, Error::NoBackend { .. }), "{name} on {backend}: {error}");
                compared.refused += 1;
                continue;
            };
            let found: Vec<_> = row.expected.cases.iter().map(|case| logits_of(&engine, &spec, case)).collect();
            let (count, worst) = &mut compared.specs[i];
            *count += 1;
            for (case, found) in row.expected.cases.iter().zip(&found) {
                let difference = max_difference(found, &case.logits);
                assert!(difference <= bound, "{name} on {backend}: {:?}: {difference} > {bound}", case.prompt_ids);
                *worst = worst.max(difference);
                let (equal, left) = follow(&engine, &spec, &row.name, case, bound);
                compared.answers += 1;
                compared.tokens += equal;
                compared.left += usize::from(left);
            }
            logits.push(found);
        }
        if let [one, other] = &logits[..] {
            compared.pairs.0 += 1;
            for (one, other) in one.iter().zip(other) {
                let difference = max_difference(one, other);
                assert!(difference <= row.bounds.between, "{name}: {difference} between {BACKENDS:?}");
                compared.pairs.1 = compared.pairs.1.max(difference);
            }
        }
    }
    for (backend, (count, worst)) in BACKENDS.iter().zip(compared.specs) {
        println!("{what}: {backend}: {count} specs, at most {worst:.2e} from their references");
    }
    println!(
        "{what}: {} pairs of backends, at most {:.2e} apart; {} refused; {} greedy tokens equal, {} of {} answers left at a tie",
        compared.pairs.0, compared.pairs.1, compared.refused, compared.tokens, compared.left, compared.answers
    );
    assert!(compared.tokens > 0, "{what}");
    compared
}

/// From the text too, where the reference has it, so that the tokenizer is in it.
fn logits_of(engine: &Engine, spec: &ModelSpec, case: &Case) -> Vec<f32> {
    let logits = block_on(engine.logits(spec, LogitsRequest::new(case.prompt_ids.clone()))).unwrap();
    if let Some(prompt) = &case.prompt {
        let from_text = block_on(engine.logits(spec, LogitsRequest::new(prompt.as_str()))).unwrap();
        assert_eq!(from_text, logits, "{prompt:?} is tokenized otherwise");
    }
    logits
}

/// How many greedy tokens are the reference's, and whether another one came then. That may only be one that is better by no more
/// than both may be off.
fn follow(engine: &Engine, spec: &ModelSpec, name: &str, case: &Case, bound: f32) -> (usize, bool) {
    // The reference also takes ids that no token has; they are masked here, so what follows one is another text.
    let expected = case.greedy_ids.split(|id| !has_token(name, *id)).next().unwrap();
    if expected.is_empty() {
        return (0, false);
    }
    let request = GenerateRequest::new(case.prompt_ids.clone()).with_max_tokens(expected.len()).with_ignore_eos(true);
    let found = block_on(async { engine.generate(spec, request).await?.complete().await }).unwrap();
    assert_eq!(found.usage.prompt_tokens, case.prompt_ids.len());
    assert_eq!((found.usage.generated_tokens, found.tokens.len()), (expected.len(), expected.len()));
    let Some(at) = (0..expected.len()).find(|at| found.tokens[*at] != expected[*at]) else {
        return (expected.len(), false);
    };
    let before = [&case.prompt_ids, &expected[..at]].concat();
    let logits = block_on(engine.logits(spec, LogitsRequest::new(before))).unwrap();
    let better = logits[found.tokens[at] as usize] - logits[expected[at] as usize];
    assert!(
        better <= 2.0 * bound,
        "{name}: token {at} is {}, by {better} better than {}",
        found.tokens[at],
        expected[at]
    );
    (at, true)
}

#[test]
fn tiny_llama_in_f32() {
    assert_eq!(compare("f32", &rows::tiny_llama(ComputeDtype::F32, rows::TINY)).left, 0);
}

/// In 16 bits an answer may leave its reference, but not most of them.
#[test]
fn tiny_llama_in_16_bits() {
    for (what, dtype, bounds) in
        [("f16", ComputeDtype::F16, rows::TINY_F16), ("bf16", ComputeDtype::Bf16, rows::TINY_BF16)]
    {
        let compared = compare(what, &rows::tiny_llama(dtype, bounds));
        assert!(
            compared.left <= compared.answers / 4,
            "{what}: {} of {} answers left",
            compared.left,
            compared.answers
        );
    }
}

#[test]
fn what_mlx_lm_computes_of_tiny_llama() {
    compare("mlx-lm", &rows::mlx_lm());
}

#[test]
fn every_kind_of_adapter_merged_and_beside_the_weights() {
    assert_eq!(compare("adapters", &rows::adapters()).left, 0);
}

#[test]
fn every_architecture_with_and_without_its_adapter() {
    assert_eq!(compare("architectures", &rows::architectures()).left, 0);
}

#[test]
fn variants_of_a_config_change_what_is_computed() {
    assert_eq!(compare("variants", &rows::variants()).left, 0);
}

#[test]
fn what_mlx_quantized_runs_on_mlx_alone() {
    let rows = rows::quantized();
    if HAS_MLX {
        let compared = compare("quantized", &rows);
        assert_eq!((compared.refused, compared.left), (rows.len(), 0));
        return;
    }
    for row in &rows {
        let error = block_on(engine().load(&row.spec)).unwrap_err();
        assert!(error.to_string().contains("mlx-affine"), "{}: {error}", row.name);
    }
}

/// With every kind of adapter beside the integers, and merged into their values.
#[test]
fn what_mlx_quantized_takes_every_adapter() {
    if HAS_MLX {
        assert_eq!(compare("quantized with adapters", &rows::quantized_with_adapters()).left, 0);
    }
}

/// No model of the fixtures is forgotten, and nothing that mlx-lm computed.
#[test]
fn every_model_of_the_fixtures_is_compared() {
    let tiny = rows::tiny_llama(ComputeDtype::F32, rows::TINY);
    let rows: Vec<Row> =
        [tiny, rows::mlx_lm(), rows::quantized(), rows::architectures()].into_iter().flatten().collect();
    let bases = rows.iter().map(|row| row.spec.base.locator().rsplit('/').next().unwrap().to_owned());
    let compared: BTreeSet<_> = bases.chain(rows::OTHERS.map(|name| format!("arch-{name}"))).collect();
    let files = |folder| -> Vec<String> {
        fs::read_dir(fixture(folder)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(compared, files("models").into_iter().filter(|name| name != "variants").collect());

    let compared: BTreeSet<_> =
        rows.iter().map(|row| row.name.as_str()).filter(|name| name.starts_with("mlx__")).collect();
    let references = files("reference");
    let references = references.iter().filter(|name| name.starts_with("mlx__"));
    assert_eq!(compared, references.filter_map(|name| name.strip_suffix(".json")).collect());
}

/// What only candle-transformers computes.
#[test]
fn what_mlx_does_not_run_it_refuses_by_name() {
    if !HAS_MLX {
        return;
    }
    for name in rows::OTHERS {
        let error = block_on(engine().load(&on("mlx", &rows::architecture(name)))).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

/// A session that goes on gives what the whole chat gives without one, and computes less of it.
#[test]
fn a_session_goes_on_as_the_whole_chat_would() {
    let mut answers: Vec<Vec<String>> = Vec::new();
    for backend in BACKENDS {
        let engine = engine();
        let mut all = Vec::new();
        // What a sliding window has left behind cannot be gone back to, so that of Gemma may compute all of a chat again.
        for (spec, goes_on) in [(tiny(None), true), (tiny(Some("peft")), true), (rows::architecture("gemma3"), false)] {
            let spec = on(backend, &spec.with_dtype(ComputeDtype::F32));
            let mut session = engine.session(&spec);
            for text in ["Tell me of the cat.", "And the dog?", "Who was it?"] {
                let before: Vec<Message> = session.messages().to_vec();
                let options = TurnOptions::new().with_max_tokens(8).with_sampling(Sampling::greedy());
                let turn = block_on(session.complete(text, options)).unwrap();
                let messages = [&before[..], &[Message::user(text)]].concat();
                let request = GenerateRequest::new(messages).with_max_tokens(8);
                let whole = block_on(async { engine.generate(&spec, request).await?.complete().await }).unwrap();
                assert_eq!(turn.tokens, whole.tokens, "{backend}: {text}");
                assert_eq!(whole.usage.cached_tokens, 0);
                if goes_on {
                    assert_eq!(turn.usage.cached_tokens > 0, !before.is_empty(), "{backend}: {text}");
                }
                all.push(turn.text);
            }
        }
        answers.push(all);
    }
    assert!(answers.iter().all(|other| *other == answers[0]), "{answers:#?}");
}
