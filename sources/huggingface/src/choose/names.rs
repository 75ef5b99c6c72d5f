//! What the names of files say.

use std::collections::{HashMap, HashSet, hash_map::Entry};

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

/// Stem, number of parts, and extension.
pub(super) type SetName<'a> = (&'a str, u32, &'a str);

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

    /// What all of its set have in common.
    pub(super) fn set(&self) -> SetName<'a> {
        (self.stem, self.of, self.extension)
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
    let there: HashSet<&str> = repository.iter().map(|f| f.path.as_str()).collect();
    // The lowest number of each set says how numbers are written.
    let mut sets: HashMap<SetName<'_>, Part<'_>> = HashMap::new();
    // A name that promises a million of them is no model's.
    for part in repository.iter().filter_map(|f| Part::of(&f.path)).filter(|part| part.of <= 10_000) {
        match sets.entry(part.set()) {
            Entry::Occupied(first) if first.get().at <= part.at => {}
            entry => drop(entry.insert_entry(part)),
        }
    }
    let names = sets.values().flat_map(|part| (1..=part.of).map(move |at| part.name(at)));
    let mut promised: Vec<String> = names.filter(|path| !there.contains(path.as_str())).collect();
    promised.sort_unstable();
    promised
}

/// Whether a file of this path holds weights in any format.
pub(crate) fn holds_weights(path: &str) -> bool {
    is_safetensors(path) || is_gguf(path) || path.ends_with(ShardIndex::FILE) || is_pickle(path)
}

/// Whether a file of this path holds weights of a model in safetensors, with the names that transformers uses.
pub(super) fn is_model_weights(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
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
