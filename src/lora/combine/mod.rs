//! Several adapters combined into one, as PEFT's `add_weighted_adapter` does.
//!
//! | module | what it holds |
//! |---|---|
//! | `check` | which adapters can be combined |
//! | `order` | the order in which random numbers are drawn |
//! | `parts` | what a combination consists of |
//! | `pair` | a module's factors as PEFT has them |
//! | `factors` | combinations of A and B |
//! | `deltas` | combinations of whole deltas, cut to a rank |
//! | `arithmetic` | several tensors of one shape into one |
//! | `largest` | which values `torch.topk` chooses |
//! | `random` | the random numbers of torch |
//! | `result` | the adapter that comes out |

mod arithmetic;
mod check;
mod deltas;
mod factors;
mod largest;
mod order;
mod pair;
mod parts;
mod random;
mod result;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use llm_local_core::{Error, LoraAdapter, LoraModule, Result, lora::Combination};
use rayon::prelude::*;

pub(crate) use order::check_order;
pub use order::module_order;

use super::outline::{AdapterOutline, ModuleOutline};
use order::Visit;
use pair::Pair;
use parts::Parts;

/// Combines adapters, each with its weight, into one whose pairs have a scale of 1: merged with a weight of 1 it does what
/// they do together. Equal to PEFT's `add_weighted_adapter` (0.21.2) on a CPU under Linux, called right after
/// `torch.manual_seed` where it is random.
///
/// - A module that only some adapters have is combined of those, and one adapter alone is combined as
///   [`Combination::Linear`], whatever was asked, both as in PEFT.
/// - [`Combination::Sum`] gives what [`Combination::Cat`] gives. A merge needs no combination for it, and can sum what cannot
///   be combined.
/// - Adapters of plain low-rank pairs can be combined, whatever their scales, ranks (where the combination allows it) and
///   formats. Refused by name: DoRA, `lora_bias`, experts, `target_parameters`, `modules_to_save`, `bias`,
///   `trainable_token_indices`, `ensure_weight_tying`, and GGUF adapters together with others. (PEFT refuses
///   `target_parameters`, and `modules_to_save` of one module twice; it silently loses the others.)
/// - `order` is needed for random combinations alone: the names of the base's modules in the order of transformers'
///   `model.named_modules`, such as [`module_order`] gives, in which PEFT draws its random numbers. It may name modules
///   that no adapter has. Rows that are stored in GGUF's order are drawn for in that order.
///
/// Two things PEFT does otherwise. Where the first adapter is of rsLoRA, PEFT multiplies the combined delta with the root
/// of its rank, because it keeps `use_rslora` for the new adapter but not its alpha: here the scale is 1, as everywhere. And where the
/// first adapter is confined to some layers, PEFT leaves the others' modules in other layers out: here they are in.
///
/// # Errors
/// [`Error::InvalidSpec`] for a combination that cannot mean anything and for no adapters; [`Error::AdapterMergeFailed`] for an
/// adapter that cannot be combined, for a random combination of a module that is not in `order`, and for a result that is
/// not finite.
pub fn combine(
    adapters: &[(Arc<LoraAdapter>, f32)],
    combination: &Combination,
    order: &[impl AsRef<str>],
) -> Result<LoraAdapter> {
    combine_left(adapters, adapters.len(), combination, order)
}

/// As [`combine()`], of those that are left of `asked` adapters: one that is left of several is combined as they would be.
///
/// # Errors
/// As [`combine()`].
pub(crate) fn combine_left(
    adapters: &[(Arc<LoraAdapter>, f32)],
    asked: usize,
    combination: &Combination,
    order: &[impl AsRef<str>],
) -> Result<LoraAdapter> {
    combination.validate()?;
    let effective = effective(combination, asked);
    let parts = Parts::of(&effective);
    let by_module = check::pairs_by_module(adapters, combination)?;
    let visits = order::visits(by_module, parts, adapters, order)?;
    let default_rank = order::largest_rank(adapters);
    let modules =
        visits.into_par_iter().map(|visit| combine_module(visit, parts, default_rank)).collect::<Result<_, _>>();
    let modules = modules.map_err(|reason| {
        let named = adapters.iter().map(|(adapter, weight)| (&*adapter.reference, *weight));
        Error::adapter(result::reference(named, combination), reason)
    })?;
    Ok(result::adapter(adapters, (combination, &effective), modules))
}

/// The outline of what [`combine_left`] makes of adapters with these outlines, which are left of `asked`.
///
/// # Errors
/// As [`combine()`], as far as they can be told without values and without the order of modules.
pub(crate) fn combined_outline(
    adapters: &[(AdapterOutline, f32)],
    asked: usize,
    combination: &Combination,
) -> Result<AdapterOutline> {
    combination.validate()?;
    let parts = Parts::of(&effective(combination, asked));
    let by_module = check::check_outlines(adapters, combination)?;
    let largest = adapters.iter().flat_map(|(adapter, _)| &adapter.modules).map(|module| module.rank).max();
    let module = |pairs: Vec<&ModuleOutline>| {
        let (like, sum) = (pairs[0], pairs.iter().map(|module| module.rank).sum::<usize>());
        let rank = match (parts.arithmetic, parts.truncation) {
            (None, _) => sum,
            (Some(_), None) => like.rank,
            (Some(arithmetic), Some(truncation)) => {
                let asked = truncation.rank.or(largest).unwrap_or(0);
                let most = asked.min(like.in_features).min(like.out_features);
                // Of their plain sum there are no more triples than ranks.
                if arithmetic.is_sum() { most.min(sum) } else { most }
            }
        };
        ModuleOutline { rank, scale: 1.0, ..like.clone() }
    };
    Ok(result::outline(adapters, combination, by_module.into_values().map(module).collect()))
}

/// What `count` adapters are combined by where `combination` is asked for.
fn effective(combination: &Combination, count: usize) -> Combination {
    match (combination, count) {
        (Combination::Sum, _) => Combination::Cat,
        (_, 1) => Combination::Linear,
        _ => *combination,
    }
}

fn combine_module(visit: Visit<'_>, parts: Parts, default_rank: usize) -> Result<LoraModule, String> {
    let (pairs, mut random) = visit;
    let like = pairs[0].0;
    let weighted: Vec<_> = pairs.iter().map(|(module, weight)| (Pair::of(module), *weight, module.scale)).collect();
    let pair = match (parts.arithmetic, parts.truncation) {
        (None, _) => factors::concatenate(&weighted),
        (Some(arithmetic), None) => factors::combine_factors(weighted, arithmetic, random.as_mut()),
        (Some(arithmetic), Some(truncation)) => {
            let rank = truncation.rank.unwrap_or(default_rank);
            let by_columns = pair::is_transposed(like);
            deltas::combine_deltas(&weighted, by_columns, arithmetic, rank, truncation.clamp, random.as_mut())
                .map_err(|error| format!("the singular value decomposition of `{}` failed: {error:?}", like.name))?
        }
    };
    if let Some(value) = pair.a.iter().chain(&pair.b).find(|value| !value.is_finite()) {
        return Err(format!(
            "the pair of `{}` combined holds {value}; expected finite numbers: lower the weights",
            like.name
        ));
    }
    Ok(pair.into_module(like))
}
