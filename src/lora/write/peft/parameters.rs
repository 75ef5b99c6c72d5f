//! Pairs of bare parameters, which PEFT nests.

use std::collections::BTreeMap;

use llm_local_core::LoraModule;

use crate::lora::read::in_order_of_registration;

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

/// Source: PEFT `src/peft/tuners/tuners_utils.py`, `_inject_parameters`: each is wrapped around those before.
fn order(path: &str, parameters: &mut [(&str, &LoraModule)]) -> Result<(), String> {
    if in_order_of_registration(parameters, |(name, _)| name) {
        return Ok(());
    }
    let names: Vec<_> = parameters.iter().map(|(name, _)| *name).collect();
    Err(format!(
        "`{path}` has pairs of several bare parameters ({}), which PEFT nests in the order in which the module's code \
         registers them, and that is not known here (target_parameters)",
        names.join(", ")
    ))
}
