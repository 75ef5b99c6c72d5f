//! Which safetensors files are a model's weights.

use llm_local_core::{Error, Result};
use llm_local_weights::ShardIndex;

use super::{
    Folder,
    names::{Part, is_model_weights},
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
        let Some(index) = self.names().find(|n| *n == ShardIndex::FILE) else {
            if let Some(part) = weights.iter().filter_map(|n| Part::of(n)).find(|part| !is_complete(part, &weights)) {
                return Err(self.incomplete(&part, &weights));
            }
            return Ok((!weights.is_empty()).then_some(weights));
        };
        if weights.is_empty() {
            // The shards of an index can be pickles.
            return Ok(None);
        }
        let mut shards = indexed(&weights);
        let incomplete = shards.iter().filter_map(|n| Part::of(n)).find(|part| !is_complete(part, &weights));
        shards.retain(|n| Part::of(n).is_none_or(|part| is_complete(&part, &weights)));
        match (incomplete, shards.is_empty()) {
            (Some(part), true) => Err(self.incomplete(&part, &weights)),
            _ => Ok(Some([index].into_iter().chain(shards).collect())),
        }
    }

    fn incomplete(&self, part: &Part<'_>, weights: &[&str]) -> Error {
        Error::load(
            self.reference,
            format!(
                "the repository has {} of the {} shards of {}; its owner must add the others, or choose another revision",
                count(part, weights),
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

fn is_complete(part: &Part<'_>, names: &[&str]) -> bool {
    count(part, names) == part.of as usize
}

/// How many of `names` are of the set of `part`.
fn count(part: &Part<'_>, names: &[&str]) -> usize {
    names.iter().filter_map(|n| Part::of(n)).filter(|other| part.same_set(other)).count()
}
