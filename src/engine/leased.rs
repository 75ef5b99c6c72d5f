//! A generation that keeps its model in memory.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use llm_local_core::{CancellationToken, FinishReason, Generation, GenerationEvent, Result, Stream};

use crate::memory::Lease;

/// The events of a generation, which holds a lease until its end, and may be stopped because memory is short.
pub(super) struct Leased {
    generation: Generation,
    lease: Option<Lease>,
    /// The token of whoever asked for it.
    cancel: CancellationToken,
}

impl Leased {
    /// `generation`, which the token of the `lease` ends; that is a child of `cancel`.
    pub(super) fn new(generation: Generation, lease: Lease, cancel: CancellationToken) -> Self {
        Self { generation, lease: Some(lease), cancel }
    }

    /// The reason as its asker knows it: it was not the asker who cancelled.
    fn reason(&self, reason: FinishReason) -> FinishReason {
        let is_stopped = self.lease.as_ref().is_some_and(Lease::is_stopped) && !self.cancel.is_cancelled();
        if reason == FinishReason::Cancelled && is_stopped { FinishReason::MemoryPressure } else { reason }
    }
}

impl Stream for Leased {
    type Item = Result<GenerationEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = match ready!(Pin::new(&mut self.generation).poll_next(cx)) {
            Some(Ok(GenerationEvent::Finished { reason, usage, stats, .. })) => {
                Some(Ok(GenerationEvent::finished(self.reason(reason), usage, stats)))
            }
            other => other,
        };
        if matches!(event, None | Some(Err(_)) | Some(Ok(GenerationEvent::Finished { .. }))) {
            self.lease = None;
        }
        Poll::Ready(event)
    }
}
