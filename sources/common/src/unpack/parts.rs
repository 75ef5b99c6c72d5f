//! Which names are parts of one file.

use std::collections::BTreeMap;

use llm_local_core::{Error, Result};

/// Endings of what is worth being split: weights and archives. So `libm.so.6` and `git.1` are no parts.
const SPLIT: [&str; 8] = [".safetensors", ".gguf", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"];

/// Words that say that a name is one of a part.
const WORDS: [&str; 3] = ["part", "split", "p"];

/// A file in numbered parts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parts {
    /// The name of the file that the parts are together.
    pub name: String,
    /// The names of the parts, in order.
    pub parts: Vec<String>,
    /// What is wrong with them.
    flaw: Option<String>,
}

impl Parts {
    /// Says which part is missing, if one is, or which are there twice. That the last ones are missing can be known only
    /// where the names say how many there are (`part1of3`).
    ///
    /// # Errors
    /// [`Error::NotFound`] that names the part.
    pub fn check(&self) -> Result<()> {
        match &self.flaw {
            Some(flaw) => Err(Error::not_found(format!("a part of `{}`", self.name), flaw)),
            None => Ok(()),
        }
    }
}

/// Finds files in numbered parts among `names`, sorted by the name of the whole. Known are, behind the name of a file of
/// weights or an archive:
///
/// | made by | names |
/// |---|---|
/// | 7-Zip, and `split -d` | `.001`, `.00`, `.1` |
/// | `split` | `.aa`, `aa`, `-aa` |
/// | people | `.part1`, `-part-01`, `.part_aa`, `-split-a`, `.p1`, `.part1of3` |
///
/// Numbers begin with 0 or 1, letters with `a`. Shards (`model-00001-of-00003.safetensors`) are files of their own, and no
/// parts.
pub fn split_parts(names: &[&str]) -> Vec<Parts> {
    let mut groups: BTreeMap<(&str, Scheme), Vec<Part<'_>>> = BTreeMap::new();
    for name in names {
        if let Some((whole, scheme, part)) = part(name) {
            groups.entry((whole, scheme)).or_default().push(part);
        }
    }
    groups.into_iter().filter_map(|((whole, scheme), parts)| scheme.order(whole, parts)).collect()
}

/// How parts of one file are named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Scheme {
    /// What stands between the name of the whole and the number.
    before: String,
    /// Whether it is `aa` and not `01`.
    letters: bool,
    /// How many letters the number has. Digits may be more from one part to the next.
    width: usize,
    /// What stands behind the number (`of3`), and the number in it.
    of: Option<(String, u64)>,
}

#[derive(Debug)]
struct Part<'a> {
    number: u64,
    digits: usize,
    name: &'a str,
}

/// The name of the whole, how its parts are named, and which this is; none if `name` is that of no part.
fn part(name: &str) -> Option<(&str, Scheme, Part<'_>)> {
    let lower = name.to_ascii_lowercase();
    // The longest of them, so that `x.tar.gz` is not the part `gz` of `x.tar`.
    let ends = SPLIT.iter().filter_map(|ending| lower.rfind(ending).map(|at| at + ending.len()));
    let end = ends.max().filter(|end| *end < name.len())?;
    let (whole, tail) = name.split_at(end);
    let separator = |text: &str| usize::from(text.starts_with(['.', '-', '_']));
    let mut number = separator(tail);
    let separated = number > 0;
    let word = WORDS.iter().find(|word| lower[end + number..].starts_with(*word));
    if let Some(word) = word {
        number += word.len();
        number += separator(&tail[number..]);
    }
    let (before, rest) = tail.split_at(number);
    let letters = rest.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_of_number = |c: char| if letters { c.is_ascii_alphabetic() } else { c.is_ascii_digit() };
    let (number, of) = rest.split_at(rest.find(|c| !is_of_number(c)).unwrap_or(rest.len()));
    let of = match of {
        "" => None,
        _ => Some((of.to_owned(), total(of).filter(|_| word.is_some() && !letters)?)),
    };
    // Without a word, be sure that it is no extension: two letters, or a number behind a separator.
    let is_plausible = match (letters, word) {
        (true, Some(_)) => (1..=3).contains(&number.len()),
        (true, None) => number.len() == 2,
        (false, Some(_)) => (1..=5).contains(&number.len()),
        (false, None) => separated && (1..=5).contains(&number.len()),
    };
    let value = is_plausible.then(|| value(number, letters))??;
    let scheme = Scheme { before: before.to_owned(), letters, width: if letters { number.len() } else { 0 }, of };
    Some((whole, scheme, Part { number: value, digits: number.len(), name }))
}

/// The number in `of3`, `-of-03` or `_of_3`.
fn total(text: &str) -> Option<u64> {
    let number = text.trim_start_matches(['-', '_']).strip_prefix("of")?.trim_start_matches(['-', '_']);
    number.parse().ok().filter(|total| (1..=100_000).contains(total))
}

fn value(number: &str, letters: bool) -> Option<u64> {
    if !letters {
        return number.parse().ok();
    }
    number.bytes().try_fold(0, |value, byte| byte.is_ascii_lowercase().then(|| value * 26 + u64::from(byte - b'a')))
}

impl Scheme {
    /// The parts in order; none if they are no parts after all.
    fn order(&self, whole: &str, mut parts: Vec<Part<'_>>) -> Option<Parts> {
        parts.sort_by_key(|part| part.number);
        let (first, last) = (parts.first()?.number, parts.last()?.number);
        let is_worded = self.before.len() > 1;
        // `x.zip.md` is the part of nothing, where there is no `x.zip.aa`.
        if self.letters && !is_worded && first != 0 {
            return None;
        }
        let start = if self.letters { 0 } else { first.min(1) };
        let end = self.of.as_ref().map_or(last, |(_, total)| (start + total - 1).max(last));
        let digits = parts.iter().map(|part| part.digits).min()?;
        let twice = parts.windows(2).find(|pair| pair[0].number == pair[1].number);
        let missing = (start..=end).zip(0..).find(|(number, at)| parts.get(*at).is_none_or(|p| p.number != *number));
        let flaw = match (twice, missing, &self.of) {
            (Some(pair), ..) => Some(format!("`{}` and `{}` are the same part", pair[0].name, pair[1].name)),
            (_, _, Some((_, total))) if last >= start + total => {
                Some(format!("`{}` is one more than its name says", parts.last()?.name))
            }
            (_, Some((number, _)), _) => {
                let there: Vec<_> = parts.iter().take(5).map(|part| format!("`{}`", part.name)).collect();
                let more = if parts.len() > there.len() { ", ..." } else { "" };
                Some(format!("`{}` is missing beside {}{more}", self.name(whole, number, digits), there.join(", ")))
            }
            _ => None,
        };
        let parts = parts.into_iter().map(|part| part.name.to_owned()).collect();
        Some(Parts { name: whole.to_owned(), parts, flaw })
    }

    /// The name of a part.
    fn name(&self, whole: &str, number: u64, digits: usize) -> String {
        let before = &self.before;
        let of = self.of.as_ref().map_or("", |(text, _)| text);
        if !self.letters {
            return format!("{whole}{before}{number:0digits$}{of}");
        }
        let letter = |place: usize| char::from(b'a' + (number / 26u64.pow(place as u32) % 26) as u8);
        let letters: String = (0..self.width).rev().map(letter).collect();
        format!("{whole}{before}{letters}{of}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Vec<(String, Vec<String>, Option<String>)> {
        let parts = split_parts(names).into_iter();
        parts.map(|p| (p.name.clone(), p.parts.clone(), p.check().err().map(|e| e.to_string()))).collect()
    }

    #[test]
    fn parts_are_put_in_order_however_they_are_named() {
        for (whole, parts) in [
            ("adapter.safetensors", &[".001", ".002", ".003"][..]),
            ("adapter.safetensors", &[".00", ".01"]),
            ("a.zip", &[".9", ".10", ".1", ".2", ".3", ".4", ".5", ".6", ".7", ".8"]),
            ("Model.Q4_K_M.gguf", &[".part1", ".part2"]),
            ("a.tar.gz", &[".part01", ".part02"]),
            ("a.tar.gz", &["-part-1", "-part-2"]),
            ("a.TAR.ZST", &["_part0", "_part1"]),
            ("a.zip", &[".p1", ".p2"]),
            ("a.zip", &["aa", "ab", "ac"]),
            ("a.zip", &[".aa", ".ab"]),
            ("a.tgz", &["-aa", "-ab"]),
            ("a.tgz", &[".part-aa", ".part-ab"]),
            ("a.tar", &[".partaa", ".partab"]),
            ("a.gguf", &["-split-a", "-split-b", "-split-c"]),
            ("a.gguf", &[".part1of2", ".part2of2"]),
            ("a.gguf", &[".part-01-of-02", ".part-02-of-02"]),
            ("a.gguf", &[".part1of1"]),
            ("a.zip", &[".001"]),
        ] {
            let mut names: Vec<_> = parts.iter().map(|part| format!("{whole}{part}")).collect();
            let shuffled: Vec<_> = names.iter().rev().map(String::as_str).collect();
            let found = found(&shuffled);
            let number = |name: &String| name[whole.len() + 1..].parse::<u32>().unwrap_or(0);
            names.sort_by_key(number);
            assert_eq!(found, [(whole.to_owned(), names, None)], "{parts:?}");
        }
    }

    #[test]
    fn names_that_are_no_parts_are_left_alone() {
        let names = [
            "model-00001-of-00003.safetensors",
            "model.safetensors-00001-of-00003",
            "a.safetensors",
            "a.tar.gz",
            "a.zip.sha256",
            "a.zip.asc",
            "a.zip.md",
            "a.zip.001.sha256",
            "a.gguf2",
            "libm.so.6",
            "git.1",
            "notes.part1",
            "1",
            "",
            "ä.zipää",
            "a.zip.part",
            "a.zip.part1of0",
            "a.zip.part99999999999999999999",
        ];
        assert_eq!(found(&names), []);
    }

    #[test]
    fn a_part_that_is_missing_is_named() {
        for (names, says) in [
            (&["a.zip.001", "a.zip.003"][..], "`a.zip.002` is missing"),
            (&["a.zip.002", "a.zip.003"], "`a.zip.001` is missing"),
            (&["a.zip.00", "a.zip.02"], "`a.zip.01` is missing"),
            (&["a.zip.part9", "a.zip.part11"], "`a.zip.part1` is missing"),
            (&["a.zip.aa", "a.zip.ac"], "`a.zip.ab` is missing"),
            (&["a.zip.part-ab"], "`a.zip.part-aa` is missing"),
            (&["a.gguf.part1of3", "a.gguf.part2of3"], "`a.gguf.part3of3` is missing"),
            (&["a.gguf.part1of2", "a.gguf.part2of2", "a.gguf.part3of2"], "one more"),
            (&["a.zip.1", "a.zip.01"], "the same part"),
        ] {
            let found = found(names);
            let [(_, _, Some(flaw))] = &found[..] else { panic!("{names:?}: {found:?}") };
            assert!(flaw.contains(says), "{names:?}: {flaw}");
        }
    }

    #[test]
    fn several_files_and_schemes_are_told_apart() {
        let names = ["b.zip.002", "a.zip.001", "b.zip.001", "a.zip", "a.zip.part1", "config.json"];
        let found: Vec<_> = found(&names).into_iter().map(|(name, parts, _)| (name, parts.len())).collect();
        assert_eq!(found, [("a.zip".to_owned(), 1), ("a.zip".to_owned(), 1), ("b.zip".to_owned(), 2)]);
    }
}
