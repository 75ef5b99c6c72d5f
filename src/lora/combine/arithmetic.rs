//! Tensors of one shape into one (PEFT `src/peft/utils/merge_utils.py`), in f32 and in PEFT's order of operations.

use llm_local_core::lora::MajoritySign;

use super::{
    largest::largest,
    parts::{Arithmetic, Prune},
    random::TorchRandom,
};

/// Combines `tensors`, of one length and row-major as PEFT has them, each with its weight. `random` is drawn from for each
/// tensor in turn where values are chosen at random.
pub(super) fn combine_tensors(
    mut tensors: Vec<Vec<f32>>,
    weights: &[f32],
    arithmetic: Arithmetic,
    random: Option<&mut TorchRandom>,
) -> Vec<f32> {
    match (arithmetic.prune, random) {
        (Prune::Magnitude(density), _) if density < 1.0 => {
            tensors.iter_mut().for_each(|tensor| keep_largest(tensor, density));
        }
        (Prune::Random(density), Some(random)) if density < 1.0 => {
            tensors.iter_mut().for_each(|tensor| keep_some(tensor, density, random));
        }
        _ => {}
    }
    let length = tensors.first().map_or(0, Vec::len);
    let values = |at: usize| tensors.iter().map(move |tensor| tensor[at]);
    let weighted = |at: usize| values(at).zip(weights).map(|(value, weight)| (value, value * weight));
    match arithmetic.sign {
        None => (0..length).map(|at| weighted(at).fold(0.0, |sum, (_, weighted)| sum + weighted)).collect(),
        Some(method) => (0..length)
            .map(|at| {
                let positive = majority_is_positive(values(at), method);
                let agrees = |value: f32| if positive { value > 0.0 } else { value < 0.0 };
                let (mut sum, mut count) = (0.0, 0);
                for (_, weighted) in weighted(at).filter(|(value, _)| agrees(*value)) {
                    sum += weighted;
                    count += 1;
                }
                sum / count.max(1) as f32
            })
            .collect(),
    }
}

/// How many values a share of `length` is: rounded down.
fn kept(density: f64, length: usize) -> usize {
    (density * length as f64) as usize
}

fn keep_largest(tensor: &mut [f32], density: f64) {
    let mask = largest(tensor, kept(density, tensor.len()));
    tensor.iter_mut().zip(mask).filter(|(_, keep)| !keep).for_each(|(value, _)| *value = 0.0);
}

fn keep_some(tensor: &mut [f32], density: f64, random: &mut TorchRandom) {
    let density = density as f32;
    tensor.iter_mut().for_each(|value| *value = if random.bernoulli(density) { *value / density } else { 0.0 });
}

/// Whether the elected sign is plus. A draw is.
fn majority_is_positive(values: impl Iterator<Item = f32>, method: MajoritySign) -> bool {
    match method {
        MajoritySign::Total => values.fold(0.0, |sum, value| sum + value) >= 0.0,
        MajoritySign::Frequency => values.fold(0, |sum, v| sum + i32::from(v > 0.0) - i32::from(v < 0.0)) >= 0,
    }
}
