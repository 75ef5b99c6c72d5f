use std::cmp::Ordering;

use proptest::prelude::*;

use super::*;

fn sample(sampling: &Sampling, logits: &[f32], recent: &[u32]) -> Result<u32> {
    Sampler::new(sampling, logits.len()).unwrap().sample(&mut logits.to_vec(), recent)
}

/// The ids that stay, sorted, and the probabilities they are drawn with: transformers' processors written down one
/// after the other, in f64, each over the whole vocabulary. `None` where rounding could decide.
fn reference(sampling: &Sampling, logits: &[f32], recent: &[u32]) -> Option<Vec<(u32, f64)>> {
    let mut scores: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    // RepetitionPenaltyLogitsProcessor
    let penalty = f64::from(sampling.repetition_penalty);
    let window = &recent[recent.len().saturating_sub(sampling.repetition_window)..];
    for (id, score) in scores.iter_mut().enumerate() {
        if window.contains(&(id as u32)) {
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
    // A penalty may make two scores one in f32 that are two in f64; which is better is then no test.
    let mut sorted = scores.clone();
    sorted.sort_by(f64::total_cmp);
    if sorted.windows(2).any(|pair| pair[0] != pair[1] && pair[1] - pair[0] < 1e-5) {
        return None;
    }
    // TemperatureLogitsWarper
    scores.iter_mut().for_each(|s| *s /= f64::from(sampling.temperature));
    let softmax = |scores: &[f64]| -> Vec<f64> {
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        scores.iter().map(|s| (s - max).exp() / total).collect()
    };
    // TopKLogitsWarper: everything below the k-th value goes
    if let Some(k) = sampling.top_k {
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let kth = sorted[k.min(sorted.len()) - 1];
        scores.iter_mut().filter(|s| **s < kth).for_each(|s| *s = f64::NEG_INFINITY);
    }
    // TopPLogitsWarper: from the worst up, as long as the sum is at most 1 - p; the best stays
    if let Some(p) = sampling.top_p.filter(|p| *p < 1.0) {
        let probabilities = softmax(&scores);
        let mut worst_first: Vec<usize> = (0..scores.len()).collect();
        worst_first.sort_by(|&a, &b| match scores[a].total_cmp(&scores[b]) {
            Ordering::Equal => b.cmp(&a),
            other => other,
        });
        let mut sum = 0.0;
        for &id in &worst_first[..scores.len() - 1] {
            sum += probabilities[id];
            if (sum - (1.0 - f64::from(p))).abs() < 1e-5 {
                return None;
            }
            if sum <= 1.0 - f64::from(p) {
                scores[id] = f64::NEG_INFINITY;
            }
        }
    }
    // MinPLogitsWarper
    if let Some(p) = sampling.min_p {
        let probabilities = softmax(&scores);
        let best = probabilities.iter().copied().fold(0.0, f64::max);
        for (score, probability) in scores.iter_mut().zip(&probabilities) {
            let share = probability / best;
            if (share - f64::from(p)).abs() < 1e-5 && share != 1.0 {
                return None;
            }
            if share < f64::from(p) {
                *score = f64::NEG_INFINITY;
            }
        }
    }
    Some(softmax(&scores).into_iter().enumerate().filter(|(_, p)| *p > 0.0).map(|(id, p)| (id as u32, p)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_tokens_that_stay_and_their_weights_are_those_of_transformers(
        logits in prop::collection::vec((-40i32..40).prop_map(|x| x as f32 / 4.0), 1..40),
        recent in prop::collection::vec(0u32..50, 0..12),
        penalty in prop::sample::select(vec![1.0f32, 1.3, 0.7]),
        window in 0usize..10,
        temperature in prop::sample::select(vec![0.3f32, 1.0, 1.7]),
        top_k in prop::option::of(1usize..45),
        top_p in prop::option::of(0.05f32..=1.0),
        min_p in prop::option::of(0.0f32..0.9),
    ) {
        let mut sampling =
            Sampling::default().with_temperature(temperature).with_repetition_penalty(penalty, window).with_seed(1);
        (sampling.top_k, sampling.top_p, sampling.min_p) = (top_k, top_p, min_p);
        let expected = reference(&sampling, &logits, &recent);
        prop_assume!(expected.is_some());
        let mut sampler = Sampler::new(&sampling, logits.len()).unwrap();
        let drawn = sampler.sample(&mut logits.clone(), &recent).unwrap();
        let total: f64 = sampler.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let mut found: Vec<(u32, f64)> =
            sampler.candidates.iter().map(|c| (c.id, f64::from(c.weight) / total)).collect();
        found.sort_by_key(|(id, _)| *id);
        // exp in f32 against f64: 1e-30 is where f32 weights begin to vanish (40 / 4 / 0.3 * 2 stays above it).
        let expected: Vec<(u32, f64)> = expected.unwrap().into_iter().filter(|(_, p)| *p > 1e-30).collect();
        found.retain(|(_, p)| *p > 1e-30);
        prop_assert_eq!(
            found.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            expected.iter().map(|(id, _)| *id).collect::<Vec<_>>()
        );
        for ((_, found), (_, expected)) in found.iter().zip(&expected) {
            prop_assert!((found - expected).abs() < 1e-5, "{} is not {}", found, expected);
        }
        prop_assert!(expected.iter().any(|(id, _)| *id == drawn));
    }

    #[test]
    fn greedy_takes_the_first_of_the_best(logits in prop::collection::vec((-9i32..9).prop_map(|x| x as f32), 1..60)) {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first = logits.iter().position(|l| *l == best).unwrap() as u32;
        prop_assert_eq!(sample(&Sampling::greedy(), &logits, &[]).unwrap(), first);
        // One candidate leaves nothing to chance either.
        let single = Sampling::default().with_temperature(1.0).with_top_p(1e-6).with_seed(3);
        prop_assert_eq!(sample(&single, &logits, &[]).unwrap(), first);
    }
}

#[test]
fn draws_follow_the_softmax() {
    // 40,000 draws: the standard deviation of a frequency is at most sqrt(0.25 / 40000) = 0.0025; four of them are
    // allowed. The seed is fixed, so the outcome is too.
    const DRAWS: usize = 40_000;
    let logits = [2.0f32, 1.0, 0.0, -1.0, f32::NEG_INFINITY, 1.5];
    let temperature = 0.8f64;
    let total: f64 = logits.iter().map(|l| (f64::from(*l) / temperature).exp()).sum();
    let mut sampler =
        Sampler::new(&Sampling::default().with_temperature(temperature as f32).with_seed(42), logits.len()).unwrap();
    let mut counts = [0usize; 6];
    for _ in 0..DRAWS {
        counts[sampler.sample(&mut logits.to_vec(), &[]).unwrap() as usize] += 1;
    }
    for (count, logit) in counts.iter().zip(logits) {
        let expected = (f64::from(logit) / temperature).exp() / total;
        let found = *count as f64 / DRAWS as f64;
        assert!((found - expected).abs() < 0.01, "frequency {found}, expected {expected}");
    }
    assert_eq!(counts[4], 0);
}

#[test]
fn a_seed_repeats_its_tokens_and_another_does_not() {
    let tokens = |seed: Option<u64>| -> Vec<u32> {
        let mut sampling = Sampling::default().with_temperature(1.0);
        sampling.seed = seed;
        let mut sampler = Sampler::new(&sampling, 1000).unwrap();
        (0..32).map(|_| sampler.sample(&mut vec![0.0; 1000], &[]).unwrap()).collect()
    };
    assert_eq!(tokens(Some(7)), tokens(Some(7)));
    assert_ne!(tokens(Some(7)), tokens(Some(8)));
    // Two unseeded runs of 32 tokens out of 1,000 are equal once in 10^96.
    assert_ne!(tokens(None), tokens(None));
}

#[test]
fn ids_beyond_the_tokenizer_are_never_chosen() {
    for sampling in [Sampling::greedy(), Sampling::default().with_temperature(5.0).with_seed(1)] {
        let mut sampler = Sampler::new(&sampling, 3).unwrap();
        for _ in 0..100 {
            // What a padded row holds does not matter, broken or not.
            assert!(sampler.sample(&mut [0.0, 1.0, 0.5, 100.0, f32::NAN], &[]).unwrap() < 3);
        }
    }
}

#[test]
fn a_tokenizer_larger_than_the_vocabulary_changes_nothing() {
    let mut sampler = Sampler::new(&Sampling::greedy(), 10).unwrap();
    assert_eq!(sampler.sample(&mut [0.0, 1.0], &[]).unwrap(), 1);
}

#[test]
fn broken_logits_are_errors_that_name_the_token() {
    for sampling in [Sampling::greedy(), Sampling::default().with_temperature(1.0).with_seed(1)] {
        let error = |logits: &[f32]| sample(&sampling, logits, &[]).unwrap_err();
        assert!(error(&[0.0, f32::NAN]).to_string().contains("token 1 is NaN"));
        assert!(error(&[f32::INFINITY, 0.0]).to_string().contains("token 0 is inf"));
        assert!(error(&[f32::NEG_INFINITY; 2]).to_string().contains("all 2 logits"));
        assert!(error(&[]).to_string().contains("all 0 logits"));
        assert_eq!(error(&[f32::NAN]).code(), "generation_failed");
    }
}

#[test]
fn a_penalty_moves_the_greedy_choice_and_looks_no_further_than_its_window() {
    let penalty = |window| Sampling::greedy().with_repetition_penalty(2.0, window);
    assert_eq!(sample(&penalty(4), &[3.0, 2.0, -1.0], &[0]).unwrap(), 1);
    assert_eq!(sample(&penalty(1), &[3.0, 2.0, -1.0], &[0, 2]).unwrap(), 0);
    assert_eq!(sample(&penalty(4), &[-1.0, -1.5], &[0, 0, 0]).unwrap(), 1);
    // Ids that the model does not have are no reason to panic.
    assert_eq!(sample(&penalty(4), &[3.0, 2.0], &[9]).unwrap(), 0);
}

#[test]
fn extreme_temperatures_and_penalties_do_not_overflow() {
    let cold = Sampling::default().with_temperature(f32::MIN_POSITIVE).with_seed(1);
    assert_eq!(sample(&cold, &[1e30, 2e30, -1e30], &[]).unwrap(), 1);
    let hot = Sampling::default().with_temperature(f32::MAX).with_repetition_penalty(1e-38, 4).with_seed(1);
    assert!(sample(&hot, &[1e30, 2e30], &[0, 1]).unwrap() < 2);
}

#[test]
fn values_out_of_range_are_refused() {
    let error = Sampler::new(&Sampling::default().with_temperature(-1.0), 4).unwrap_err();
    assert!(error.to_string().contains("sampling.temperature"), "{error}");
}
