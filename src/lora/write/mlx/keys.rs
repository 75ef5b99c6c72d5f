//! `lora_parameters.keys` and `num_layers`.

use std::collections::BTreeSet;

use llm_local_core::{LoraAdapter, lora::ModuleSelector};

use crate::lora::write::order::Base;

/// Which modules mlx-lm puts pairs in, before it loads them.
pub(super) struct Keys {
    pub(super) names: Vec<String>,
    /// Layers counted from the last; -1 for all.
    pub(super) last_layers: i64,
    pub(super) note: Option<String>,
}

impl Keys {
    /// As the adapter declares it, where mlx-lm can say that; else relative to the last layers of the base, if those are the
    /// ones that have pairs; else the whole names of the modules.
    pub(super) fn of(adapter: &LoraAdapter, base: &Base<'_>) -> Self {
        declared(adapter).or_else(|| relative(adapter, base.as_ref()?.as_ref().ok()?.decoder.layers)).unwrap_or_else(
            || {
                Self {
            names: adapter.modules.iter().map(|module| module.name.clone()).collect(),
            last_layers: -1,
            note: Some(
                "`keys` has whole names of modules, which mlx-lm reads and mlx-swift-lm does not: which layers of the \
                 base they are is not known, or they are not all of its last ones"
                    .into(),
            ),
        }
            },
        )
    }
}

/// The layer that the module is of, and its path there.
fn split(module: &str) -> Option<(usize, &str)> {
    let mut rest = module;
    loop {
        let (segment, behind) = rest.split_once('.')?;
        if let Ok(layer) = segment.parse() {
            return Some((layer, behind));
        }
        rest = behind;
    }
}

fn declared(adapter: &LoraAdapter) -> Option<Keys> {
    let declared = adapter.targets.as_ref()?;
    let ModuleSelector::Names(names) = &declared.modules else { return None };
    if declared.exclude.is_some() || !declared.layers.is_empty() || !declared.parameters.is_empty() {
        return None;
    }
    // mlx-lm compares whole paths, where PEFT compares ends.
    let is_named = |name: &str| names.iter().any(|key| key == name);
    let covered = |name: &str| is_named(name) || split(name).is_some_and(|(_, within)| is_named(within));
    let last_layers = declared.last_layers.map_or(Some(-1), |layers| i64::try_from(layers).ok())?;
    let is_covered = adapter.modules.iter().all(|module| covered(&module.name));
    is_covered.then(|| Keys { names: names.clone(), last_layers, note: None })
}

fn relative(adapter: &LoraAdapter, layers: usize) -> Option<Keys> {
    let found: BTreeSet<_> = adapter.modules.iter().filter_map(|module| split(&module.name)).collect();
    let first = found.first()?.0;
    let within: BTreeSet<_> = found.iter().map(|(_, name)| *name).collect();
    let all = (first..layers).all(|layer| within.iter().all(|name| found.contains(&(layer, *name))));
    if !all || found.iter().any(|(layer, _)| *layer >= layers) {
        return None;
    }
    let of_no_layer = adapter.modules.iter().filter(|module| split(&module.name).is_none()).map(|m| m.name.clone());
    let names = within.into_iter().map(str::to_owned).chain(of_no_layer).collect();
    Some(Keys { names, last_layers: i64::try_from(layers - first).ok()?, note: None })
}
