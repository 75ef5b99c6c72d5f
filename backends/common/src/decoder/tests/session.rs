//! KV caches as data.

use llm_local_core::{FloatType, SessionState};

use super::*;

/// A layer that sees all, and one that sees 2 keys.
const WINDOWS: [Option<usize>; 2] = [None, Some(2)];

const FORM: SessionForm<'_> = SessionForm {
    format: "test 1",
    windows: &WINDOWS,
    kv_heads: 2,
    head_dim: 3,
    dtype: FloatType::F16,
    context_length: 16,
    vocab_size: 10,
    changes: false,
};

/// Seven tokens, of which the layer with a window has the last five.
fn state() -> SessionState {
    let rows = |first: usize| {
        let bytes = vec![1u8; 2 * (7 - first) * 3 * 2];
        Ok(SavedRows { first, rows: 7 - first, data: Some([bytes.clone(), bytes]) })
    };
    let (metadata, tensors) = FORM.write(7, false, [rows(0), rows(2)]).unwrap();
    SessionState::new(vec![1; 7], metadata, tensors)
}

#[track_caller]
fn refused(change: impl FnOnce(&mut SessionState), form: &SessionForm<'_>, part: &str) {
    let mut changed = state();
    change(&mut changed);
    let error = form.check(&changed).unwrap_err();
    assert!(error.code() == "invalid_spec" && error.to_string().contains(part), "lacks {part:?}: {error}");
}

#[test]
fn what_was_written_is_taken_back() {
    let state = state();
    let names: Vec<_> = state.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["layers.0.keys", "layers.0.values", "layers.1.keys", "layers.1.values"]);
    let saved = FORM.check(&state).unwrap();
    assert_eq!((saved.tokens, saved.long), (7, false));
    // Two windows are worth restoring.
    assert_eq!(saved.layers.iter().map(|l| (l.first, l.from)).collect::<Vec<_>>(), [(0, 0), (2, 3)]);
    assert_eq!(saved.layers[1].tensors.unwrap()[1].shape, [2, 5, 3]);
}

#[test]
fn what_another_model_would_have_written_is_refused() {
    let set = |key: &'static str, value: &'static str| {
        move |state: &mut SessionState| drop(state.metadata.insert(key.into(), value.into()))
    };
    refused(set("format", "test 2"), &FORM, "format: it is \"test 2\"; expected \"test 1\"");
    refused(set("tokens", "6"), &FORM, "tokens: it is \"6\"; expected \"7\"");
    refused(set("long", "true"), &FORM, "long: it is \"true\"");
    refused(set("layers.1.first", "7"), &FORM, "with 7 tokens it is at most 6 here");
    refused(set("layers.1.first", "3"), &FORM, "layers.1.keys: it is");
    refused(|state| state.tokens[3] = 10, &FORM, "token 10 is not in the vocabulary of 10");
    refused(|state| drop(state.tensors.pop()), &FORM, "layers.1.values: it is missing");
    refused(|state| state.tensors.push(state.tensors[0].clone()), &FORM, "a name stands there twice");
    refused(|state| state.tensors[1].name = "x".into(), &FORM, "layers.0.values: it is missing");
    refused(|state| state.tensors[0].data.truncate(83), &FORM, "in 83 bytes; expected f16 [2, 7, 3] in 84");
    refused(|state| state.tensors[2].dtype = FloatType::Bf16, &FORM, "expected f16");
    refused(|_| (), &SessionForm { context_length: 6, ..FORM }, "7 are more than the context of 6 tokens");
    refused(|_| (), &SessionForm { windows: &WINDOWS[..1], ..FORM }, "layers.1.keys: this model has no such tensor");
    let mut long = state();
    long.metadata.insert("long".into(), "true".into());
    assert!(SessionForm { changes: true, ..FORM }.check(&long).unwrap().long);
}
