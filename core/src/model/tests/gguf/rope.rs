//! Rotary embeddings in GGUF metadata.

use super::*;

const FACTOR: &str = "rope.scaling.factor";
const TYPE: &str = "rope.scaling.type";
const ORIGINAL: &str = "rope.scaling.original_context_length";

fn scaling(changes: &[(&str, GgufValue)]) -> RopeScaling {
    described("qwen2", changes, &[]).unwrap().rope.scaling
}

#[test]
fn scaling_without_a_type_is_linear() {
    assert_eq!(scaling(&[(FACTOR, float(4.0))]), RopeScaling::Linear { factor: 4.0 });
    assert_eq!(scaling(&[("rope.scale_linear", float(4.0))]), RopeScaling::Linear { factor: 4.0 });
    assert_eq!(scaling(&[(FACTOR, float(0.0))]), RopeScaling::None);
    assert_eq!(scaling(&[(FACTOR, float(4.0)), (TYPE, text("none"))]), RopeScaling::None);
}

#[test]
fn yarn_is_as_the_model_had_it() {
    let read = |changes: &[(&'static str, GgufValue)]| {
        let yarn = [(FACTOR, float(4.0)), (TYPE, text("yarn"))];
        let RopeScaling::Yarn {
            factor: 4.0,
            original_max_positions,
            beta_fast,
            beta_slow,
            attention_factor,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        } = scaling(&[&yarn, changes].concat())
        else {
            panic!("{changes:?}")
        };
        (original_max_positions, beta_fast, beta_slow, attention_factor)
    };
    let (given, multiplier) = ("rope.scaling.yarn_attn_factor", "rope.scaling.attn_factor");
    let saved = ("rope.scaling.yarn_ext_factor", float(-1.0));
    assert_eq!(read(&[]), (512, 32.0, 1.0, None));
    assert_eq!(read(&[(ORIGINAL, int(64)), (multiplier, float(1.0))]), (64, 32.0, 1.0, None));
    let betas = [("rope.scaling.yarn_beta_fast", float(16.0)), ("rope.scaling.yarn_beta_slow", float(2.0))];
    assert_eq!(read(&betas), (512, 16.0, 2.0, None));
    assert_eq!(read(&[(given, float(1.0))]).3, Some(1.0));
    assert_eq!(read(&[(given, float(1.5)), (multiplier, float(2.0))]).3, Some(3.0));
    assert_eq!(read(&[(multiplier, float(2.0))]).3, Some(2.0 * (0.1 * f64::ln(4.0) + 1.0)));
    assert_eq!(read(&[(given, float(1.0)), saved.clone()]).3, None);
    assert_eq!(read(&[(given, float(1.5)), saved]).3, Some(1.5));
}

#[test]
fn the_base_and_the_rotated_dimensions_have_defaults() {
    for architecture in ["llama", "gemma", "gemma2", "gemma3", "qwen3", "phi3"] {
        let rope = described(architecture, &[], &[]).unwrap().rope;
        assert_eq!(rope, Rope::new(1e4, 32), "{architecture}");
    }
    let partial = [("rope.freq_base", float(5e5)), ("rope.dimension_count", int(24))];
    assert_eq!(described("phi3", &partial, &[]).unwrap().rope, Rope::new(5e5, 24));
}

#[test]
fn longrope_is_known_by_its_tensors() {
    let both = ["rope_factors_short.weight", "rope_factors_long.weight"];
    let changes = [(ORIGINAL, int(64)), ("rope.scaling.attn_factor", float(1.25))];
    let read = |architecture, changes: &[_]| described(architecture, changes, &both).unwrap().rope.scaling;
    let expected = |original_max_positions, attention_factor| RopeScaling::LongRopeTensors {
        short: both[0].into(),
        long: both[1].into(),
        original_max_positions,
        attention_factor,
    };
    assert_eq!(read("phi3", &changes), expected(64, 1.25));
    assert_eq!(read("phi3", &[]), expected(512, 1.0));
    assert_eq!(read("llama", &[(TYPE, text("longrope"))]), expected(512, 1.0));
}

#[test]
fn layers_with_windows_rotate_as_their_architecture_does() {
    let window = ("attention.sliding_window", int(8));
    let global = [("rope.freq_base", float(1e6)), (TYPE, text("linear")), (FACTOR, float(8.0)), window];
    let local_theta = ("rope.freq_base_swa", float(5e3));
    let linear = RopeScaling::Linear { factor: 8.0 };
    let scaled = |theta| Rope::new(theta, 32).with_scaling(linear.clone());
    let read = |architecture, changes: &[_]| {
        let decoder = described(architecture, changes, &[]).unwrap();
        assert_eq!(decoder.rope, scaled(1e6), "{architecture}");
        decoder.local_rope
    };
    let with_theta = [&global[..], &[local_theta]].concat();
    assert_eq!(read("gemma3", &global), Some(Rope::new(1e4, 32)));
    assert_eq!(read("gemma3", &with_theta), Some(Rope::new(5e3, 32)));
    assert_eq!(read("gemma3", &global[..3]), None);
    assert_eq!(read("gemma2", &global), None);
    assert_eq!(read("gemma2", &with_theta), Some(scaled(5e3)));
    assert_eq!(read("olmo2", &global), Some(Rope::new(1e6, 32)));
    assert_eq!(read("phi3", &global), None);
}
