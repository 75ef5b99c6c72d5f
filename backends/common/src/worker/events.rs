//! The channel of a generation, and the stream its consumer reads.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use futures_util::future::select;
use llm_local_core::{CancellationToken, Error, GenerationEvent, Result};
use tokio::sync::{mpsc, oneshot};

/// A channel for one generation of the model named `model`.
pub(super) fn channel(model: String) -> (Outlet, Events) {
    // One event, so that a generation runs at most one step ahead of its consumer.
    let (sender, receiver) = mpsc::channel(1);
    let (last, last_receiver) = oneshot::channel();
    (
        Outlet { events: sender, last: Some(last) },
        Events { model, state: State::Running { events: receiver, last: last_receiver } },
    )
}

/// The worker's side. Dropped without an end, it tells the consumer that the model is not loaded.
#[derive(Debug)]
pub(super) struct Outlet {
    events: mpsc::Sender<GenerationEvent>,
    last: Option<oneshot::Sender<Last>>,
}

/// What a generation ends with. It waits beside the channel, so that a consumer who does not read holds nobody up.
#[derive(Debug)]
struct Last {
    text: String,
    end: Result<GenerationEvent>,
}

impl Outlet {
    pub(super) fn has_room(&self) -> bool {
        self.events.capacity() > 0
    }

    /// Whether the consumer dropped the generation.
    pub(super) fn is_dropped(&self) -> bool {
        self.events.is_closed()
    }

    /// Ready when there may be room, the consumer is gone, or `cancel` is cancelled.
    pub(super) async fn woken(&self, cancel: &CancellationToken) {
        select(pin!(self.events.reserve()), pin!(cancel.cancelled())).await;
    }

    /// Ready when the consumer is gone or `cancel` is cancelled.
    pub(super) async fn dropped(&self, cancel: &CancellationToken) {
        select(pin!(self.events.closed()), pin!(cancel.cancelled())).await;
    }

    /// Sends an event into the room that [`Outlet::has_room`] reported.
    pub(super) fn send(&self, event: GenerationEvent) -> Result<()> {
        match self.events.try_send(event) {
            // A consumer that has gone is noticed before the next step.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(Error::generation("the worker took a step for a generation without room for its event"))
            }
        }
    }

    /// Ends the generation with what is left of its text (may be empty) and its last event, which the consumer sees once this is
    /// dropped. Only the first end counts.
    pub(super) fn end(&mut self, text: String, end: Result<GenerationEvent>) {
        if let Some(last) = self.last.take() {
            // The consumer may be gone; then nobody is left to tell.
            let _ = last.send(Last { text, end });
        }
    }
}

/// The consumer's side.
#[derive(Debug)]
pub(super) struct Events {
    model: String,
    state: State,
}

#[derive(Debug)]
enum State {
    Running { events: mpsc::Receiver<GenerationEvent>, last: oneshot::Receiver<Last> },
    Ending(Result<GenerationEvent>),
    Ended,
}

impl Stream for Events {
    type Item = Result<GenerationEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let State::Running { events, last } = &mut self.state {
            if let Some(event) = ready!(events.poll_recv(cx)) {
                return Poll::Ready(Some(Ok(event)));
            }
            let last = ready!(Pin::new(last).poll(cx));
            let Last { text, end } = last.unwrap_or_else(|_| Last {
                text: String::new(),
                end: Err(Error::ModelNotLoaded { model: self.model.clone() }),
            });
            self.state = State::Ending(end);
            if !text.is_empty() {
                return Poll::Ready(Some(Ok(GenerationEvent::Text(text))));
            }
        }
        Poll::Ready(match std::mem::replace(&mut self.state, State::Ended) {
            State::Ending(end) => Some(end),
            State::Running { .. } | State::Ended => None,
        })
    }
}
