//! Which GGUF file is meant.

use llm_local_core::{Error, Result};

use super::{
    Folder, LISTED,
    names::{Part, is_beside_model},
};
use llm_local_weights::{GGUF_TEXT_FILES, is_gguf};

use crate::reference::Gguf;

/// A GGUF model: one file, or the parts of a split one.
#[derive(Debug)]
pub(super) struct Unit<'a> {
    /// Paths below the folder.
    parts: Vec<&'a str>,
    /// Bytes of all parts.
    size: u64,
}

impl<'a> Unit<'a> {
    /// The path of the file, of the first part of a split one.
    pub(super) fn path(&self) -> &'a str {
        self.parts[0]
    }

    fn is_split(&self) -> bool {
        Part::of(self.path()).is_some_and(|part| part.of > 1)
    }
}

impl<'a> Folder<'a> {
    /// The GGUF models in the folder and below it.
    pub(super) fn ggufs(&self) -> Vec<Unit<'a>> {
        let mut units: Vec<Unit<'a>> = Vec::new();
        for (path, file) in self.files.iter().filter(|(path, _)| is_gguf(path) && !is_beside_model(path)) {
            let part = Part::of(path);
            let same = |unit: &Unit<'_>| match (&part, Part::of(unit.path())) {
                (Some(part), Some(other)) => part.set() == other.set(),
                _ => false,
            };
            match units.iter_mut().find(|unit| same(unit)) {
                Some(unit) => {
                    unit.parts.push(path);
                    unit.size += file.size;
                }
                None => units.push(Unit { parts: vec![path], size: file.size }),
            }
        }
        for unit in &mut units {
            unit.parts.sort_unstable();
        }
        units
    }

    /// The one that `asked` means.
    pub(super) fn asked_gguf(&self, asked: &Gguf) -> Result<&'a str> {
        match asked {
            Gguf::Path(path) => {
                let Some((path, file)) = self.files.iter().find(|(p, _)| p == path) else {
                    return Err(self.no_gguf(&format!("GGUF file `{path}`")));
                };
                self.whole_gguf(&Unit { parts: vec![path], size: file.size })
            }
            Gguf::Tag(tag) => match &self.tagged(tag)[..] {
                [] => Err(self.no_gguf(&format!("GGUF file with `{tag}` in its name"))),
                [unit] => self.whole_gguf(unit),
                several => Err(self.several_ggufs(several, &format!(" with `{tag}` in the name"))),
            },
        }
    }

    /// The only one of `units`, which are not none.
    pub(super) fn only_gguf(&self, units: &[Unit<'a>]) -> Result<&'a str> {
        match units {
            [unit] => self.whole_gguf(unit),
            several => Err(self.several_ggufs(several, "")),
        }
    }

    /// The model `gguf` with the texts beside it, whether it was asked for or is the only one: a name must not change what a
    /// model is told. Texts in another folder may be those of another model.
    pub(super) fn with_texts(&self, gguf: &'a str) -> Vec<&'a str> {
        let texts = self.names().filter(|name| !gguf.contains('/') && GGUF_TEXT_FILES.contains(name));
        [gguf].into_iter().chain(texts).collect()
    }

    /// Those whose path holds `tag`, whatever its case, between `-`, `.`, `/` and the ends; or, if there are none, between
    /// those and `_`. So `Q4_K` is that one file, or else all of `Q4_K_S` and `Q4_K_M`.
    pub(super) fn tagged(&self, tag: &str) -> Vec<Unit<'a>> {
        let with = |bounds: &[char]| -> Vec<Unit<'a>> {
            self.ggufs().into_iter().filter(|unit| holds(unit.path(), tag, bounds)).collect()
        };
        let exact = with(&['-', '.', '/']);
        if exact.is_empty() { with(&['-', '.', '/', '_']) } else { exact }
    }

    /// The path of `unit`, unless it is split.
    fn whole_gguf(&self, unit: &Unit<'a>) -> Result<&'a str> {
        if !unit.is_split() {
            return Ok(unit.path());
        }
        let whole: Vec<_> = self.ggufs().into_iter().filter(|other| !other.is_split()).collect();
        let hint = if whole.is_empty() {
            "; take another repository, or join the parts with `llama-gguf-split --merge` and give the path of the file"
                .to_owned()
        } else {
            format!("; these are whole: {}", self.named(&whole))
        };
        Err(Error::unsupported_format(
            self.reference,
            format!("`{}` is one part of a split GGUF model, which is not read{hint}", unit.path()),
        ))
    }

    fn no_gguf(&self, what: &str) -> Error {
        let units = self.ggufs();
        let hint = if units.is_empty() {
            "; it has no GGUF files".to_owned()
        } else {
            format!("; these are there: {}", self.named(&units))
        };
        Error::not_found(self.reference, format!("the repository has no {what}{hint}"))
    }

    fn several_ggufs(&self, units: &[Unit<'_>], which: &str) -> Error {
        let reason = format!("it has {} GGUF files{which}; name one of them: {}", units.len(), self.named(units));
        Error::load(self.reference, reason)
    }

    /// Each with its size and how to name it.
    fn named(&self, units: &[Unit<'_>]) -> String {
        let name = |unit: &Unit<'_>| match unit.is_split() {
            true => format!("{} ({}, split, not read)", unit.path(), gigabytes(unit.size)),
            false => format!("{} ({})", self.at.with_gguf(unit.path()), gigabytes(unit.size)),
        };
        let shown = units.iter().take(LISTED).map(name).collect::<Vec<_>>().join(", ");
        match units.len().saturating_sub(LISTED) {
            0 => shown,
            more => format!("{shown} and {more} more"),
        }
    }
}

/// Whether `path` holds `tag`, whatever its case, with nothing but `bounds` and the path's ends around it.
fn holds(path: &str, tag: &str, bounds: &[char]) -> bool {
    let (path, tag) = (path.to_ascii_lowercase(), tag.to_ascii_lowercase());
    path.match_indices(&tag).any(|(at, _)| {
        let (before, after) = (&path[..at], &path[at + tag.len()..]);
        (before.is_empty() || before.ends_with(bounds)) && (after.is_empty() || after.starts_with(bounds))
    })
}

/// `bytes` as people read them.
fn gigabytes(bytes: u64) -> String {
    // Too large by less than 10^-9 of it is exact enough to choose by.
    match bytes as f64 {
        b if b >= 1e9 => format!("{:.1} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b => format!("{b} bytes"),
    }
}
