//! What a request for logits does in its turn.

use llm_local_core::{AdapterSet, Error, Input, LogitsRequest, Result};

use super::{
    StepModel,
    adapters::Lease,
    caught,
    command::Reply,
    prompt,
    sequence::{Advance, Sequence},
    task::{Next, Turn},
};

/// A request for logits, computed chunk by chunk like a prompt.
pub(super) struct Computing<M: StepModel> {
    /// Until the first turn.
    input: Option<Input>,
    /// From the first turn on.
    sequence: Option<Sequence<M::Cache>>,
    /// What it computes with; of a set that the request names, from the first turn on.
    adapters: Option<Lease<M::Adapters>>,
    named: Option<AdapterSet>,
    reply: Reply<Vec<f32>>,
}

impl<M: StepModel> Computing<M> {
    /// `own` is the model's own set of adapters.
    pub(super) fn new(request: LogitsRequest, reply: Reply<Vec<f32>>, own: &Lease<M::Adapters>) -> Self {
        let LogitsRequest { input, adapters: named, .. } = request;
        let adapters = named.is_none().then(|| own.clone());
        Self { input: Some(input), sequence: None, adapters, named, reply }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_abandoned()
    }

    pub(super) fn step(&mut self, turn: &mut Turn<'_, M>) -> Result<Next> {
        if let Some(input) = self.input.take() {
            let tokens = prompt::tokens(input, turn.text, turn.info)?;
            self.sequence = Some(Sequence::new(tokens));
            if let Some(named) = self.named.take() {
                self.adapters = Some(turn.sets.lease(&named, turn.model)?);
            }
        }
        let sequence = self.sequence.as_mut().ok_or_else(|| Error::generation("the request had failed before"))?;
        let adapters = self.adapters.as_ref().and_then(|lease| lease.adapters());
        let logits = match sequence.advance(turn, adapters, || !self.reply.is_abandoned())? {
            Some(Advance { logits: None, .. }) => return Ok(Next::Again),
            Some(Advance { logits: Some(logits), .. }) => Some(logits),
            None => None,
        };
        // Before the answer: whoever has it may look at the memory in use.
        sequence.release()?;
        self.let_adapters_go();
        if let Some(logits) = logits {
            self.reply.answer(Ok(logits));
        }
        Ok(Next::Done)
    }

    pub(super) fn fail(&mut self, error: Error) {
        caught::discard("the KV cache of failed logits", self.sequence.take());
        self.let_adapters_go();
        self.reply.answer(Err(error));
    }

    fn let_adapters_go(&mut self) {
        caught::discard("the adapters of logits", self.adapters.take());
    }
}
