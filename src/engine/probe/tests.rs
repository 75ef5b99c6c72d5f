use std::sync::Mutex;

use llm_local_core::{LoadOptions, ProgressEvent, ProgressHandler};
use llm_local_testkit::mocks::MockLoadedModel;

use super::*;

fn probe(prompts: usize) -> Probe {
    held_to(prompts, 0.25, true)
}

fn held_to(prompts: usize, max_error: f32, can_be_beside: bool) -> Probe {
    let requantizing = Requantizing { max_error, can_be_beside };
    Probe::new(&vec!["x".to_owned(); prompts], "hf:some/adapter".into(), requantizing)
}

fn answers(values: &[&[f32]]) -> Answers {
    Answers(values.iter().map(|values| values.to_vec()).collect())
}

#[test]
fn what_is_lost_is_the_distance_from_the_unmerged_over_that_from_the_base() {
    let unmerged = answers(&[&[1.0, 2.0, 3.0], &[0.0, -1.0, 5.0]]);
    let base = answers(&[&[1.0, 0.0, 3.0], &[4.0, -1.0, 1.0]]);
    // Squares of 2, 4 and 4.
    let effect = probe(2).effect(unmerged.clone(), &base).unwrap();
    assert_eq!(effect.squares, 36.0);
    assert_eq!(effect.lost_in(&unmerged), 0.0);
    assert_eq!(effect.lost_in(&base), 1.0);
    // Squares of 1, 2 and 2.
    let requantized = answers(&[&[2.0, 2.0, 3.0], &[2.0, 1.0, 5.0]]);
    assert_eq!(effect.lost_in(&requantized), 0.5);
}

#[test]
fn distances_are_of_all_prompts_together_and_do_not_round_as_f32_does() {
    let near = f32::from_bits(1.0f32.to_bits() + 1);
    let effect = probe(1).effect(answers(&[&[1e8, near]]), &answers(&[&[1e8, 1.0]])).unwrap();
    assert_eq!(effect.lost_in(&answers(&[&[1e8, 1.0]])), 1.0);
    // One prompt on which everything is lost among others on which nothing is.
    let unmerged = answers(&[&[1.0], &[2.0], &[2.0]]);
    let effect = probe(3).effect(unmerged, &answers(&[&[0.0], &[0.0], &[0.0]])).unwrap();
    assert!((effect.lost_in(&answers(&[&[0.0], &[2.0], &[2.0]])) - 1.0 / 3.0).abs() < 1e-15);
}

#[test]
fn new_rows_of_a_vocabulary_count_where_both_have_them() {
    let unmerged = answers(&[&[3.0, 1.0, 7.0]]);
    let effect = probe(1).effect(unmerged, &answers(&[&[1.0, 1.0]])).unwrap();
    assert_eq!(effect.squares, 4.0);
    assert_eq!(effect.lost_in(&answers(&[&[3.0, 1.0, 8.0]])), 0.5);
}

#[test]
fn no_effect_on_the_prompts_is_no_measurement() {
    for (other, found) in [(1.0, "bit for bit"), (f32::NAN, "not all finite")] {
        let error = probe(2).effect(answers(&[&[1.0], &[1.0]]), &answers(&[&[1.0], &[other]])).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed");
        for word in ["hf:some/adapter", found, "2 probe prompts", "`probe_prompts`", "`keep-unmerged`"] {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
    }
}

#[test]
fn what_is_at_the_limit_is_allowed_and_what_is_above_it_or_no_number_is_not() {
    probe(1).check(0.25).unwrap();
    probe(1).check(0.0).unwrap();
    for (lost, found) in [
        (0.25f64.next_up(), "loses 0.25000000000000006 of its effect"),
        (7.5, "loses 7.500000 of its effect"),
        (f64::NAN, "loses NaN of its effect"),
        (f64::INFINITY, "loses inf of its effect"),
    ] {
        let error = probe(1).check(lost).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed");
        for word in ["hf:some/adapter", found, "at most 0.25 ", "keep-unmerged", "merge-dequantized", "`max_error`"] {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
    }
}

#[test]
fn what_is_lost_is_never_shown_as_less_than_what_may_be() {
    // 0.7 in f32 is less than 0.7, 0.1 is more.
    for most in [0.7f32, 0.1, 0.3, 1.0, 1e-9] {
        for lost in [f64::from(most).next_up(), f64::from(most) * 1.000_000_001, f64::from(most) * 2.0] {
            let (lost, most) = shown(lost, most);
            assert!(lost.parse::<f64>().unwrap() > most.parse::<f64>().unwrap(), "{lost} is not above {most}");
        }
    }
    assert_eq!(shown(0.8, 0.7), ("0.800000".into(), "0.7".into()));
}

#[test]
fn no_policy_is_advised_that_the_backend_does_not_have() {
    let effect = |can| probe_of(can).effect(answers(&[&[1.0]]), &answers(&[&[1.0]])).unwrap_err().to_string();
    let check = |can| probe_of(can).check(0.5).unwrap_err().to_string();
    for error in [effect(true), check(true)] {
        assert!(error.contains("`keep-unmerged` or `merge-dequantized`"), "{error}");
    }
    for error in [effect(false), check(false)] {
        assert!(!error.contains("keep-unmerged") && error.contains("`merge-dequantized`"), "{error}");
    }
}

fn probe_of(can_be_beside: bool) -> Probe {
    held_to(1, 0.25, can_be_beside)
}

#[test]
fn prompts_are_messages_where_the_model_has_a_chat_template_and_the_set_goes_along() {
    use llm_local_core::{DeviceInfo, DeviceKind, FloatType, Input, LoadedInfo};
    for is_chat in [true, false] {
        let mut model = MockLoadedModel::new();
        let device = DeviceInfo::new("cpu", DeviceKind::Cpu, "a processor");
        let info = LoadedInfo::new("m", "mocked", device, FloatType::F32, 8, 1).with_chat_template(is_chat);
        model.expect_info().return_const(info);
        model.expect_logits().times(2).returning(move |request| {
            assert!(request.adapters.is_some_and(|set| set.is_empty()));
            match request.input {
                Input::Messages(messages) if is_chat => assert_eq!(messages, [Message::user("x")]),
                Input::Text(text) if !is_chat => assert_eq!(text, "x"),
                other => panic!("{other:?}"),
            }
            Ok(vec![2.5])
        });
        let found = pollster::block_on(probe(2).ask(&model, Some(&AdapterSet::new()))).unwrap();
        assert_eq!(found, answers(&[&[2.5], &[2.5]]));
    }
}

#[test]
fn several_loads_are_one_progress_that_never_goes_back() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let seen = seen.clone();
        move |event: &ProgressEvent| {
            let ProgressEvent::Loading { done, total, .. } = event else { panic!("{event:?}") };
            seen.lock().unwrap().push((*done, *total));
        }
    };
    let mut loads = Loads::new(LoadOptions::new(8).with_progress(Arc::new(handler)), 3);
    // The merged models have a tensor more or less than the base.
    for tensors in [3, 2, 4] {
        let options = loads.next();
        let progress: Arc<dyn ProgressHandler> = options.progress.unwrap();
        (1..=tensors).for_each(|done| progress.on_progress(&ProgressEvent::loading(done, tensors)));
    }
    let seen = seen.lock().unwrap();
    let expected = [(1, 9), (2, 9), (3, 9), (4, 7), (5, 7), (6, 8), (7, 9), (8, 9), (9, 9)];
    assert_eq!(seen[..], expected);
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].0 * pair[1].1 <= pair[1].0 * pair[0].1));
}
