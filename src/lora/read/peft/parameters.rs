//! Which bare parameter a pair belongs to: PEFT's keys name only the module, and nest the pairs of several parameters.
//!
//! Source: PEFT `src/peft/tuners/tuners_utils.py`, `_inject_parameters`: the parameters of a module are wrapped in the order
//! in which it registers them, each around those before.

use llm_local_core::lora::DeclaredTargets;

use super::{config::PeftConfig, groups::Group, pair::Path};
use crate::lora::{message::some_of, targets};

/// Parameters that one module of a model in use has beside others, in the order in which it registers them.
///
/// Source: transformers, `src/transformers/models/*/modeling_*.py`: the modules of experts.
const REGISTERED: &[&[&str]] = &[
    &["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"],
    &["gate_proj", "up_proj", "down_proj"],
    &["w1", "v1", "w2"],
    &["weight", "bias"],
];

/// The pairs of `module`, given the outermost first, with what they belong to.
pub(super) fn named<'a>(
    module: &str,
    levels: Vec<Group<'a>>,
    config: &PeftConfig,
) -> Result<Vec<(Path, Group<'a>)>, String> {
    let names = parameters(module, &levels, config)?;
    let nested = || levels[1..].iter().flat_map(|group| group.values()).next().map_or("", |entry| &entry.name);
    if names.is_empty() {
        if levels.len() > 1 {
            return Err(format!(
                "`{}` is nested in another pair, as those of several bare parameters are, but `target_parameters` names none \
                 of `{module}`",
                nested()
            ));
        }
        return Ok(levels.into_iter().map(|group| (Path::Module(module.to_owned()), group)).collect());
    }
    if names.len() != levels.len() {
        return Err(format!(
            "`target_parameters` names {} of `{module}`, which has tensors for {} of them: which belongs to which is not \
             clear",
            some_of(&names),
            levels.len()
        ));
    }
    let names = in_order(module, names)?;
    // The first that is registered is the innermost.
    let named = names.into_iter().rev().map(|name| Path::Parameter(format!("{module}.{name}")));
    Ok(named.zip(levels).collect())
}

/// The last segments of the parameters of `module` that the config names.
fn parameters(module: &str, levels: &[Group<'_>], config: &PeftConfig) -> Result<Vec<String>, String> {
    let DeclaredTargets { parameters, modules, .. } = &config.targets;
    let mut names = Vec::new();
    let with_path = parameters.iter().filter_map(|parameter| parameter.rsplit_once('.'));
    let named = with_path.filter(|(path, _)| targets::ends_with_path(module, path)).count();
    for parameter in parameters {
        let name = match parameter.rsplit_once('.') {
            Some((path, name)) if targets::ends_with_path(module, path) => name,
            Some(_) => continue,
            // A name alone could belong to any module: it does to those that are no target themselves, and have more than what
            // is named with them.
            None if named == levels.len() => continue,
            None => match targets::selects(modules, module)? {
                Some(true) => continue,
                Some(false) => parameter.as_str(),
                None if levels.len() > 1 || is_stacked(module, &levels[0], config)? => parameter.as_str(),
                None => continue,
            },
        };
        if !names.iter().any(|other| other == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Whether the pair is not of the rank that the module would have.
fn is_stacked(module: &str, group: &Group<'_>, config: &PeftConfig) -> Result<bool, String> {
    let (rank, _) = config.rank_and_scale(module)?;
    Ok(group.values().next().is_some_and(|a| a.shape.first() != Some(&rank)))
}

/// `names` in the order in which the module registers them.
fn in_order(module: &str, mut names: Vec<String>) -> Result<Vec<String>, String> {
    if !in_order_of_registration(&mut names, String::as_str) {
        return Err(format!(
            "`target_parameters` names {} of `{module}`: PEFT nests them in the order in which the module's code registers \
             them, which is not known here; train them as adapters of their own",
            some_of(&names)
        ));
    }
    Ok(names)
}

/// Puts `parameters` of one module into the order in which it registers them, by their names. False if that is not known.
pub(in crate::lora) fn in_order_of_registration<T>(parameters: &mut [T], name: impl Fn(&T) -> &str) -> bool {
    if parameters.len() == 1 {
        return true;
    }
    let position = |order: &[&str], one: &T| order.iter().position(|known| *known == name(one));
    let known = REGISTERED.iter().find(|order| parameters.iter().all(|one| position(order, one).is_some()));
    if let Some(order) = known {
        parameters.sort_by_key(|one| position(order, one));
    }
    known.is_some()
}
