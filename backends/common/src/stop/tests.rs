use proptest::prelude::*;

use super::*;

/// Pushes pieces; the text that came out, and whether a stop text ended it.
fn run(stops: &[String], pieces: &[String]) -> (String, bool) {
    let mut matcher = StopMatcher::new(stops.to_vec());
    let mut out = String::new();
    for piece in pieces {
        match matcher.push(piece) {
            StopStep::Text(text) => out.push_str(&text),
            StopStep::Stopped(text) => return (out + &text, true),
        }
    }
    (out + &matcher.finish(), false)
}

/// The same by looking at every beginning of the whole text.
fn naive(stops: &[String], text: &str) -> (String, bool) {
    for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
        let longest =
            stops.iter().filter(|s| !s.is_empty() && text[..end].ends_with(s.as_str())).map(String::len).max();
        if let Some(length) = longest {
            return (text[..end - length].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

#[test]
fn a_stop_text_across_pieces_is_not_output() {
    let mut matcher = StopMatcher::new(["<end>".to_owned()]);
    assert_eq!(matcher.push("yes <e"), StopStep::Text("yes ".into()));
    assert_eq!(matcher.push("n"), StopStep::Text(String::new()));
    assert_eq!(matcher.push("d> no"), StopStep::Stopped(String::new()));
}

#[test]
fn held_text_is_released_when_it_cannot_match_or_no_more_comes() {
    let mut matcher = StopMatcher::new(["aab".to_owned()]);
    assert_eq!(matcher.push("aa"), StopStep::Text(String::new()));
    assert_eq!(matcher.push("a"), StopStep::Text("a".into()));
    assert_eq!(matcher.push("c"), StopStep::Text("aac".into()));
    assert_eq!(matcher.push("a"), StopStep::Text(String::new()));
    assert_eq!(matcher.finish(), "a");
}

#[test]
fn without_stop_texts_nothing_is_held() {
    let mut matcher = StopMatcher::new([String::new()]);
    assert_eq!(matcher.push("äöü"), StopStep::Text("äöü".into()));
    assert_eq!(matcher.finish(), "");
}

#[test]
fn the_match_that_ends_first_counts() {
    let stops = ["abcd".to_owned(), "bc".to_owned()];
    for pieces in [vec!["abcd".to_owned()], "abcd".chars().map(String::from).collect()] {
        assert_eq!(run(&stops, &pieces), ("a".to_owned(), true));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_gives_what_a_search_of_the_whole_text_gives(
        stops in prop::collection::vec("[abä€]{0,4}", 0..4),
        pieces in prop::collection::vec("[abä€]{0,5}", 0..12),
    ) {
        prop_assert_eq!(run(&stops, &pieces), naive(&stops, &pieces.concat()));
    }
}
