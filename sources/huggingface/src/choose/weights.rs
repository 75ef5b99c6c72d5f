//! Which safetensors files are a model's weights.

use std::collections::{HashMap, HashSet};

use llm_local_core::{Error, Result};
use llm_local_weights::ShardIndex;

use super::{
    Folder,
    names::{Part, SetName, is_model_weights},
};

/// The one file of a checkpoint that is not sharded.
const SINGLE: &str = "model.safetensors";

/// Safetensors weights of a model, as far as names tell.
pub(super) enum Safetensors<'a> {
    /// These files, all in the folder itself, and the index if there is one.
    Named(Vec<&'a str>),
    /// Those that this index names, which names of files do not tell.
    Indexed(&'a str),
}

impl<'a> Folder<'a> {
    /// The safetensors weights of a model; `None` if there are none.
    ///
    /// `model.safetensors` counts first, as in transformers; then what the index names; without one, all there are. An index
    /// can have megabytes, and a model that cannot be run shall cost its config alone: it is left to be read only where more
    /// than one set of shards could be meant.
    pub(super) fn safetensors(&self) -> Result<Option<Safetensors<'a>>> {
        if let Some(single) = self.names().find(|n| *n == SINGLE) {
            return Ok(Some(Safetensors::Named(vec![single])));
        }
        if let Some(index) = self.names().find(|n| *n == ShardIndex::FILE) {
            // One that was left behind beside weights of another format means nothing.
            let is_left_behind = !self.files.iter().any(|(path, _)| is_model_weights(path))
                && (self.pickle().is_some() || !self.ggufs().is_empty());
            return Ok((!is_left_behind).then(|| match self.only_shards() {
                Some(mut shards) => {
                    shards.push(index);
                    Safetensors::Named(shards)
                }
                None => Safetensors::Indexed(index),
            }));
        }
        let weights: Vec<_> = self.names().filter(|n| is_model_weights(n)).collect();
        let sets = Sets::of(&weights);
        match weights.iter().filter_map(|n| Part::of(n)).find(|part| !sets.has_all(part)) {
            Some(part) => Err(self.incomplete(&part, &sets)),
            None => Ok((!weights.is_empty()).then_some(Safetensors::Named(weights))),
        }
    }

    /// The one set of numbered shards in the folder that is whole, if an index can name nothing but these: no other weights
    /// are in the folder or below it.
    fn only_shards(&self) -> Option<Vec<&'a str>> {
        let weights: Vec<_> = self.files.iter().map(|(path, _)| *path).filter(|path| is_model_weights(path)).collect();
        let parts: Vec<_> = weights.iter().map(|path| Part::of(path)).collect::<Option<_>>()?;
        let first = parts.first()?;
        let is_one_set = parts.iter().all(|part| part.set() == first.set()) && !first.stem.contains('/');
        let numbers: HashSet<u32> = parts.iter().map(|part| part.at).collect();
        let is_whole = numbers.len() == parts.len() && parts.len() == first.of as usize;
        (is_one_set && is_whole).then_some(weights)
    }

    /// Whether anything in the folder is of a model's safetensors weights.
    pub(super) fn has_safetensors(&self) -> bool {
        self.names().any(|n| n == ShardIndex::FILE || is_model_weights(n))
    }

    fn incomplete(&self, part: &Part<'_>, sets: &Sets<'_>) -> Error {
        Error::load(
            self.reference,
            format!(
                "the repository has {} of the {} shards of {}; its owner must add the others, or choose another revision",
                sets.count(part),
                part.of,
                part.stem
            ),
        )
    }
}

/// How many shards there are of each set.
struct Sets<'a>(HashMap<SetName<'a>, usize>);

impl<'a> Sets<'a> {
    fn of(names: &[&'a str]) -> Self {
        let mut counts = HashMap::new();
        for part in names.iter().filter_map(|n| Part::of(n)) {
            *counts.entry(part.set()).or_default() += 1;
        }
        Self(counts)
    }

    fn count(&self, part: &Part<'a>) -> usize {
        self.0.get(&part.set()).copied().unwrap_or_default()
    }

    fn has_all(&self, part: &Part<'a>) -> bool {
        self.count(part) == part.of as usize
    }
}
