//! What the names of files say.

use llm_local_weights::{ShardIndex, is_adapter_file, is_gguf, is_pickle, is_safetensors};

use crate::tree::RepoFile;

/// A name `<stem>-00001-of-00003.<extension>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub(super) stem: &'a str,
    /// Which one it is, from 1.
    pub(super) at: u32,
    /// How many there are.
    pub(super) of: u32,
    /// Digits in the numbers.
    width: (usize, usize),
    extension: &'a str,
}

impl<'a> Part<'a> {
    /// What `name` says, if it is such a name.
    pub(super) fn of(name: &'a str) -> Option<Self> {
        let (rest, extension) = name.rsplit_once('.')?;
        let (rest, of) = rest.rsplit_once("-of-")?;
        let (stem, at) = rest.rsplit_once('-')?;
        let number = |s: &str| s.bytes().all(|b| b.is_ascii_digit()).then(|| s.parse::<u32>().ok()).flatten();
        let part = Self { stem, at: number(at)?, of: number(of)?, width: (at.len(), of.len()), extension };
        (1..=part.of).contains(&part.at).then_some(part)
    }

    /// Whether `other` is of the same set.
    pub(super) fn same_set(&self, other: &Self) -> bool {
        (self.stem, self.of, self.extension) == (other.stem, other.of, other.extension)
    }

    /// The name of the one of its set that is number `at`.
    fn name(&self, at: u32) -> String {
        let (first, second) = self.width;
        format!("{}-{at:0first$}-of-{:0second$}.{}", self.stem, self.of, self.extension)
    }
}

/// The shards that the files in `repository` say there are, and that are not among them: the other numbers of
/// `-00001-of-00003`.
pub(crate) fn promised_shards(repository: &[RepoFile]) -> Vec<String> {
    let has = |path: &str| repository.iter().any(|f| f.path == path);
    let mut promised: Vec<String> = repository
        .iter()
        .filter_map(|f| Part::of(&f.path))
        // A name that promises a million of them is no model's.
        .filter(|part| part.of <= 10_000 && part.at == first(part, repository))
        .flat_map(|part| (1..=part.of).map(move |at| part.name(at)))
        .filter(|path| !has(path))
        .collect();
    promised.sort_unstable();
    promised.dedup();
    promised
}

/// The lowest number of the set that is there.
fn first(part: &Part<'_>, repository: &[RepoFile]) -> u32 {
    let same = repository.iter().filter_map(|f| Part::of(&f.path)).filter(|other| part.same_set(other));
    same.map(|other| other.at).min().unwrap_or(part.at)
}

/// Whether a file of this path holds weights in any format.
pub(crate) fn holds_weights(path: &str) -> bool {
    is_safetensors(path) || is_gguf(path) || path.ends_with(ShardIndex::FILE) || is_pickle(path)
}

/// Whether a file of this name holds weights of a model in safetensors, with the names that transformers uses.
pub(super) fn is_model_weights(name: &str) -> bool {
    is_safetensors(name) && !is_adapter_file(name) && !is_original_layout(name)
}

/// Whether a file of this name holds weights as their maker's own code names them (Mistral's `consolidated`). They stand
/// beside those of transformers, and are not read.
pub(super) fn is_original_layout(name: &str) -> bool {
    name.starts_with("consolidated") && is_safetensors(name)
}

/// Whether a GGUF file of this name goes with a model and is none: a projector of images, an importance matrix.
pub(super) fn is_beside_model(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    ["mmproj", "imatrix"].iter().any(|word| name.contains(word))
}
