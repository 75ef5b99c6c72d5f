//! The tensors of a PEFT file, put together by module.

use std::collections::BTreeMap;

use llm_local_core::TensorEntry;

use super::keys::Part;

/// The tensors of one pair.
pub(super) type Group<'a> = BTreeMap<Part, &'a TensorEntry>;

/// The tensors of pairs, by module and by how deep they are nested there.
#[derive(Debug, Default)]
pub(super) struct Groups<'a> {
    groups: BTreeMap<&'a str, BTreeMap<usize, Group<'a>>>,
}

impl<'a> Groups<'a> {
    /// Adds a tensor; the error is that it is there already.
    pub(super) fn add(
        &mut self,
        module: &'a str,
        depth: usize,
        part: Part,
        entry: &'a TensorEntry,
    ) -> Result<(), String> {
        let group = self.groups.entry(module).or_default().entry(depth).or_default();
        match group.insert(part, entry) {
            None => Ok(()),
            Some(other) => Err(format!("`{}` and `{}` are the same factor of one module", other.name, entry.name)),
        }
    }

    /// The pairs of each module, the outermost first. The error names one that is nested in nothing.
    pub(super) fn by_module(self) -> Result<Vec<(&'a str, Vec<Group<'a>>)>, String> {
        let levels = |(module, levels): (&'a str, BTreeMap<usize, Group<'a>>)| {
            if let Some((missing, (_, group))) = levels.iter().enumerate().find(|(i, (depth, _))| i != *depth) {
                let nested = group.values().next().map_or("", |entry| &entry.name);
                let outer = format!("{module}{}", ".base_layer".repeat(missing));
                return Err(format!("`{nested}` is nested in `{outer}`, which has no `lora_A` and `lora_B`"));
            }
            Ok((module, levels.into_values().collect()))
        };
        self.groups.into_iter().map(levels).collect()
    }
}
