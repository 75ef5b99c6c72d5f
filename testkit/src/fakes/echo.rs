//! What a fake model says: the prompt once more, byte by byte. A token is a byte of UTF-8; one more ends the text.

use llm_local_core::{Error, FinishReason, GenerateRequest, Input, Result};

/// The end-of-sequence token.
pub(super) const EOS: u32 = 256;
/// Bytes, and the end.
pub(super) const VOCAB: usize = 257;

/// The tokens of a prompt. A chat becomes the contents of its messages, one per line.
pub(super) fn tokenize(input: &Input, context: usize) -> Result<Vec<u32>> {
    let text = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let tokens = match input {
        Input::Tokens(tokens) => tokens.clone(),
        Input::Text(s) => text(s),
        Input::Messages(messages) => text(&messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n")),
        _ => return Err(Error::unsupported("this kind of input", "a fake model reads tokens, text and messages")),
    };
    if let Some(&id) = tokens.iter().find(|&&id| id as usize >= VOCAB) {
        return Err(Error::invalid_spec("input", format!("token id {id} is not below the vocabulary's size {VOCAB}")));
    }
    match tokens.len() {
        0 => Err(Error::invalid_spec("input", "the prompt has no tokens; give at least one")),
        n if n > context => Err(Error::ContextLengthExceeded { prompt_tokens: n, context_length: context }),
        _ => Ok(tokens),
    }
}

/// The token at place `k` of the answer to `prompt`: the prompt, the end, and so on from the start.
pub(super) fn answer(prompt: &[u32], k: usize) -> u32 {
    prompt.get(k % (prompt.len() + 1)).copied().unwrap_or(EOS)
}

/// An answer: tokens with the text that becomes certain with each, text left over at the end, and why it ends.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) tokens: Vec<(u32, String)>,
    pub(super) tail: String,
    pub(super) reason: FinishReason,
}

/// The whole answer to `prompt`, which fits into `context`.
pub(super) fn answer_to(prompt: &[u32], request: &GenerateRequest, context: usize) -> Answer {
    let room = context - prompt.len();
    let limit = request.max_tokens.map_or(room, |max| max.min(room));
    let mut decoder = Utf8::default();
    let mut answer_so_far = Answer { tokens: Vec::new(), tail: String::new(), reason: FinishReason::Length };
    for k in 0..limit {
        let id = answer(prompt, k);
        if id == EOS && !request.ignore_eos {
            answer_so_far.reason = FinishReason::Eos;
            break;
        }
        answer_so_far.tokens.push((id, u8::try_from(id).map_or_else(|_| String::new(), |byte| decoder.push(byte))));
    }
    answer_so_far.tail = decoder.finish();
    cut_at_stop(&mut answer_so_far, &request.stop);
    answer_so_far
}

/// Ends the answer at the stop text that is complete first, and takes that text away.
fn cut_at_stop(answer: &mut Answer, stops: &[String]) {
    let text: String = answer.tokens.iter().map(|(_, t)| t.as_str()).chain([answer.tail.as_str()]).collect();
    let first = stops.iter().filter_map(|s| text.find(s.as_str()).map(|at| (at + s.len(), at))).min();
    let Some((end, start)) = first else { return };
    let mut at = 0;
    let mut used = answer.tokens.len();
    for (i, (_, piece)) in answer.tokens.iter_mut().enumerate() {
        let from = at;
        at += piece.len();
        piece.truncate(start.saturating_sub(from).min(piece.len()));
        if at >= end {
            used = i + 1;
            break;
        }
    }
    answer.tail.truncate(start.saturating_sub(at).min(answer.tail.len()));
    if at >= end {
        answer.tail.clear();
    }
    answer.tokens.truncate(used);
    answer.reason = FinishReason::Stop;
}

/// Bytes to text, whole characters only.
#[derive(Default)]
struct Utf8(Vec<u8>);

impl Utf8 {
    fn push(&mut self, byte: u8) -> String {
        self.0.push(byte);
        let mut out = String::new();
        while !self.0.is_empty() {
            match std::str::from_utf8(&self.0) {
                Ok(text) => {
                    out.push_str(text);
                    self.0.clear();
                }
                Err(error) => {
                    let Some(bad) = error.error_len() else { break };
                    self.0.drain(..bad);
                    out.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
        out
    }

    fn finish(self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(prompt: &str, request: impl FnOnce(GenerateRequest) -> GenerateRequest) -> (String, Answer) {
        let request = request(GenerateRequest::new(prompt));
        let answer = answer_to(&tokenize(&request.input, 64).unwrap(), &request, 64);
        let text = answer.tokens.iter().map(|(_, t)| t.as_str()).chain([answer.tail.as_str()]).collect();
        (text, answer)
    }

    #[test]
    fn the_prompt_comes_back_in_whole_characters() {
        let (text, answer) = run("aä€", |r| r);
        assert_eq!((text.as_str(), answer.reason, answer.tokens.len()), ("aä€", FinishReason::Eos, 6));
        assert_eq!(answer.tokens[1].1, "");
        assert_eq!(answer.tokens[2].1, "ä");
        let (text, answer) = run("aä", |r| r.with_max_tokens(2));
        assert_eq!((text.as_str(), answer.reason), ("a\u{fffd}", FinishReason::Length));
    }

    #[test]
    fn broken_bytes_become_one_replacement_each() {
        let mut decoder = Utf8::default();
        let text: String = [0xc3, 0xc3, 0xa4, 0xff, b'x'].into_iter().map(|b| decoder.push(b)).collect();
        assert_eq!(text, "\u{fffd}ä\u{fffd}x");
    }

    #[test]
    fn a_stop_text_ends_it_and_is_not_part_of_it() {
        let (text, answer) = run("one two three", |r| r.with_stop("three").with_stop("tw"));
        assert_eq!((text.as_str(), answer.reason, answer.tokens.len()), ("one ", FinishReason::Stop, 6));
        let (text, answer) = run("one", |r| r.with_stop("neo").with_ignore_eos(true));
        assert_eq!((text.as_str(), answer.reason), ("o", FinishReason::Stop));
    }

    #[test]
    fn the_context_ends_it() {
        let (_, answer) = run("0123456789", |r| r.with_ignore_eos(true));
        assert_eq!((answer.tokens.len(), answer.reason), (54, FinishReason::Length));
        let error = tokenize(&Input::Tokens(vec![0; 65]), 64).unwrap_err();
        assert_eq!(error.code(), "context_length_exceeded");
        assert!(tokenize(&Input::Tokens(vec![257]), 64).unwrap_err().to_string().contains("257"));
        assert!(tokenize(&Input::Text(String::new()), 64).is_err());
    }
}
