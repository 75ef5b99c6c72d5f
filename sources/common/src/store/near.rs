//! What to say of a ref that names nothing.

use std::collections::BTreeSet;

use llm_local_core::ArtifactRef;

use super::record::Record;
use crate::location::Location;

/// So many are named.
const MOST: usize = 5;

/// Says which of `records` come near to `which`, or else which there are.
pub(super) fn what_there_is(records: &[Record], which: &ArtifactRef) -> String {
    if records.is_empty() {
        return "nothing is kept here yet".into();
    }
    let locator = |r| Location::of(r).locator;
    let same: Vec<_> = records.iter().filter(|r| locator(&r.reference) == locator(which)).collect();
    if !same.is_empty() {
        let same = same.iter().map(|r| format!("`{}` at {}", r.reference, r.revision));
        return format!("this store has {}", some(same.collect()));
    }
    let near = records.iter().map(|r| &r.reference).filter(|r| is_near(r.locator(), which.locator()));
    let near: BTreeSet<_> = near.map(|r| format!("`{r}`")).collect();
    if !near.is_empty() {
        return format!("did you mean {}?", some(near.into_iter().collect()));
    }
    let all: BTreeSet<_> = records.iter().map(|r| format!("`{}`", r.reference)).collect();
    format!("this store has {}", some(all.into_iter().collect()))
}

/// The first of `names`, and how many more there are.
fn some(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(MOST);
    let first = names[..names.len() - more].join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

/// Whether somebody may have meant `one` who wrote `other`: one is a part of the other, or a few letters differ.
fn is_near(one: &str, other: &str) -> bool {
    let (one, other) = (one.to_lowercase(), other.to_lowercase());
    one.contains(&other) || other.contains(&one) || distance(&one, &other) * 4 <= one.chars().count().max(4)
}

/// How many letters have to be put in, taken out or replaced (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let replaced = corner + usize::from(a != *b);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_letters_may_differ_and_not_many() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!((distance("", "ab"), distance("ab", ""), distance("ab", "ab")), (2, 2, 0));
        for (one, other) in [("org/tiny", "org/tinny"), ("Org/Tiny", "org/tiny"), ("org/tiny-llama", "tiny-llama")] {
            assert!(is_near(one, other), "{one} {other}");
        }
        assert!(!is_near("org/tiny", "other/huge"));
    }
}
