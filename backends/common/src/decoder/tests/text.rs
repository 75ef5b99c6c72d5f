//! The text side beside the weights: blocking and as a future.

use std::{collections::BTreeMap, sync::atomic::AtomicUsize, sync::atomic::Ordering};

use llm_local_core::{CancellationToken, Error, LoadOptions, TextFiles};

use super::*;

fn text(tokenizer: &str) -> TextFiles {
    TextFiles::from_files(BTreeMap::from([("tokenizer.json".into(), fixture("models/tiny-llama").join(tokenizer))]))
}

/// Waits until it is cancelled, as a load that looks at its token between tensors.
async fn until_cancelled(o: &LoadOptions) -> llm_local_core::Result<()> {
    o.cancel.cancelled().await;
    Err(Error::Cancelled)
}

#[test]
fn text_and_weights_come_together() {
    let ends = AtomicUsize::new(0);
    let end = || {
        ends.fetch_add(1, Ordering::Relaxed);
    };
    let o = LoadOptions::new(1);
    let text = text("tokenizer.json");
    let (opened, loaded) = open_text_beside("m", &text, &o, end, |_| Ok(7)).unwrap();
    assert_eq!((loaded, ends.into_inner()), (7, 1));
    let (same, loaded) = pollster::block_on(open_text_while("m", &text, &o, async |_| Ok(7))).unwrap();
    assert_eq!((loaded, same.token_count()), (7, opened.token_count()));
}

#[test]
fn a_text_side_that_fails_ends_the_load_and_is_the_error() {
    let (o, missing) = (LoadOptions::new(1), text("no-tokenizer.json"));
    let blocking = open_text_beside("m", &missing, &o, || (), |o| pollster::block_on(until_cancelled(o)));
    let waiting = pollster::block_on(open_text_while("m", &missing, &o, until_cancelled));
    for error in [blocking.unwrap_err(), waiting.unwrap_err()] {
        assert!(error.to_string().contains("no-tokenizer.json"), "{error}");
    }
    assert!(!o.cancel.is_cancelled(), "the caller's own token is for more than this load");
}

#[test]
fn a_load_that_fails_is_the_error_of_both() {
    let o = LoadOptions::new(1);
    let failed = || Err::<(), _>(Error::load("m", "it broke"));
    let blocking = open_text_beside("m", &text("tokenizer.json"), &o, || (), |_| failed()).unwrap_err();
    let waiting = pollster::block_on(open_text_while("m", &text("tokenizer.json"), &o, async |_| failed()));
    assert_eq!(blocking.to_string(), waiting.unwrap_err().to_string());
}

#[test]
fn an_opening_stops_what_goes_on_beside_it_only_if_it_fails() {
    for (tokenizer, fails) in [("tokenizer.json", false), ("no-tokenizer.json", true)] {
        let stop = CancellationToken::new();
        let opened = pollster::block_on(open_text("m", &text(tokenizer), stop.clone()));
        assert_eq!((opened.is_err(), stop.is_cancelled()), (fails, fails));
    }
}

#[test]
fn an_error_names_the_model() {
    let named = of_model("m", Error::load("model.norm.weight", "it is short")).to_string();
    assert_eq!(named, "loading `m` failed: model.norm.weight: it is short");
    assert_eq!(of_model("m", Error::load("m", "it is short")).to_string(), "loading `m` failed: it is short");
    let full = of_model("m", Error::out_of_memory("metal", "no")).to_string();
    assert!(full.contains("loading m: no"), "{full}");
}
