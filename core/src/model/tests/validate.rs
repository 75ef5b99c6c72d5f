//! What no decoder can be, whichever file says so.

use super::*;

#[test]
fn values_that_no_decoder_can_have_are_refused_by_their_name_in_the_file() {
    let good = read(&config());
    type Change = fn(&mut DecoderConfig);
    let table: &[(&str, &str, Change)] = &[
        ("vocab_size", "is 0", |c| c.vocab_size = 0),
        ("intermediate_size", "is 0", |c| c.intermediate_size = 0),
        ("max_positions", "is 4294967296", |c| c.max_positions = 1 << 32),
        ("layers", "is 65537", |c| c.layers = (1 << 16) + 1),
        ("kv_heads", "does not divide the 4 heads", |c| c.kv_heads = 3),
        ("rope.dims", "33 rotated dimensions of 32", |c| c.rope.dims = 33),
        ("rope.dims", "34 rotated dimensions of 32", |c| c.rope.dims = 34),
        ("rope.theta", "is inf", |c| c.rope.theta = f64::INFINITY),
        ("local_rope.dims", "0 rotated dimensions", |c| c.local_rope = Some(Rope::new(1e4, 0))),
        ("local_rope.theta", "is -1", |c| c.local_rope = Some(Rope::new(-1.0, 32))),
        ("norm_eps", "is 1", |c| c.norm_eps = 1.0),
        ("norm_eps", "is NaN", |c| c.norm_eps = f64::NAN),
        ("attention_scale", "is 0", |c| c.attention_scale = 0.0),
        ("attention_soft_cap", "is -50", |c| c.attention_soft_cap = Some(-50.0)),
        ("embedding_scale", "is inf", |c| c.embedding_scale = f64::INFINITY),
        ("residual_scale", "is NaN", |c| c.residual_scale = f64::NAN),
        ("logit_scale", "is -1", |c| c.logit_scale = -1.0),
        ("logit_soft_cap", "is 0", |c| c.logit_soft_cap = Some(0.0)),
        ("sliding_window", "expected 1 to 2147483648", |c| {
            c.sliding_window = Some(SlidingWindow::new(usize::MAX, vec![true; 4]));
        }),
        ("sliding_window", "is 0", |c| c.sliding_window = Some(SlidingWindow::new(0, vec![true; 4]))),
        ("sliding_window", "3 layers; expected all 4", |c| {
            c.sliding_window = Some(SlidingWindow::new(8, vec![true; 3]));
        }),
    ];
    assert!(good.validate("m", &|name| name.to_owned()).is_ok());
    for (name, expected, change) in table {
        let mut bad = good.clone();
        change(&mut bad);
        let message = bad.validate("m", &|name| format!("the field {name}")).unwrap_err().to_string();
        assert!(message.contains(&format!("the field {name} ")) && message.contains(expected), "{name}: {message}");
    }
}
