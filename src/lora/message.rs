//! Words that messages share.

pub(super) use llm_local_core::tensor::shape_text;

/// Behind the reason of one that does nothing: how that is let pass.
pub(super) const LET_PASS_NO_EFFECT: &str =
    "; if that is meant, let it pass (`no-effect` in what the adapter is allowed)";

/// `all 4 modules`, or `its one module`.
pub(super) fn all_of(count: usize, noun: &str) -> String {
    if count == 1 { format!("its one {noun}") } else { format!("all {count} {noun}s") }
}

/// The first few of `names`, and how many more there are.
pub(super) fn some_of<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 4;
    let mut words: Vec<_> = names.iter().take(SHOWN).map(|n| format!("`{}`", n.as_ref())).collect();
    if names.len() > SHOWN {
        words.push(format!("and {} more", names.len() - SHOWN));
    }
    words.join(", ")
}

/// The first few of `defects` as one reason.
pub(super) fn reason(defects: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text = defects.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if defects.len() > SHOWN {
        text.push_str(&format!("; and {} more like these", defects.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_agree_with_their_nouns() {
        assert_eq!(all_of(1, "module"), "its one module");
        assert_eq!(all_of(4, "module"), "all 4 modules");
    }
}
