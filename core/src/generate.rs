//! Generations: what is asked for, and what comes back, token by token.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{AdapterSet, ArtifactRef, Error, Result};

/// What to generate from, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GenerateRequest {
    /// The prompt.
    pub input: Input,
    /// At most so many tokens are generated; without it, until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Texts that end the generation. They match across tokens and are not part of the output.
    pub stop: Vec<String>,
    /// Whether the model's end-of-sequence tokens are generated like any other instead of ending the generation.
    pub ignore_eos: bool,
    /// The session whose KV cache is used; without one, nothing is kept.
    pub session: Option<SessionId>,
    /// The adapters of this generation, where the model has none merged into its weights; without it, the model's own. In
    /// an engine, a set that the engine made for that model.
    pub adapters: Option<AdapterSet>,
    /// Cancelled by the caller, the generation stops and still gives its usage, with [`FinishReason::Cancelled`].
    pub cancel: CancellationToken,
}

impl GenerateRequest {
    /// Greedy generation from `input` until the model ends.
    pub fn new(input: impl Into<Input>) -> Self {
        Self {
            input: input.into(),
            max_tokens: None,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_eos: false,
            session: None,
            adapters: None,
            cancel: CancellationToken::new(),
        }
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

    /// Adds a text that ends the generation.
    pub fn with_stop(mut self, stop: impl Into<String>) -> Self {
        self.stop.push(stop.into());
        self
    }

    /// Sets whether end-of-sequence tokens are generated like any other.
    pub fn with_ignore_eos(mut self, ignore_eos: bool) -> Self {
        self.ignore_eos = ignore_eos;
        self
    }

    /// Sets the session.
    pub fn with_session(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }

    /// Sets the adapters of this generation.
    pub fn with_adapters(mut self, adapters: AdapterSet) -> Self {
        self.adapters = Some(adapters);
        self
    }

    /// Sets the token that means "stop, and give me the usage".
    pub fn with_cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Checks what cannot be generated: values out of range and empty stop texts.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that names the field.
    pub fn validate(&self) -> Result<()> {
        self.sampling.validate()?;
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::invalid_spec("stop", "a stop text is empty, which would match at once"));
        }
        match &self.input {
            Input::Messages(messages) if messages.is_empty() => {
                Err(Error::invalid_spec("input", "there are no messages"))
            }
            _ => Ok(()),
        }
    }
}

/// A prompt.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Input {
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
    /// Text, tokenized with the special tokens that the tokenizer adds by itself.
    Text(String),
    /// A chat, put into text by the model's chat template, with the prompt for the assistant's turn at its end.
    Messages(Vec<Message>),
}

impl From<&str> for Input {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Input {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u32>> for Input {
    fn from(tokens: Vec<u32>) -> Self {
        Self::Tokens(tokens)
    }
}

impl From<Vec<Message>> for Input {
    fn from(messages: Vec<Message>) -> Self {
        Self::Messages(messages)
    }
}

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }

    /// A message of the system.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// A message of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }
}

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Instructions to the model.
    System,
    /// The person or program that asks.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

/// How the next token is chosen. The filters apply in the order of the fields, as in transformers' `generate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Sampling {
    /// Logits of tokens already seen are divided (positive) or multiplied (negative) by this; 1 is off
    /// (arXiv:1909.05858).
    pub repetition_penalty: f32,
    /// How many of the latest tokens, prompt included, the penalty looks at.
    pub repetition_window: usize,
    /// 0 takes the best token always; otherwise logits are divided by it.
    pub temperature: f32,
    /// Only so many of the best tokens stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Only the smallest set of best tokens with at least this probability together stays (arXiv:1904.09751).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Only tokens with at least this share of the best token's probability stay (arXiv:2407.01082).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// The same seed, prompt, model and backend give the same tokens; without one, a new seed each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Default for Sampling {
    /// Greedy: the best token always.
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            repetition_window: 64,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            seed: None,
        }
    }
}

impl Sampling {
    /// The best token always.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// Sets the temperature.
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets how many of the best tokens stay.
    pub fn with_top_k(mut self, top_k: usize) -> Self {
        self.top_k = Some(top_k);
        self
    }

    /// Sets the probability of the set that stays.
    pub fn with_top_p(mut self, top_p: f32) -> Self {
        self.top_p = Some(top_p);
        self
    }

    /// Sets the least share of the best token's probability.
    pub fn with_min_p(mut self, min_p: f32) -> Self {
        self.min_p = Some(min_p);
        self
    }

    /// Sets the repetition penalty and how many of the latest tokens it looks at.
    pub fn with_repetition_penalty(mut self, penalty: f32, window: usize) -> Self {
        self.repetition_penalty = penalty;
        self.repetition_window = window;
        self
    }

    /// Sets the seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that names the field.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, field: &str, found: &dyn fmt::Display, expected: &str| {
            if ok {
                return Ok(());
            }
            Err(Error::invalid_spec(format!("sampling.{field}"), format!("it is {found}; expected {expected}")))
        };
        let finite = |x: f32| x.is_finite();
        check(
            finite(self.temperature) && self.temperature >= 0.0,
            "temperature",
            &self.temperature,
            "0 (greedy) or more",
        )?;
        check(
            finite(self.repetition_penalty) && self.repetition_penalty > 0.0,
            "repetition_penalty",
            &self.repetition_penalty,
            "more than 0 (1 is off)",
        )?;
        if let Some(k) = self.top_k {
            check(k > 0, "top_k", &k, "at least 1")?;
        }
        if let Some(p) = self.top_p {
            check(p > 0.0 && p <= 1.0, "top_p", &p, "more than 0 and at most 1")?;
        }
        if let Some(p) = self.min_p {
            check((0.0..=1.0).contains(&p), "min_p", &p, "0 to 1")?;
        }
        Ok(())
    }
}

/// The name of a session: of requests, one after the other, that share a KV cache.
///
/// A session holds its KV cache from its first generation on, until it is ended
/// ([`LoadedModel::end_session`](crate::LoadedModel::end_session)), the model is unloaded, or
/// [`TrimLevel::Sessions`](crate::TrimLevel::Sessions) frees it. Nothing else bounds how many there are: that is for the
/// application to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(String);

impl SessionId {
    /// The session that the application calls `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The application's name for it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An event of a generation. `Token`s and `Text`s come in order; one `Finished` is the last, or an error is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum GenerationEvent {
    /// A token was generated.
    #[non_exhaustive]
    Token {
        /// Its id.
        id: u32,
        /// The text that has become certain with it: whole characters, and no beginning of a stop text. May be empty.
        text: String,
    },
    /// Text held back until now has become certain.
    Text(String),
    /// The generation ended.
    #[non_exhaustive]
    Finished {
        /// Why.
        reason: FinishReason,
        /// Token counts.
        usage: Usage,
        /// Times.
        stats: GenerationStats,
    },
}

impl GenerationEvent {
    /// A token, with the text that has become certain with it.
    pub fn token(id: u32, text: impl Into<String>) -> Self {
        Self::Token { id, text: text.into() }
    }

    /// The text that has become certain with this event; empty at the end.
    pub fn text(&self) -> &str {
        match self {
            Self::Token { text, .. } | Self::Text(text) => text,
            Self::Finished { .. } => "",
        }
    }

    /// The end.
    pub fn finished(reason: FinishReason, usage: Usage, stats: GenerationStats) -> Self {
        Self::Finished { reason, usage, stats }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended it, with an end-of-sequence token.
    Eos,
    /// A stop text appeared.
    Stop,
    /// `max_tokens` were generated, or the context is full.
    Length,
    /// The request's token was cancelled.
    Cancelled,
    /// Memory ran short and the policy says that generations are stopped then.
    MemoryPressure,
}

/// True token counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, tokens that a session's KV cache had already.
    pub cached_tokens: usize,
    /// Tokens generated; an end-of-sequence token that ended the generation is not counted.
    pub generated_tokens: usize,
}

impl Usage {
    /// Counts of a prompt and an answer.
    pub fn new(prompt_tokens: usize, generated_tokens: usize) -> Self {
        Self { prompt_tokens, cached_tokens: 0, generated_tokens }
    }

    /// Sets how many tokens of the prompt were in a session's KV cache.
    pub fn with_cached_tokens(mut self, cached_tokens: usize) -> Self {
        self.cached_tokens = cached_tokens;
        self
    }
}

/// Times of one generation, and which adapters it had.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GenerationStats {
    /// From the request to its first token; `None` if there was none.
    pub time_to_first_token: Option<Duration>,
    /// Time spent computing the prompt.
    pub prefill: Duration,
    /// Tokens computed in that time.
    pub prefill_tokens: usize,
    /// Time spent computing tokens after the first.
    pub decode: Duration,
    /// Tokens computed in that time.
    pub decode_tokens: usize,
    /// How long this generation waited for its model to load; `None` if it was loaded.
    pub load: Option<Duration>,
    /// The adapters that it ran with, in the order of their set: those of the request, else those that were the model's own
    /// at its place in line. The engine says so; a backend leaves it empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<UsedAdapter>,
}

/// An adapter as it was used: what its ref meant when it was loaded, with its model or into a set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UsedAdapter {
    /// The ref, as the spec has it.
    pub reference: ArtifactRef,
    /// The immutable revision.
    pub revision: String,
    /// The revision's name for people, where it has one: a release's tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What its delta was multiplied by.
    pub weight: f32,
}

impl UsedAdapter {
    /// The adapter `reference` at `revision`, which its owner calls `version`.
    pub fn new(reference: ArtifactRef, revision: impl Into<String>, version: Option<String>, weight: f32) -> Self {
        Self { reference, revision: revision.into(), version, weight }
    }
}

impl fmt::Display for UsedAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version.as_ref().unwrap_or(&self.revision);
        write!(f, "{} at {version}, weight {}", self.reference, self.weight)
    }
}

impl GenerationStats {
    /// Prompt tokens per second; `None` without a prompt.
    pub fn prefill_tokens_per_second(&self) -> Option<f64> {
        rate(self.prefill_tokens, self.prefill)
    }

    /// Tokens per second after the first; `None` if there were none.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        rate(self.decode_tokens, self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

/// One running request: a stream of events. Dropping it cancels it: at most one more forward step is computed.
pub struct Generation {
    events: Pin<Box<dyn Stream<Item = Result<GenerationEvent>> + Send>>,
    ended: bool,
}

impl Generation {
    /// A generation whose events are `events`. Dropping that stream must cancel the work behind it.
    pub fn new(events: impl Stream<Item = Result<GenerationEvent>> + Send + 'static) -> Self {
        Self { events: Box::pin(events), ended: false }
    }

    /// A generation that failed before it began.
    pub fn failed(error: Error) -> Self {
        struct Failed(Option<Error>);
        impl Stream for Failed {
            type Item = Result<GenerationEvent>;

            fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
                Poll::Ready(self.0.take().map(Err))
            }
        }
        Self::new(Failed(Some(error)))
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<GenerationEvent>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Everything at once.
    ///
    /// # Errors
    /// The generation's error, or [`Error::GenerationFailed`] if it ended without saying why.
    pub async fn complete(mut self) -> Result<Completion> {
        let mut completion = Completion::default();
        while let Some(event) = self.next().await {
            match event? {
                GenerationEvent::Token { id, text } => {
                    completion.tokens.push(id);
                    completion.text.push_str(&text);
                }
                GenerationEvent::Text(text) => completion.text.push_str(&text),
                GenerationEvent::Finished { reason, usage, stats } => {
                    completion.finish_reason = Some(reason);
                    completion.usage = usage;
                    completion.stats = stats;
                }
            }
        }
        match completion.finish_reason {
            Some(_) => Ok(completion),
            None => Err(Error::generation("it ended without a reason; the backend that ran it is gone")),
        }
    }
}

impl Stream for Generation {
    type Item = Result<GenerationEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = std::task::ready!(self.events.as_mut().poll_next(cx));
        self.ended = matches!(&event, None | Some(Err(_) | Ok(GenerationEvent::Finished { .. })));
        Poll::Ready(event)
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// A whole generation.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Why it ended; always there in what [`Generation::complete`] returns.
    pub finish_reason: Option<FinishReason>,
    /// Token counts.
    pub usage: Usage,
    /// Times.
    pub stats: GenerationStats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named() {
        for (sampling, field) in [
            (Sampling::default().with_temperature(-1.0), "temperature"),
            (Sampling::default().with_temperature(f32::NAN), "temperature"),
            (Sampling::default().with_top_k(0), "top_k"),
            (Sampling::default().with_top_p(0.0), "top_p"),
            (Sampling::default().with_top_p(f32::NAN), "top_p"),
            (Sampling::default().with_min_p(1.5), "min_p"),
            (Sampling::default().with_repetition_penalty(0.0, 4), "repetition_penalty"),
        ] {
            assert!(sampling.validate().unwrap_err().to_string().contains(field), "{field}");
        }
        assert!(GenerateRequest::new("x").with_stop("").validate().is_err());
        assert!(GenerateRequest::new(Vec::<Message>::new()).validate().is_err());
        GenerateRequest::new("x").validate().unwrap();
    }

    #[test]
    fn nothing_comes_after_the_end() {
        pollster::block_on(async {
            let mut generation = Generation::failed(Error::Cancelled);
            assert!(generation.next().await.unwrap().is_err());
            assert!(generation.next().await.is_none());
            assert!(Generation::failed(Error::Cancelled).complete().await.is_err());
        });
    }
}
