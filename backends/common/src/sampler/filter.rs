//! Temperature, top-k, top-p and min-p: which tokens may be chosen, and with what weight.

use std::{cmp::Ordering, collections::BinaryHeap};

use llm_local_core::Sampling;

use super::Candidate;

/// Fills `candidates` with the tokens that stay, by descending weight where top-p put them in order, else by id.
/// `max` is the largest of `logits`; `scratch` is overwritten. The temperature must not be 0.
pub(super) fn keep(
    logits: &[f32],
    max: f32,
    sampling: &Sampling,
    candidates: &mut Vec<Candidate>,
    scratch: &mut Vec<f32>,
) {
    // A logit below this stays out. The temperature keeps the order, so top-k can look at the logits themselves.
    let least = match sampling.top_k {
        Some(k) if k < logits.len() => kth_largest(logits, k, scratch),
        _ => f32::NEG_INFINITY,
    };
    candidates.clear();
    candidates.extend(logits.iter().enumerate().filter(|(_, l)| **l >= least && **l > f32::NEG_INFINITY).map(
        // The maximum is taken off before dividing, so that a tiny temperature cannot overflow.
        |(id, l)| Candidate { id: id as u32, weight: ((l - max) / sampling.temperature).exp() },
    ));
    if let Some(p) = sampling.top_p.filter(|p| *p < 1.0) {
        keep_top_p(candidates, f64::from(p));
    }
    if let Some(p) = sampling.min_p {
        // Weights are shares of the best token's probability already.
        candidates.retain(|c| c.weight >= p);
    }
}

/// The `k`-th largest value, `1 <= k <= values.len()`. Linear on average.
fn kth_largest(values: &[f32], k: usize, scratch: &mut Vec<f32>) -> f32 {
    scratch.clear();
    scratch.extend_from_slice(values);
    *scratch.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Keeps the best tokens until they have the share `p` of all the weight; the lower id first among equals.
fn keep_top_p(candidates: &mut Vec<Candidate>, p: f64) {
    let enough = p * candidates.iter().map(|c| f64::from(c.weight)).sum::<f64>();
    // A heap is built in linear time and gives up only as many tokens as stay: usually few of a large vocabulary.
    let mut heap: BinaryHeap<Best> = candidates.drain(..).map(Best).collect();
    let mut sum = 0.0;
    while let Some(Best(candidate)) = heap.pop() {
        candidates.push(candidate);
        sum += f64::from(candidate.weight);
        if sum >= enough {
            break;
        }
    }
}

/// Greatest is the heaviest, and the lowest id among equals.
struct Best(Candidate);

impl Ord for Best {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.weight.total_cmp(&other.0.weight).then(other.0.id.cmp(&self.0.id))
    }
}

impl PartialOrd for Best {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Best {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Best {}
