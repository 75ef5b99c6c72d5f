//! What a merge adds is linear in the adapters' weights. A replacement alone is too, as a step from the base to it; but one
//! adapter's replacement with another's pair, or rows of what is replaced, are applied one after the other.
//!
//! DoRA is left out: its magnitudes set the lengths of the rows of base and delta together (arXiv:2402.09353), so that neither
//! twice the weight is twice the change nor two adapters add up.

use super::{
    variants::{Kind, of_type},
    *,
};

/// Roundings of f32, relative to the sum of the absolute values of all terms, that the three merges may differ by; measured
/// over 6,000 cases it was 4.9.
const TOLERANCE: f64 = 12.0;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_sum_of_weights_changes_what_the_weights_change_one_by_one(
        shape in (1usize..90, 1usize..90),
        ranks in (1usize..9, 1usize..9),
        stored in float_type(),
        scales in (0.1..4.0f64, 0.1..4.0f64),
        // Quarters, so that their sum is exact.
        weights in (-9i32..10, -9i32..10).prop_filter("none is 0", |(a, b)| a * b * (a + b) != 0),
        transposed: bool,
        replaces: bool,
        seed in 1u64..1 << 30,
    ) {
        let shape = [shape.0, shape.1];
        let (kind, module) = if transposed { ("gpt2", "h.0.attn.c_proj") } else { ("test", "m") };
        let name = format!("{module}.weight");
        let values = numbers(seed, shape[0] * shape[1]);
        let base = Arc::new(naive::Tensors::new(FloatType::F32, [(name.clone(), shape.to_vec(), values)]));
        let adapter = |rank, scale, seed| {
            let kind = Kind {
                rank, stored, scale, weight: 1.0, has_pair: !replaces, has_magnitude: false, replaces, rows: Vec::new(),
            };
            Arc::new(kind.adapter(module, shape, transposed, seed))
        };
        let (x, y) = (adapter(ranks.0, scales.0, seed + 1), adapter(ranks.1, scales.1, seed + 2));
        let (a, b) = (weights.0 as f32 / 4.0, weights.1 as f32 / 4.0);
        let own = base.values(&name);
        let change = |adapters: &[(Arc<LoraAdapter>, f32)]| -> Vec<f64> {
            let source = MergedSource::new(base.clone(), adapters.to_vec(), &of_type(kind, &base)).unwrap();
            let read = bytes(&source.read(&name, Some(FloatType::F32)).unwrap());
            decode(&read, FloatType::F32).zip(&own).map(|(merged, own)| merged - own).collect()
        };
        // Of several adapters that replace one tensor, the last goes on from what those before it gave.
        let of_several = (!replaces).then(|| (change(&[(x.clone(), a), (y.clone(), b)]), change(&[(y.clone(), b)]), &y));
        let of_one = (change(&[(x.clone(), a + b)]), change(&[(x.clone(), b)]), &x);
        for (both, second, of) in [Some(of_one), of_several].into_iter().flatten() {
            let first = change(&[(x.clone(), a)]);
            let adapters = [(&*x, f64::from(a)), (&**of, f64::from(b))];
            let terms = naive::merged(&name, &own, (shape[0], shape[1]), transposed, &adapters).terms;
            for (i, both) in both.iter().enumerate() {
                let (apart, terms) = (first[i] + second[i], terms[i] + own[i].abs());
                let bound = TOLERANCE * f64::from(f32::EPSILON) / 2.0 * terms;
                prop_assert!((both - apart).abs() <= bound, "{both} is not {apart}, {} roundings", (both - apart).abs() / bound * TOLERANCE);
            }
        }
    }
}
