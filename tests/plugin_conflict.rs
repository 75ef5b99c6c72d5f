//! A linked crate that submits a descriptor with a built-in's name: every registry of the program refuses it. In a
//! test binary of its own, because the list of plugins is one per program.

#![cfg(feature = "candle")]

use llm_local::Engine;
use third_party_plugin::CLAIMS_CANDLE;

llm_local::core::submit!(CLAIMS_CANDLE);

#[test]
fn an_engine_does_not_start_with_two_plugins_of_one_name() {
    let error = Engine::new().unwrap_err();
    assert_eq!(error.code(), "plugin_conflict");
    let said = error.to_string();
    for part in ["backend `candle`", "llm-local-candle", "third-party-plugin 0.3.1"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
