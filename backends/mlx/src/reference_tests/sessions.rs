//! Caches that are cut, copied, saved and restored, against the references of uninterrupted sequences.

use llm_local_core::SessionState;

use super::{architectures::bound, *};

const MODELS: [(&str, Option<&str>); 9] = [
    ("arch-llama3rope", None),
    ("arch-mistral", None),
    ("arch-qwen2", None),
    ("arch-qwen2", Some("arch-qwen2.max_window_layers1")),
    ("arch-qwen3", None),
    ("arch-gemma2", None),
    ("arch-gemma3", None),
    ("arch-phi3", None),
    ("arch-phi3", Some("arch-phi3.longrope")),
];

const JUNK: [u32; 60] = {
    let mut ids = [0; 60];
    let mut i = 0;
    while i < 60 {
        ids[i] = (i as u32 * 37 + 11) % 380;
        i += 1;
    }
    ids
};

struct Case {
    name: &'static str,
    model: Decoder,
    windowed: bool,
    prompt: Vec<u32>,
    /// Of every position.
    all: Vec<f32>,
}

fn cases() -> impl Iterator<Item = Case> {
    MODELS.into_iter().map(|(model, variant)| {
        let checkpoint = checkpoint(model, variant);
        let name = variant.unwrap_or(model);
        let row = Reference::open(name).rows.remove(1);
        Case {
            name,
            windowed: checkpoint.info.decoder.as_ref().unwrap().sliding_window.is_some(),
            model: load(&checkpoint, ComputeDtype::F32),
            prompt: row.prompt,
            all: row.all.unwrap(),
        }
    })
}

impl Case {
    /// Computes the prompt's tokens from `from` on, and compares every logit.
    #[track_caller]
    fn finish(&mut self, cache: &mut <Decoder as StepModel>::Cache, from: usize, chunk: usize) {
        let vocab = self.all.len() / self.prompt.len();
        let mut logits = Vec::new();
        let mut position = from;
        for tokens in self.prompt[from..].chunks(chunk) {
            logits.extend(self.model.all_logits(cache, tokens, position, None).unwrap());
            position += tokens.len();
        }
        let error = difference(&logits, &self.all[from * vocab..]);
        assert!(error <= bound(self.name), "{}: {error}", self.name);
    }

    fn junk(&mut self, cache: &mut <Decoder as StepModel>::Cache, position: usize, count: usize, chunk: usize) {
        prefill(&mut self.model, cache, &JUNK[..count], position, chunk, None);
    }
}

#[test]
fn a_truncated_sequence_goes_on_as_if_nothing_had_been_behind() {
    on_thread(|| {
        for mut case in cases() {
            let prompt = case.prompt.clone();
            for (kept, chunk, rest) in [(20, 20, 1), (20, 7, 7), (1, 1, 22), (37, 37, 3)] {
                let mut cache = case.model.new_cache(prompt.len()).unwrap();
                prefill(&mut case.model, &mut cache, &prompt[..kept], 0, chunk, None);
                case.junk(&mut cache, kept, 3, 3);
                if case.model.truncate(&mut cache, kept).unwrap() {
                    case.finish(&mut cache, kept, rest);
                } else {
                    assert!(case.windowed, "{}: a full cache can always be cut", case.name);
                    // Nothing has changed: the sequence with the junk goes on.
                    case.model.forward(&mut cache, &[1], kept + 3, None).unwrap();
                }
            }
        }
    });
}

#[test]
fn a_window_that_has_moved_on_cannot_be_brought_back() {
    on_thread(|| {
        for mut case in cases() {
            let mut cache = case.model.new_cache(case.prompt.len()).unwrap();
            prefill(&mut case.model, &mut cache, &case.prompt.clone()[..20], 0, 20, None);
            case.junk(&mut cache, 20, 60, 1);
            let could = case.model.truncate(&mut cache, 20).unwrap();
            assert_eq!(could, !case.windowed, "{}", case.name);
            // Back to the last few, it can: this is what a repeated request asks for.
            assert!(case.windowed || case.model.truncate(&mut cache, 19).unwrap());
            let end = if could { 19 } else { 80 };
            assert!(case.model.truncate(&mut cache, end).unwrap());
            assert!(!case.model.truncate(&mut cache, end + 1).unwrap(), "there are only {end}");
            // All of it, always.
            assert!(case.model.truncate(&mut cache, 0).unwrap());
            case.finish(&mut cache, 0, usize::MAX);
        }
    });
}

#[test]
fn a_copy_goes_on_by_itself() {
    on_thread(|| {
        for mut case in cases() {
            for kept in [12, 30] {
                let mut cache = case.model.new_cache(case.prompt.len()).unwrap();
                prefill(&mut case.model, &mut cache, &case.prompt.clone()[..kept], 0, 5, None);
                let mut copy = case.model.copy_cache(&cache).unwrap();
                case.junk(&mut cache, kept, 9, 1);
                case.finish(&mut copy, kept, 4);
                let mut again = case.model.copy_cache(&cache).unwrap();
                let next = case.model.forward(&mut cache, &[7], kept + 9, None).unwrap();
                assert!(difference(&case.model.forward(&mut again, &[7], kept + 9, None).unwrap(), &next) < 1e-4);
            }
        }
    });
}

#[test]
fn a_restored_sequence_goes_on() {
    on_thread(|| {
        for mut case in cases() {
            for (kept, chunk) in [(12, 5), (30, 5), (30, 30)] {
                let prompt = case.prompt.clone();
                let mut cache = case.model.new_cache(case.prompt.len()).unwrap();
                prefill(&mut case.model, &mut cache, &prompt[..kept], 0, chunk, None);
                let (metadata, tensors) = case.model.export_cache(&cache).unwrap();
                drop(cache);
                let state = SessionState::new(prompt[..kept].to_vec(), metadata, tensors);
                let mut restored = case.model.import_cache(&state).unwrap();
                case.finish(&mut restored, kept, 4);
            }
            let empty = case.model.new_cache(case.prompt.len()).unwrap();
            let (metadata, tensors) = case.model.export_cache(&empty).unwrap();
            let mut restored = case.model.import_cache(&SessionState::new(Vec::new(), metadata, tensors)).unwrap();
            case.finish(&mut restored, 0, 42);
        }
    });
}

#[test]
fn a_restored_window_has_the_rows_that_it_needs_and_no_more() {
    on_thread(|| {
        let checkpoint = checkpoint("arch-mistral", None);
        let mut model = load(&checkpoint, ComputeDtype::F32);
        let c = checkpoint.info.decoder.as_ref().unwrap();
        let window = c.sliding_window.as_ref().unwrap().size;
        let mut cache = model.new_cache(0).unwrap();
        let logits = prefill(&mut model, &mut cache, &JUNK, 0, usize::MAX, None);
        let bytes_of = |rows: usize| (c.layers * 2 * rows * c.kv_heads * c.head_dim * 4) as u64;
        // One chunk that is longer than a window, all of which is still there.
        assert!(JUNK.len() > 2 * window && model.cache_bytes(&cache, JUNK.len()) >= bytes_of(JUNK.len()));
        let (metadata, tensors) = model.export_cache(&cache).unwrap();
        assert_eq!(tensors[0].shape[1], 2 * window);
        let state = SessionState::new(JUNK.to_vec(), metadata, tensors);
        let mut restored = model.import_cache(&state).unwrap();
        assert_eq!(model.cache_bytes(&restored, JUNK.len()), bytes_of(2 * window));
        assert_eq!(model.export_cache(&restored).unwrap(), (state.metadata.clone(), state.tensors.clone()));
        // More rows than that, as a crafted state may have.
        let mut crafted = state.clone();
        for layer in 0..c.layers {
            crafted.metadata.insert(format!("layers.{layer}.first"), "0".into());
        }
        for tensor in &mut crafted.tensors {
            let head = tensor.data.len() / c.kv_heads;
            let row = head / tensor.shape[1];
            let before = vec![7; (JUNK.len() - tensor.shape[1]) * row];
            tensor.data = tensor.data.chunks(head).flat_map(|rows| [&before[..], rows].concat()).collect();
            tensor.shape[1] = JUNK.len();
        }
        let cut = model.import_cache(&crafted).unwrap();
        assert_eq!(model.cache_bytes(&cut, JUNK.len()), bytes_of(2 * window));
        assert_eq!(model.export_cache(&cut).unwrap(), (state.metadata, state.tensors));
        // What a repeated request asks for.
        let last = JUNK.len() - 1;
        assert!(model.truncate(&mut restored, last).unwrap());
        assert!(difference(&model.forward(&mut restored, &JUNK[last..], last, None).unwrap(), &logits) < 1e-4);
        assert!(model.truncate(&mut restored, JUNK.len() - window).unwrap());
        assert!(!model.truncate(&mut restored, JUNK.len() - 2 * window).unwrap());
    });
}

#[test]
fn a_state_that_is_not_this_models_is_refused_by_field() {
    on_thread(|| {
        let mut model = load(&checkpoint("arch-gemma2", None), ComputeDtype::F32);
        let mut cache = model.new_cache(0).unwrap();
        let tokens: Vec<u32> = (0..30).collect();
        prefill(&mut model, &mut cache, &tokens, 0, 1, None);
        let (metadata, tensors) = model.export_cache(&cache).unwrap();
        let state = SessionState::new(tokens, metadata, tensors);
        model.import_cache(&state).unwrap();
        let set = |key: &'static str, value: &'static str| {
            move |state: &mut SessionState| {
                state.metadata.insert(key.into(), value.into());
            }
        };
        type Change = Box<dyn Fn(&mut SessionState)>;
        let changes: Vec<(&str, Change)> = vec![
            ("format", Box::new(set("format", "mlx 0"))),
            ("format", Box::new(|s| drop(s.metadata.remove("format")))),
            ("tokens", Box::new(set("tokens", "29"))),
            ("tokens", Box::new(|s| s.tokens.push(1))),
            ("token 384", Box::new(|s| s.tokens[3] = 384)),
            ("long", Box::new(set("long", "true"))),
            ("long", Box::new(|s| drop(s.metadata.remove("long")))),
            ("layers.1.first", Box::new(set("layers.1.first", "1"))),
            ("layers.0.first", Box::new(set("layers.0.first", "29"))),
            ("layers.0.first", Box::new(set("layers.0.first", "-1"))),
            ("layers.2.first", Box::new(|s| drop(s.metadata.remove("layers.2.first")))),
            ("layers.0.keys", Box::new(set("layers.0.first", "2"))),
            ("layers.0.keys", Box::new(|s| s.tensors[0].data.truncate(4))),
            ("layers.0.keys", Box::new(|s| s.tensors[0].dtype = llm_local_core::FloatType::F16)),
            ("layers.0.keys", Box::new(|s| s.tensors[0].shape.swap(0, 1))),
            ("layers.0.keys", Box::new(|s| drop(s.tensors.remove(0)))),
            ("twice", Box::new(|s| s.tensors.push(s.tensors[0].clone()))),
            (
                "layers.9.keys",
                Box::new(|s| {
                    let mut extra = s.tensors[0].clone();
                    extra.name = "layers.9.keys".into();
                    s.tensors.push(extra);
                }),
            ),
        ];
        for (part, change) in changes {
            let mut changed = state.clone();
            change(&mut changed);
            let error = model.import_cache(&changed).unwrap_err();
            assert_eq!(error.code(), "invalid_spec", "{part}: {error}");
            assert!(error.to_string().contains(part), "lacks {part}: {error}");
        }
        let mut other = load(&checkpoint("arch-qwen3", None), ComputeDtype::F32);
        assert_eq!(other.import_cache(&state).unwrap_err().code(), "invalid_spec");
    });
}
