//! The suites for loaded models, over the worker.

use llm_local_core::Capabilities;
use llm_local_testkit::conformance;
use pollster::block_on;

use super::fake::Setup;

const PROMPT: &str = "Once upon a time there was a";

#[test]
fn the_worker_keeps_the_contract_with_sessions_and_without() {
    for (setup, keeps_sessions) in [(Setup::default(), false), (Setup::with_sessions(), true)] {
        let model = Setup { context_length: 128, ..setup }.load();
        let capabilities = Capabilities::new().with_sessions(keeps_sessions);
        block_on(conformance::sessions(model.as_ref(), &capabilities, PROMPT));
        block_on(conformance::loaded_model(model.as_ref(), PROMPT));
    }
}

#[test]
fn the_contract_is_kept_where_no_cache_can_be_cut() {
    let setup = Setup { truncate: Box::new(|_, _| Ok(false)), ..Setup::with_sessions() };
    let capabilities = Capabilities::new().with_sessions(true);
    block_on(conformance::sessions(setup.load().as_ref(), &capabilities, PROMPT));
}
