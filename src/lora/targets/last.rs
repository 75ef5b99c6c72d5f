//! Layers counted from the base's last one.

use std::collections::BTreeMap;

/// The last layers of each stack of a base: paths with numbers after one prefix, such as `model.layers.0`.
pub(super) struct LastLayers {
    count: usize,
    /// How many layers a stack has, by its prefix.
    stacks: BTreeMap<String, usize>,
}

impl LastLayers {
    /// The last `count` layers of each stack that `modules` are in.
    pub(super) fn new<'a>(count: usize, modules: impl Iterator<Item = &'a str>) -> Self {
        let mut stacks = BTreeMap::new();
        for (stack, layer) in modules.filter_map(split) {
            let layers: &mut usize = stacks.entry(stack.to_owned()).or_default();
            *layers = (*layers).max(layer + 1);
        }
        Self { count, stacks }
    }

    /// Whether `module` is in one of them, or in no layer.
    pub(super) fn holds(&self, module: &str) -> bool {
        let Some((stack, layer)) = split(module) else { return true };
        let layers = self.stacks.get(stack).copied().unwrap_or(0);
        layer.saturating_add(self.count) >= layers
    }
}

/// The path before the first number, which is the layer's index, and that number.
fn split(module: &str) -> Option<(&str, usize)> {
    let mut start = 0;
    for segment in module.split('.') {
        if let (1.., Ok(layer)) = (start, segment.parse()) {
            return Some((&module[..start - 1], layer));
        }
        start += segment.len() + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_from_the_last_of_their_own_stack() {
        let modules = ["model.layers.0.q", "model.layers.3.mlp.experts.7.up", "vision.blocks.1.q", "lm_head"];
        let last = LastLayers::new(2, modules.into_iter());
        for (module, held) in [
            ("model.layers.1.q", false),
            ("model.layers.2.mlp.experts.0.up", true),
            ("model.layers.3.q", true),
            ("vision.blocks.0.q", true),
            ("lm_head", true),
            ("norm.weight", true),
        ] {
            assert_eq!(last.holds(module), held, "{module}");
        }
        assert!(LastLayers::new(usize::MAX, modules.into_iter()).holds("model.layers.0.q"));
    }
}
