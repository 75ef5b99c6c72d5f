//! Stop texts that match across tokens.

/// Looks for stop texts in a text that comes in pieces. However the text is cut into pieces, the result is the same:
/// the stop text that ends first counts, and of those that end together the longest.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// The end of the text so far that may be the beginning of a stop text.
    held: String,
}

/// What a piece of text made certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopStep {
    /// Text that belongs to no stop text; may be empty.
    Text(String),
    /// A stop text is complete. This is the text before it; the rest is of no interest.
    Stopped(String),
}

impl StopMatcher {
    /// Looks for `stops`. Empty ones are left out: they would match at once.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new() }
    }

    /// Takes the next piece. The longest end of the text that begins a stop text is held back. After
    /// [`StopStep::Stopped`], the matcher begins anew.
    pub fn push(&mut self, piece: &str) -> StopStep {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        if let Some(start) = self.first_match(&text) {
            text.truncate(start);
            return StopStep::Stopped(text);
        }
        self.held = text.split_off(self.certain(&text));
        StopStep::Text(text)
    }

    /// The text held back, now that no more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the match that ends first begins.
    fn first_match(&self, text: &str) -> Option<usize> {
        let matches = self.stops.iter().filter_map(|stop| {
            let start = text.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        matches.min().map(|(_, start)| start)
    }

    /// How many bytes of `text` no stop text can begin in.
    fn certain(&self, text: &str) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        // A whole stop text is not there, so what is held is shorter than the longest.
        let from = text.len().saturating_sub(longest.saturating_sub(1));
        (from..text.len())
            .filter(|&at| text.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&text[at..])))
            .unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests;
