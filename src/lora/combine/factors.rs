//! Combinations of the factors A and B.

use super::{arithmetic::combine_tensors, pair::Pair, parts::Arithmetic, random::TorchRandom};

/// A pair, the adapter's weight and the pair's scale.
pub(super) type Weighted = (Pair, f32, f64);

/// The A combined and the B combined (PEFT, `_generalized_task_arithmetic_weighted_adapter`). Both are weighted with the
/// root of weight times scale, whose sign A takes. The pairs must have one shape.
pub(super) fn combine_factors(
    pairs: Vec<Weighted>,
    arithmetic: Arithmetic,
    mut random: Option<&mut TorchRandom>,
) -> Pair {
    let (rank, inputs, outputs) = (pairs[0].0.rank, pairs[0].0.inputs, pairs[0].0.outputs);
    let factors: Vec<_> = pairs.iter().map(|(_, weight, scale)| f64::from(*weight) * scale).collect();
    let for_b: Vec<_> = factors.iter().map(|factor| factor.abs().sqrt() as f32).collect();
    let for_a: Vec<_> =
        for_b.iter().zip(&factors).map(|(root, factor)| if *factor < 0.0 { -root } else { *root }).collect();
    let (a, b) = pairs.into_iter().map(|(pair, ..)| (pair.a, pair.b)).unzip();
    let a = combine_tensors(a, &for_a, arithmetic, random.as_deref_mut());
    let b = combine_tensors(b, &for_b, arithmetic, random);
    Pair { rank, inputs, outputs, a, b }
}

/// The factors side by side, weight and scale in A (PEFT, `add_weighted_adapter`, `cat`). The pairs must have one product
/// shape.
pub(super) fn concatenate(pairs: &[Weighted]) -> Pair {
    let (inputs, outputs) = (pairs[0].0.inputs, pairs[0].0.outputs);
    let rank = pairs.iter().map(|(pair, ..)| pair.rank).sum();
    let scaled = |(pair, weight, scale): &Weighted| {
        let (weight, scale) = (*weight, *scale as f32);
        pair.a.iter().map(|value| value * weight * scale).collect::<Vec<_>>()
    };
    let row = |out: usize| pairs.iter().flat_map(move |(pair, ..)| &pair.b[out * pair.rank..][..pair.rank]);
    Pair {
        rank,
        inputs,
        outputs,
        a: pairs.iter().flat_map(scaled).collect(),
        b: (0..outputs).flat_map(row).copied().collect(),
    }
}
