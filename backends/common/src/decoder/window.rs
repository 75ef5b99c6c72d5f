//! Which positions a layer sees, holds and saves. A window is the number of keys that a query sees, itself included; all
//! without one.

use llm_local_core::model::DecoderConfig;

/// The window of each layer.
pub fn of_layers(c: &DecoderConfig) -> Vec<Option<usize>> {
    let window = |i| c.sliding_window.as_ref().filter(|_| c.is_windowed(i)).map(|w| w.size);
    (0..c.layers).map(window).collect()
}

/// The first position that a chunk at `position` sees in a layer with the window `window`.
pub fn first_visible(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Rows that a layer comes to hold at most, in chunks of at most `chunk` positions.
pub fn most_rows(window: Option<usize>, chunk: usize, context_length: usize) -> usize {
    window.map_or(context_length, |w| context_length.min((2 * w).max(w + chunk)))
}

/// The latest position that the first row held may have once `tokens` tokens are computed.
pub fn oldest(window: Option<usize>, tokens: usize) -> usize {
    first_visible(tokens, window)
}

/// Where the rows begin that are worth saving once `tokens` tokens are computed: those of one window are seen, and those
/// of another let the sequence be cut.
pub fn saved_from(window: Option<usize>, tokens: usize) -> usize {
    window.map_or(0, |w| tokens.saturating_sub(2 * w))
}
