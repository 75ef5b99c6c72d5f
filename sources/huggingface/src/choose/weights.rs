//! Which safetensors files are a model's weights.

use std::collections::HashMap;

use llm_local_core::{Error, Result};
use llm_local_weights::ShardIndex;

use super::{
    Folder,
    names::{Part, SetName, is_model_weights},
};

/// The one file of a checkpoint that is not sharded.
const SINGLE: &str = "model.safetensors";

impl<'a> Folder<'a> {
    /// The safetensors files that are the weights of a model, with their index; `None` if there are none.
    ///
    /// `model.safetensors` counts first, as in transformers; then the shards that go with the index, which is not read
    /// yet, so that all of its name count; then all there are.
    pub(super) fn safetensors(&self) -> Result<Option<Vec<&'a str>>> {
        if let Some(single) = self.names().find(|n| *n == SINGLE) {
            return Ok(Some(vec![single]));
        }
        let weights: Vec<_> = self.names().filter(|n| is_model_weights(n)).collect();
        let sets = Sets::of(&weights);
        let Some(index) = self.names().find(|n| *n == ShardIndex::FILE) else {
            if let Some(part) = weights.iter().filter_map(|n| Part::of(n)).find(|part| !sets.has_all(part)) {
                return Err(self.incomplete(&part, &sets));
            }
            return Ok((!weights.is_empty()).then_some(weights));
        };
        if weights.is_empty() {
            // The shards of an index can be pickles.
            return Ok(None);
        }
        let mut shards = indexed(&weights);
        let incomplete = shards.iter().filter_map(|n| Part::of(n)).find(|part| !sets.has_all(part));
        shards.retain(|n| Part::of(n).is_none_or(|part| sets.has_all(&part)));
        match (incomplete, shards.is_empty()) {
            (Some(part), true) => Err(self.incomplete(&part, &sets)),
            _ => Ok(Some([index].into_iter().chain(shards).collect())),
        }
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

/// Those of `weights` that an index `model.safetensors.index.json` can mean: shards of `model`, else shards of
/// `model<something>`, else all.
fn indexed<'a>(weights: &[&'a str]) -> Vec<&'a str> {
    let of_stem = |is: fn(&str) -> bool| -> Vec<&'a str> {
        weights.iter().copied().filter(|n| Part::of(n).is_some_and(|part| is(part.stem))).collect()
    };
    [of_stem(|stem| stem == "model"), of_stem(|stem| stem.starts_with("model"))]
        .into_iter()
        .find(|shards| !shards.is_empty())
        .unwrap_or_else(|| weights.to_vec())
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
