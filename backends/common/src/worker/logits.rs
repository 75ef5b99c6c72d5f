//! What a request for logits does in its turn.

use llm_local_core::{Error, Input, LogitsRequest, Result};

use super::{
    StepModel, caught,
    command::Reply,
    prompt,
    sequence::Sequence,
    task::{Next, Turn},
};

/// A request for logits, computed chunk by chunk like a prompt.
pub(super) struct Computing<C> {
    /// Until the first turn.
    input: Option<Input>,
    /// From the first turn on.
    sequence: Option<Sequence<C>>,
    reply: Reply<Vec<f32>>,
}

impl<C> Computing<C> {
    pub(super) fn new(request: LogitsRequest, reply: Reply<Vec<f32>>) -> Self {
        Self { input: Some(request.input), sequence: None, reply }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_abandoned()
    }

    pub(super) fn step<M: StepModel<Cache = C>>(&mut self, turn: &mut Turn<'_, M>) -> Result<Next> {
        if let Some(input) = self.input.take() {
            let tokens = prompt::tokens(input, turn.text, turn.info)?;
            self.sequence = Some(Sequence::new(tokens));
        }
        let sequence = self.sequence.as_mut().ok_or_else(|| Error::generation("the request had failed before"))?;
        let Some(logits) = sequence.advance(turn)?.logits else {
            return Ok(Next::Again);
        };
        // Before the answer: whoever has it may look at the memory in use.
        sequence.release()?;
        self.reply.answer(Ok(logits));
        Ok(Next::Done)
    }

    pub(super) fn fail(&mut self, error: Error) {
        caught::discard("the KV cache of failed logits", self.sequence.take());
        self.reply.answer(Err(error));
    }
}
