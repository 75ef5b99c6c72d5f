//! One turn of a chat: what is asked for, and its stream.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use llm_local_core::{
    CancellationToken, Completion, Error, GenerateRequest, Generation, GenerationEvent, Message, Result, Sampling,
    Stream,
};

use super::Session;

/// How a turn is generated: what a [`GenerateRequest`] has beside its prompt and session.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TurnOptions {
    /// At most so many tokens are generated; without it, until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// How the next token is chosen; greedy by default.
    pub sampling: Sampling,
    /// Texts that end the answer. They are not part of it.
    pub stop: Vec<String>,
    /// Cancelled by the caller, the turn ends with what there is of the answer, which the chat keeps. Each turn needs a
    /// token of its own.
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
/// new messages and the answer; a turn that fails, or is dropped before, leaves the chat as it was.
#[derive(Debug)]
#[must_use = "a turn that is dropped before its end is cancelled, and the chat stays as it was"]
pub struct Turn<'a> {
    session: &'a mut Session,
    generation: Generation,
    asked: Vec<Message>,
    answer: String,
}

impl<'a> Turn<'a> {
    pub(super) fn new(session: &'a mut Session, generation: Generation, asked: Vec<Message>) -> Self {
        Self { session, generation, asked, answer: String::new() }
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
        self.keep();
        Ok(completion)
    }

    /// Adds the turn to the chat.
    fn keep(&mut self) {
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
            if let GenerationEvent::Finished { .. } = event {
                self.keep();
            }
        }
        Poll::Ready(event)
    }
}
