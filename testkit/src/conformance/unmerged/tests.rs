mod linear;

use llm_local_core::LoraModule;

use super::*;
use crate::conformance::failure;
use linear::{Backend, VOCAB, WIDTH, Wrong, weights};

const RANK: usize = 2;
const SCALE: f64 = 0.5;

fn a(i: usize) -> f32 {
    (i as f32 * 0.9 + 0.3).cos()
}

fn b(i: usize) -> f32 {
    (i as f32 * 2.3 + 0.1).cos()
}

fn adapter() -> Arc<LoraAdapter> {
    let (of_a, of_b) = ((0..RANK * WIDTH).map(a).collect::<Vec<_>>(), (0..VOCAB * RANK).map(b).collect::<Vec<_>>());
    let module = LoraModule::new("m", (RANK, WIDTH, VOCAB), of_a, of_b, SCALE);
    Arc::new(LoraAdapter::new("file:/linear", "linear", vec![module]))
}

fn merged() -> ModelWeights {
    weights(|i| {
        let (row, column) = (i / WIDTH, i % WIDTH);
        (0..RANK).map(|k| SCALE as f32 * b(row * RANK + k) * a(k * WIDTH + column)).sum()
    })
}

fn base() -> ModelWeights {
    weights(|_| 0.0)
}

fn run(wrong: Wrong, case: &UnmergedCase<'_>) {
    pollster::block_on(unmerged(&Backend(wrong), &LoadOptions::new(64), case));
}

#[test]
fn a_good_backend_passes_whether_it_runs_adapters_or_says_that_it_does_not() {
    for wrong in [Wrong::Nothing, Wrong::RunsNone] {
        run(wrong, &UnmergedCase::new(&base, &merged, adapter(), "a prompt").with_tolerance(1e-5));
    }
}

#[test]
fn a_merged_model_that_is_another_is_found() {
    let said = failure(|| run(Wrong::Nothing, &UnmergedCase::new(&base, &base, adapter(), "a prompt")));
    assert!(said.contains("beside the weights, 1 tokens are not as merged into them"), "{said}");
}

#[test]
fn an_adapter_that_the_suite_can_tell_nothing_by_is_refused() {
    let mut small = LoraAdapter::clone(&adapter());
    small.modules[0].scale = 1e-6;
    let said = failure(|| run(Wrong::Nothing, &UnmergedCase::new(&base, &merged, Arc::new(small), "a prompt")));
    assert!(said.contains("moves no logit by more than"), "{said}");
    // Within what rounding may cost, merged weights would be as near to the base.
    let effect = 2.0;
    for (rounding, is_refused) in [(effect, true), (1e-4, false)] {
        let case = UnmergedCase::new(&base, &merged, adapter(), "a prompt").with_rounding(rounding);
        if is_refused {
            let said = failure(|| run(Wrong::Nothing, &case));
            assert!(said.contains("at least 2 times the rounding 2 is needed"), "{said}");
        } else {
            run(Wrong::Nothing, &case);
        }
    }
    let mut dora = LoraAdapter::clone(&adapter());
    dora.modules[0].magnitude = Some(vec![1.0; VOCAB]);
    let said = failure(|| run(Wrong::Nothing, &UnmergedCase::new(&base, &merged, Arc::new(dora), "a prompt")));
    assert!(said.contains("an adapter of plain pairs"), "{said}");
}

#[test]
fn each_thing_that_is_wrong_is_found() {
    for (wrong, message) in [
        (Wrong::RunsNoneButSaysNothing, "but a load with adapters works"),
        (Wrong::RunsNoneByAnotherError, "a load with adapters, where no adapters run beside the weights: "),
        (Wrong::RunsNoneButInRequests, "but a generation with adapters works"),
        (Wrong::LoadIgnores, "the adapter of the load moves no logit"),
        (Wrong::RequestIgnored, "the adapter of a request is not that of a load"),
        (Wrong::RequestKept, "kept for a later request"),
        (Wrong::SwapIgnored, "the adapter of set_adapters is not that of a load"),
        (Wrong::EmptyIsOwn, "the empty set of a request is not the base"),
        (Wrong::WeightIgnored, "the weight 2 is not twice the delta, in a request"),
        (Wrong::LastAlone, "half and half of an adapter are not the whole"),
        (Wrong::BaseWhereZero, "the weight 0 is not the base"),
        (Wrong::GeneratesAsBase, "a generation with the adapter of the load: token"),
        (Wrong::SwapsRunning, "a generation that ran when set_adapters replaced the model's own: token"),
        (Wrong::SwapsWaiting, "a generation asked for before set_adapters: token"),
        (Wrong::CacheOfAll, "a turn with an adapter after one of the base found"),
        (Wrong::CacheByName, "a turn with another adapter by the same name found"),
        (Wrong::CacheByDigests, "a turn with another weight found"),
        (Wrong::CacheOfOwn, "a turn after set_adapters found"),
        (Wrong::EndForgetsOne, "bytes of KV caches after the session was ended"),
        (Wrong::LeavesOut, "a load with an adapter for a module that the base does not have must be an error"),
        (Wrong::AnyShape, "a load with an adapter for fewer inputs must be an error"),
        (Wrong::NotFinite, "a load with an adapter that is not finite must be an error"),
        (Wrong::OtherError, "gave another error"),
        (Wrong::Unnamed, "does not name `conformance:module`"),
        (Wrong::HalfSwapped, "the model's own adapters, after an adapter for a module"),
        (Wrong::KeepsWeights, "that an unloaded model still holds"),
        (Wrong::SwapsUnloaded, "set_adapters after unload must be an error"),
    ] {
        let case = UnmergedCase::new(&base, &merged, adapter(), "a prompt");
        let said = failure(|| run(wrong, &case));
        assert!(said.contains(message), "{wrong:?}: {message}: {said}");
    }
}
