//! One turn of a chat: what is asked for, and its stream.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use llm_local_core::{
    CancellationToken, Completion, Error, FinishReason, GenerateRequest, Generation, GenerationEvent, Message, Result,
    Sampling, Stream,
};

use super::Session;

/// How a turn is generated: what a [`GenerateRequest`] has beside its prompt and session.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TurnOptions {
    /// At most so many tokens are generated; without it, until the model ends or the context is full. With 0 the prompt
    /// is counted and computed as far as the backend does that, and the chat stays as it was.
    pub max_tokens: Option<usize>,
    /// How the next token is chosen; greedy by default.
    pub sampling: Sampling,
    /// Texts that end the answer. They are not part of it.
    pub stop: Vec<String>,
    /// Cancelled by the caller, the turn ends with what there is of the answer, which the chat keeps; before the first
    /// token, the chat stays as it was. Each turn needs a token of its own.
    pub cancel: CancellationToken,
}

impl TurnOptions {
    /// Greedy generation until the model ends.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the largest number of generated tokens.
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }

    /// Sets how the next token is chosen.
    pub fn with_sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Adds a text that ends the answer.
    pub fn with_stop(mut self, stop: impl Into<String>) -> Self {
        self.stop.push(stop.into());
        self
    }

    /// Sets the token that means "stop, and keep what there is".
    pub fn with_cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    pub(super) fn request(self, messages: Vec<Message>) -> GenerateRequest {
        let mut request = GenerateRequest::new(messages).with_sampling(self.sampling).with_cancel(self.cancel);
        request.max_tokens = self.max_tokens;
        request.stop = self.stop;
        request
    }
}

/// A running turn: a stream of events, the last of which is [`GenerationEvent::Finished`]. With it the chat has the
/// new messages and the answer.
///
/// The chat is left as it was by a turn that fails, is dropped before its end, or was ended from outside before its
/// first token: by a cancel, by `max_tokens` of 0, by a prompt that fills the context. That one shows in
/// [`llm_local_core::Usage::generated_tokens`], which is 0. A model that ends at once has answered, with an empty text
/// ([`FinishReason::Eos`]), and the chat has it.
#[derive(Debug)]
#[must_use = "a turn that is dropped before its end is cancelled, and the chat stays as it was"]
pub struct Turn<'a> {
    session: &'a mut Session,
    generation: Generation,
    asked: Vec<Message>,
    answer: String,
    /// Whether there was a token.
    generated: bool,
}

impl<'a> Turn<'a> {
    pub(super) fn new(session: &'a mut Session, generation: Generation, asked: Vec<Message>) -> Self {
        Self { session, generation, asked, answer: String::new(), generated: false }
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<GenerationEvent>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The rest of the turn at once.
    ///
    /// # Errors
    /// As [`Generation::complete`].
    pub async fn complete(mut self) -> Result<Completion> {
        // What stands in its place is never asked for anything.
        let generation = std::mem::replace(&mut self.generation, Generation::failed(Error::Cancelled));
        let completion = generation.complete().await?;
        self.answer.push_str(&completion.text);
        self.generated |= !completion.tokens.is_empty();
        self.finish(completion.finish_reason);
        Ok(completion)
    }

    /// Adds the turn to the chat, if the model has said anything, be it that it has nothing to say.
    fn finish(&mut self, reason: Option<FinishReason>) {
        if !self.generated && reason != Some(FinishReason::Eos) {
            return;
        }
        let answer = Message::assistant(std::mem::take(&mut self.answer));
        self.session.messages.extend(std::mem::take(&mut self.asked).into_iter().chain([answer]));
    }
}

impl Stream for Turn<'_> {
    type Item = Result<GenerationEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(Pin::new(&mut self.generation).poll_next(cx));
        if let Some(Ok(event)) = &event {
            self.answer.push_str(event.text());
            match event {
                GenerationEvent::Token { .. } => self.generated = true,
                GenerationEvent::Finished { reason, .. } => self.finish(Some(*reason)),
                _ => {}
            }
        }
        Poll::Ready(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Engine, ModelSpec};
    use llm_local_core::{GenerationStats, Registry, Usage};

    /// What a chat has after a turn with these events, streamed and at once.
    fn after(events: &[GenerationEvent]) -> [Vec<Message>; 2] {
        let engine = Engine::builder().registry(Registry::empty()).cache_dir(std::env::temp_dir()).build().unwrap();
        let spec = ModelSpec::new("remote:x".parse().unwrap());
        [false, true].map(|at_once| {
            let mut session = engine.session(&spec);
            let events: Vec<_> = events.iter().cloned().map(Ok).collect();
            let generation = Generation::new(futures_util::stream::iter(events));
            let mut turn = Turn::new(&mut session, generation, vec![Message::user("q")]);
            pollster::block_on(async {
                if at_once {
                    turn.complete().await.unwrap();
                } else {
                    while let Some(event) = turn.next().await {
                        event.unwrap();
                    }
                }
            });
            session.messages().to_vec()
        })
    }

    #[test]
    fn a_turn_stays_in_the_chat_if_there_was_a_token_or_the_model_ended_it() {
        let end = |reason| GenerationEvent::finished(reason, Usage::default(), GenerationStats::default());
        use FinishReason::{Cancelled, Eos, Length, MemoryPressure, Stop};
        for reason in [Cancelled, Length, MemoryPressure] {
            assert_eq!(after(&[end(reason)]), [vec![], vec![]], "{reason:?}");
        }
        let with = |text: &str| vec![Message::user("q"), Message::assistant(text)];
        assert_eq!(after(&[end(Eos)]), [with(""), with("")]);
        // A token whose text is held back, or is that of a stop.
        for reason in [Cancelled, Length, MemoryPressure, Stop, Eos] {
            let token = GenerationEvent::token(7, "");
            assert_eq!(after(&[token.clone(), end(reason)]), [with(""), with("")], "{reason:?}");
            let text = GenerationEvent::Text("a".into());
            assert_eq!(after(&[token, text, end(reason)]), [with("a"), with("a")], "{reason:?}");
        }
    }
}
