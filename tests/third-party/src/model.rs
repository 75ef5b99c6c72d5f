//! The loaded model: it repeats its prompt. A token is a character; one more ends the text.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use llm_local_core::Stream;
use llm_local_core::{
    CancellationToken, Error, FinishReason, GenerateRequest, Generation, GenerationEvent, GenerationStats, Input,
    LoadedInfo, LoadedModel, LogitsRequest, MemoryReport, Result, Usage, async_trait,
};

/// Characters, and the end.
pub(crate) const VOCAB: usize = EOS as usize + 1;
const EOS: u32 = char::MAX as u32 + 1;

pub(crate) struct ParrotModel {
    info: LoadedInfo,
    repeats: usize,
    unloaded: Arc<AtomicBool>,
}

impl ParrotModel {
    pub(crate) fn new(info: LoadedInfo, repeats: usize) -> Self {
        Self { info, repeats, unloaded: Arc::default() }
    }

    fn not_loaded(&self) -> Error {
        Error::ModelNotLoaded { model: self.info.model.clone() }
    }

    /// The prompt, and the answer without an end.
    fn hear(&self, input: &Input) -> Result<Vec<u32>> {
        if self.unloaded.load(Ordering::Acquire) {
            return Err(self.not_loaded());
        }
        let prompt: Vec<u32> = match input {
            Input::Tokens(tokens) => tokens.clone(),
            Input::Text(text) => text.chars().map(u32::from).collect(),
            _ => return Err(Error::unsupported("a chat", "this model has no chat template; give text or tokens")),
        };
        if let Some(id) = prompt.iter().find(|&&id| char::from_u32(id).is_none() && id != EOS) {
            return Err(Error::invalid_spec("input", format!("the token {id} is not a character")));
        }
        let (prompt_tokens, context_length) = (prompt.len(), self.info.context_length);
        match prompt_tokens {
            0 => Err(Error::invalid_spec("input", "the prompt is empty")),
            n if n > context_length => Err(Error::ContextLengthExceeded { prompt_tokens, context_length }),
            _ => Ok(prompt),
        }
    }

    fn speak(&self, request: &GenerateRequest) -> Result<Speech> {
        request.validate()?;
        if request.session.is_some() || request.adapters.is_some() {
            return Err(Error::unsupported("a session or adapters of a request", "a parrot has neither"));
        }
        let prompt = self.hear(&request.input)?;
        let room = self.info.context_length - prompt.len();
        let limit = request.max_tokens.map_or(room, |max| max.min(room));
        let once = prompt.repeat(self.repeats).into_iter().chain([EOS]);
        let mut tokens: Vec<u32> = once.cycle().take(limit).collect();
        let mut reason = FinishReason::Length;
        if let (false, Some(end)) = (request.ignore_eos, tokens.iter().position(|&id| id == EOS)) {
            tokens.truncate(end);
            reason = FinishReason::Eos;
        }
        let mut shown = tokens.len();
        if let Some((end, start)) = request.stop.iter().filter_map(|stop| find(&tokens, stop)).min() {
            tokens.truncate(end);
            shown = start;
            reason = FinishReason::Stop;
        }
        let text = |id| char::from_u32(id).map(String::from).unwrap_or_default();
        let pieces = tokens.iter().enumerate().map(|(i, &id)| (id, if i < shown { text(id) } else { String::new() }));
        Ok(Speech {
            pieces: pieces.collect(),
            reason,
            usage: Usage::new(prompt.len(), 0),
            started: Instant::now(),
            first: None,
            cancel: request.cancel.clone(),
            unloaded: self.unloaded.clone(),
            not_loaded: self.not_loaded(),
        })
    }
}

/// Where the text of `tokens` first contains `stop`, in tokens: the end, then the start. The end of a text is no text.
fn find(tokens: &[u32], stop: &str) -> Option<(usize, usize)> {
    let stop: Vec<u32> = stop.chars().map(u32::from).collect();
    let shown: Vec<usize> = (0..tokens.len()).filter(|&i| tokens[i] != EOS).collect();
    let at = shown.windows(stop.len()).find(|w| w.iter().zip(&stop).all(|(&i, &id)| tokens[i] == id))?;
    Some((at.last()? + 1, *at.first()?))
}

#[async_trait]
impl LoadedModel for ParrotModel {
    fn info(&self) -> LoadedInfo {
        self.info.clone()
    }

    fn generate(&self, r: GenerateRequest) -> Generation {
        self.speak(&r).map_or_else(Generation::failed, Generation::new)
    }

    async fn logits(&self, r: LogitsRequest) -> Result<Vec<f32>> {
        let prompt = self.hear(&r.input)?;
        let mut logits = vec![0.0; VOCAB];
        logits[prompt[0] as usize] = self.repeats as f32;
        Ok(logits)
    }

    fn memory(&self) -> MemoryReport {
        MemoryReport::new(if self.unloaded.load(Ordering::Acquire) { 0 } else { 4 }, 0)
    }

    async fn unload(&self) -> Result<()> {
        self.unloaded.store(true, Ordering::Release);
        Ok(())
    }
}

/// A running generation. Nothing happens between polls, so dropping it is all that a cancel takes.
struct Speech {
    pieces: VecDeque<(u32, String)>,
    reason: FinishReason,
    usage: Usage,
    started: Instant,
    first: Option<Duration>,
    cancel: CancellationToken,
    unloaded: Arc<AtomicBool>,
    not_loaded: Error,
}

impl Stream for Speech {
    type Item = Result<GenerationEvent>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.unloaded.load(Ordering::Acquire) {
            return Poll::Ready(Some(Err(self.not_loaded.clone())));
        }
        let cancelled = self.cancel.is_cancelled();
        if let (false, Some((id, text))) = (cancelled, self.pieces.pop_front()) {
            self.usage.generated_tokens += 1;
            let elapsed = self.started.elapsed();
            self.first.get_or_insert(elapsed);
            return Poll::Ready(Some(Ok(GenerationEvent::token(id, text))));
        }
        let mut stats = GenerationStats::default();
        stats.time_to_first_token = self.first;
        stats.prefill_tokens = self.usage.prompt_tokens;
        let reason = if cancelled { FinishReason::Cancelled } else { self.reason };
        Poll::Ready(Some(Ok(GenerationEvent::finished(reason, self.usage, stats))))
    }
}
