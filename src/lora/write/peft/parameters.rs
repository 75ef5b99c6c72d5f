//! Pairs of bare parameters, which PEFT nests.

use std::collections::BTreeMap;

use llm_local_core::LoraModule;

/// Parameters that one module of a model in use has beside others, in the order in which it registers them: PEFT wraps
/// them in that order, each around those before (`_inject_parameters` in PEFT's `src/peft/tuners/tuners_utils.py`).
const REGISTERED: &[&[&str]] = &[
    &["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"],
    &["gate_proj", "up_proj", "down_proj"],
    &["w1", "v1", "w2"],
    &["weight", "bias"],
];

/// The pairs of bare parameters in `modules`, each with the path below which PEFT stores it.
pub(super) fn nested(modules: &[LoraModule]) -> Result<Vec<(String, &LoraModule)>, String> {
    let mut by_module: BTreeMap<&str, Vec<(&str, &LoraModule)>> = BTreeMap::new();
    for module in modules.iter().filter(|module| module.is_parameter) {
        let (path, name) = module
            .name
            .rsplit_once('.')
            .ok_or_else(|| format!("`{}` is a bare parameter of no module (target_parameters)", module.name))?;
        by_module.entry(path).or_default().push((name, module));
    }
    let mut nested = Vec::new();
    for (path, mut parameters) in by_module {
        if modules.iter().any(|module| !module.is_parameter && module.name == path) {
            return Err(format!("`{path}` has a pair, and pairs of its parameters (target_parameters), too"));
        }
        order(path, &mut parameters)?;
        let innermost = parameters.len() - 1;
        for (i, (_, module)) in parameters.into_iter().enumerate() {
            nested.push((format!("{path}{}", ".base_layer".repeat(innermost - i)), module));
        }
    }
    Ok(nested)
}

fn order(path: &str, parameters: &mut [(&str, &LoraModule)]) -> Result<(), String> {
    if parameters.len() == 1 {
        return Ok(());
    }
    let position = |order: &[&str], name: &str| order.iter().position(|known| *known == name);
    let known = REGISTERED.iter().find(|order| parameters.iter().all(|(name, _)| position(order, name).is_some()));
    let Some(order) = known else {
        let names: Vec<_> = parameters.iter().map(|(name, _)| *name).collect();
        return Err(format!(
            "`{path}` has pairs of several bare parameters ({}), which PEFT nests in the order in which the module's code \
             registers them, and that is not known here (target_parameters)",
            names.join(", ")
        ));
    };
    parameters.sort_by_key(|(name, _)| position(order, name));
    Ok(())
}
