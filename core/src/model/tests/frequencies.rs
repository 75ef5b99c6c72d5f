//! Rotary frequencies against those of transformers 5.23 (`ROPE_INIT_FUNCTIONS`), which computes them in float32.

use super::*;
use crate::{Error, Result};

/// Float32 rounds to 6e-8, a few times over.
const TOLERANCE: f64 = 5e-7;

fn no_tensors(name: &str) -> Result<Vec<f32>> {
    Err(Error::unsupported_format("m", format!("{name} is missing")))
}

fn resolve(theta: f64, dims: usize, max_positions: usize, scaling: RopeScaling) -> Result<ResolvedRope> {
    Rope::new(theta, dims).with_scaling(scaling).resolve("m", max_positions, &mut no_tensors)
}

#[track_caller]
fn assert_close(found: &RopeFrequencies, attention_factor: f64, radians: &[f64]) {
    let is_close = |a: f64, b: f64| (a - b).abs() <= TOLERANCE * b.abs();
    assert!(is_close(found.attention_factor, attention_factor), "{found:?}");
    assert_eq!(found.radians.len(), radians.len());
    assert!(found.radians.iter().zip(radians).all(|(a, b)| is_close(*a, *b)), "{found:?}\nexpected {radians:?}");
}

/// YaRN of factor 4 with the bounds of its ramp as given.
fn yarn(original_max_positions: usize, beta_fast: f64, beta_slow: f64, truncate: bool) -> RopeScaling {
    RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions,
        beta_fast,
        beta_slow,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
        truncate,
    }
}

/// YaRN with what decides its attention factor as given.
fn yarn_with(attention_factor: Option<f64>, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> RopeScaling {
    RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
        mscale,
        mscale_all_dim,
        truncate: true,
    }
}

fn longrope(factor: Option<f64>, attention_factor: Option<f64>) -> RopeScaling {
    RopeScaling::LongRope {
        short_factor: vec![1.0, 1.05, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0],
        long_factor: vec![1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        original_max_positions: 40,
        attention_factor,
        factor,
    }
}

const UNSCALED: [f64; 8] =
    [1.0, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978, 0.00316227786, 0.00100000005, 0.000316227786];
const YARN: [f64; 8] =
    [1.0, 0.237170815, 0.049999997, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-5];
const SHORT: [f64; 8] =
    [1.0, 0.301169306, 0.0909090936, 0.0263523124, 0.00714285718, 0.00197642366, 0.000555555569, 0.000158113893];
const LONG: [f64; 8] =
    [1.0, 0.210818499, 0.0500000007, 0.010540925, 0.00249999994, 0.000632455572, 0.000166666665, 3.95284733e-5];

#[test]
fn unscaled_and_linear_frequencies_are_powers_of_theta() {
    assert_close(&resolve(1e4, 16, 256, RopeScaling::None).unwrap().base, 1.0, &UNSCALED);
    let linear = resolve(1e6, 16, 256, RopeScaling::Linear { factor: 8.0 }).unwrap();
    let expected = [
        0.125,
        0.0222284924,
        0.00395284733,
        0.000702926656,
        0.000125000006,
        2.22284925e-5,
        3.95284678e-6,
        7.02926684e-7,
    ];
    assert_close(&linear.base, 1.0, &expected);
    assert_eq!(linear.beyond, None);
}

#[test]
fn llama3_keeps_short_wavelengths_and_divides_long_ones() {
    let llama3 = |factor, original_max_positions| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions,
    };
    let small = resolve(1e4, 16, 256, llama3(8.0, 64)).unwrap();
    let expected =
        [1.0, 0.244384587, 0.0130422562, 0.00395284733, 0.00124999997, 0.000395284733, 0.000125000006, 3.95284733e-5];
    assert_close(&small.base, 1.0, &expected);
    // Llama 3.2: pairs 14 to 17 are on the ramp.
    let large = resolve(5e5, 64, 131_072, llama3(32.0, 8192)).unwrap().base;
    let ramp = RopeFrequencies { radians: large.radians[13..19].to_vec(), attention_factor: large.attention_factor };
    let expected = [0.00483942125, 0.00321144611, 0.00129054801, 0.000429556705, 9.70828623e-5, 1.94616387e-5];
    assert_close(&ramp, 1.0, &expected);
}

#[test]
fn yarn_scales_its_ramp_and_its_attention() {
    let resolved = |scaling| resolve(1e4, 16, 256, scaling).unwrap().base;
    let inferred = 1.138629436111989;
    assert_close(&resolved(yarn(64, 32.0, 1.0, true)), inferred, &YARN);
    assert_close(&resolved(yarn_with(Some(1.25), None, None)), 1.25, &YARN);
    assert_close(&resolved(yarn_with(None, Some(0.7), None)), inferred, &YARN);
    assert_close(&resolved(yarn_with(None, Some(1.0), Some(0.5))), 1.0648216253695715, &YARN);
}

#[test]
fn yarn_does_not_round_its_bounds_where_it_is_told_so() {
    let scaling = yarn(64, 16.0, 2.0, false);
    let expected =
        [1.0, 0.14849025, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-5];
    assert_close(&resolve(1e4, 16, 256, scaling).unwrap().base, 1.138629436111989, &expected);
}

#[test]
fn yarn_of_real_size_agrees_over_its_whole_ramp() {
    let found = resolve(1e6, 64, 131_072, yarn(32_768, 32.0, 1.0, true)).unwrap().base;
    let ramp = RopeFrequencies { radians: found.radians[10..22].to_vec(), attention_factor: found.attention_factor };
    let expected = [
        0.0133352149,
        0.00865964312,
        0.00515479548,
        0.0030431177,
        0.00177853031,
        0.00102661771,
        0.000583333371,
        0.000324690831,
        0.000175706868,
        9.12806499e-5,
        4.44569851e-5,
        2.88695483e-5,
    ];
    assert_close(&ramp, 1.138629436111989, &expected);
}

#[test]
fn the_ramp_of_yarn_ends_with_the_dimensions() {
    let found = resolve(1e4, 8, 4_000_000_000, yarn(1_000_000_000, 1e6, 1.0, true)).unwrap();
    assert_close(&found.base, 1.138629436111989, &[1.0, 0.100000001, 0.00999999978, 0.000850000011]);
}

#[test]
fn longrope_has_other_frequencies_beyond_its_original_context() {
    let resolved = resolve(1e4, 16, 256, longrope(None, None)).unwrap();
    let inferred = 1.2260565230334453;
    assert_close(&resolved.base, inferred, &SHORT);
    let (beyond, far) = resolved.beyond.unwrap();
    assert_eq!(beyond, 40);
    assert_close(&far, inferred, &LONG);

    let factor = |scaling, max| resolve(1e4, 16, max, scaling).unwrap().base.attention_factor;
    for (found, expected) in [
        (factor(longrope(Some(2.0), None), 256), 1.089909090112156),
        (factor(longrope(None, Some(1.5)), 256), 1.5),
        (factor(longrope(None, None), 40), 1.0),
    ] {
        assert!((found - expected).abs() < 1e-12, "{found} instead of {expected}");
    }
}

#[test]
fn divisors_are_read_from_the_tensors_that_have_them() {
    let mut asked = Vec::new();
    let mut tensor = |name: &str| {
        asked.push(name.to_owned());
        Ok(if name == "long" { vec![1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0] } else { vec![2.0; 8] })
    };
    let halved = UNSCALED.map(|f| f / 2.0);
    let rope = Rope::new(1e4, 16).with_scaling(RopeScaling::Divisors { tensor: "all".into() });
    assert_close(&rope.resolve("m", 256, &mut tensor).unwrap().base, 1.0, &halved);
    let rope = Rope::new(1e4, 16).with_scaling(RopeScaling::LongRopeTensors {
        short: "short".into(),
        long: "long".into(),
        original_max_positions: 40,
        attention_factor: 1.25,
    });
    let resolved = rope.resolve("m", 256, &mut tensor).unwrap();
    assert_close(&resolved.base, 1.25, &halved);
    let (beyond, far) = resolved.beyond.unwrap();
    assert_close(&far, 1.25, &LONG);
    assert_eq!((beyond, asked), (40, ["all", "short", "long"].map(str::to_owned).to_vec()));
}

#[test]
fn partial_rotary_has_the_frequencies_of_its_own_width() {
    let found = resolve(1e4, 8, 256, RopeScaling::None).unwrap().base;
    assert_close(&found, 1.0, &[1.0, 0.1, 0.01, 0.001]);
}

#[test]
fn dynamic_scaling_changes_nothing_within_its_original_context_and_is_refused_beyond() {
    let dynamic = |original_max_positions| RopeScaling::Dynamic { factor: 4.0, original_max_positions };
    assert_close(&resolve(1e4, 16, 256, dynamic(256)).unwrap().base, 1.0, &UNSCALED);
    let message = resolve(1e4, 16, 256, dynamic(128)).unwrap_err().to_string();
    for part in ["dynamic", "beyond 128 of 256", "yarn"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn divisors_and_formulas_without_usable_numbers_are_refused_by_name() {
    let divisors = |values: Vec<f32>| {
        let rope = Rope::new(1e4, 16).with_scaling(RopeScaling::Divisors { tensor: "rope_freqs.weight".into() });
        rope.resolve("m", 256, &mut |_| Ok(values.clone())).unwrap_err().to_string()
    };
    for values in [vec![1.0; 7], vec![0.0; 8], vec![f32::NAN; 8], vec![-1.0; 8]] {
        let message = divisors(values);
        assert!(message.contains("rope_freqs.weight") && message.contains("expected 8"), "{message}");
    }
    let missing = Rope::new(1e4, 16).with_scaling(RopeScaling::Divisors { tensor: "rope_freqs.weight".into() });
    assert!(
        missing.resolve("m", 256, &mut no_tensors).unwrap_err().to_string().contains("rope_freqs.weight is missing")
    );

    let short = resolve(1e4, 12, 256, longrope(None, None)).unwrap_err().to_string();
    assert!(short.contains("short_factor") && short.contains("expected 6"), "{short}");
    // The attention factor of longrope divides by the logarithm of the original context, and mscale may be anything.
    let RopeScaling::LongRope { short_factor, long_factor, .. } = longrope(None, None) else { unreachable!() };
    let scaling = RopeScaling::LongRope {
        short_factor,
        long_factor,
        original_max_positions: 1,
        attention_factor: None,
        factor: None,
    };
    let endless = resolve(1e4, 16, 256, scaling).unwrap_err().to_string();
    assert!(endless.contains("longrope with theta 10000 gives a frequency or an attention factor of inf"), "{endless}");
    let negative = resolve(1e4, 16, 256, yarn_with(None, Some(-100.0), Some(1.0))).unwrap_err().to_string();
    assert!(negative.contains("attention factor of -"), "{negative}");
}
