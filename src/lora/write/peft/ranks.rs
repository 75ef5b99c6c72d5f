//! Ranks and alphas: those that most modules have, and the patterns of the others.

use llm_local_core::LoraModule;
use serde_json::{Map, Value, json};

use crate::lora::{targets, write::scale::most_common};

/// PEFT's rank and alpha where there is no pair that has one.
const DEFAULT: f64 = 8.0;

/// What the config says of ranks and scales.
pub(super) struct Ranks {
    pub(super) rank: usize,
    pub(super) alpha: f64,
    pub(super) rank_pattern: Map<String, Value>,
    pub(super) alpha_pattern: Map<String, Value>,
    /// The modules whose scale is another by the last bit of a 64-bit float.
    pub(super) rounded: Vec<String>,
}

impl Ranks {
    /// Those of `modules`; `rank_stabilized`: the scale is alpha / sqrt(r).
    pub(super) fn of(modules: &[LoraModule], rank_stabilized: bool) -> Self {
        let divisor = |rank: usize| if rank_stabilized { (rank as f64).sqrt() } else { rank as f64 };
        let alphas: Vec<_> = modules.iter().map(|module| alpha(module.scale, divisor(module.rank))).collect();
        let ranks: Vec<_> = modules.iter().map(|module| module.rank as f64).collect();
        let mut read = Self {
            // A rank is far below where f64 rounds.
            rank: most_common(&ranks).unwrap_or(DEFAULT) as usize,
            alpha: most_common(&alphas).unwrap_or(DEFAULT),
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            rounded: Vec::new(),
        };
        for (module, alpha) in modules.iter().zip(alphas) {
            if module.rank != read.rank {
                read.rank_pattern.insert(pattern(module, modules), json!(module.rank));
            }
            if alpha != read.alpha {
                read.alpha_pattern.insert(pattern(module, modules), number(alpha));
            }
            if alpha / divisor(module.rank) != module.scale {
                read.rounded.push(module.name.clone());
            }
        }
        read
    }
}

/// The alpha that `divisor` makes `scale` of: a whole number where one does, for the product may be off by a rounding.
fn alpha(scale: f64, divisor: f64) -> f64 {
    let product = scale * divisor;
    let near = [product.round(), product, product.next_up(), product.next_down()];
    near.into_iter().find(|alpha| alpha / divisor == scale).unwrap_or(product)
}

/// An expression that, as PEFT matches it, is that of the module alone: at the end of a path, from a segment's start on
/// (`get_pattern_key` in PEFT's `src/peft/utils/other.py`).
fn pattern(module: &LoraModule, modules: &[LoraModule]) -> String {
    let escaped = targets::literal(&module.name);
    let is_end_of =
        |other: &LoraModule| other.name != module.name && targets::ends_with_path(&other.name, &module.name);
    if modules.iter().any(is_end_of) { format!("^{escaped}") } else { escaped }
}

/// A number as JSON: PEFT's are integers, where they are whole.
pub(super) fn number(value: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT { json!(value as i64) } else { json!(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_whole_alpha_is_found_again_from_its_scale() {
        for rank in 1..=256 {
            for whole in 1..=256 {
                for divisor in [f64::from(rank), f64::from(rank).sqrt()] {
                    let found = alpha(f64::from(whole) / divisor, divisor);
                    assert_eq!(found / divisor, f64::from(whole) / divisor, "{whole} / {divisor}");
                    assert_eq!(found, f64::from(whole));
                }
            }
        }
        assert_eq!((number(16.0), number(-2.5), number(1e300)), (json!(16), json!(-2.5), json!(1e300)));
    }

    #[test]
    fn what_most_modules_have_is_the_default_and_the_others_have_patterns() {
        let module = |name: &str, rank: usize, scale| {
            LoraModule::new(name, (rank, 1, 1), vec![1.0; rank], vec![1.0; rank], scale)
        };
        let modules = [module("a.q", 4, 2.0), module("b.a.q", 4, 3.0), module("m.k", 2, 4.0), module("m.v", 2, 1.0)];
        let ranks = Ranks::of(&modules, false);
        assert_eq!((ranks.rank, ranks.alpha), (4, 8.0));
        assert_eq!(Value::Object(ranks.rank_pattern), json!({r"m\.k": 2, r"m\.v": 2}));
        assert_eq!(Value::Object(ranks.alpha_pattern), json!({r"b\.a\.q": 12, r"m\.v": 2}));
        let anchored = Ranks::of(&[modules[0].clone(), modules[1].clone(), modules[1].clone()], false);
        assert_eq!(Value::Object(anchored.alpha_pattern), json!({r"^a\.q": 8}));
        assert_eq!(Ranks::of(&[], true).rank, 8);
    }
}
