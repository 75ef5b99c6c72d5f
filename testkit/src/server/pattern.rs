//! Patterns that name requests.

/// Whether `pattern` describes `text`: `*` stands for any run of characters, `/` among them.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, text) in
            [("a/b", "a/b"), ("*", ""), ("*.json", "x/y.json"), ("/api/*", "/api/a/b"), ("a*b*c", "abbc")]
        {
            assert!(matches(pattern, text), "{pattern} describes {text}");
        }
        for (pattern, text) in [("a", "ab"), ("*.json", "y.jso"), ("a*b*c", "acb"), ("ab*ba", "aba")] {
            assert!(!matches(pattern, text), "{pattern} does not describe {text}");
        }
    }
}
