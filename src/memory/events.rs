//! What happened to memory, and why.

use std::fmt;

use llm_local_core::DecimalBytes;
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};

use super::pressure::PressureLevel;

/// Events that whoever does not look has not missed yet.
const KEPT: usize = 256;

/// Something that the memory policy did, or heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryEvent {
    /// Pressure rose or fell to `level`.
    Pressure {
        /// How short memory is now.
        level: PressureLevel,
        /// Who says so; nobody where a level is over because nobody reported it for a while.
        source: Option<String>,
        /// What it has seen.
        reason: String,
    },
    /// Memory was set aside for a model, which is loaded now.
    Admitted {
        /// The model's id.
        model: String,
        /// Bytes.
        bytes: u64,
    },
    /// A load was refused, or did not get the memory that it was promised.
    Refused {
        /// The model's id.
        model: String,
        /// The error, for people.
        reason: String,
    },
    /// A load is tried once more with a shorter context.
    Retried {
        /// The model's id.
        model: String,
        /// The context in tokens, at most.
        context_length: usize,
        /// What went wrong before.
        reason: String,
    },
    /// A model was unloaded, and its memory is back.
    Evicted {
        /// The model's id.
        model: String,
        /// Bytes that it held, by its own account.
        bytes: u64,
        /// Why.
        reason: EvictionReason,
    },
    /// A model gave back what it can rebuild.
    Trimmed {
        /// The model's id.
        model: String,
        /// Bytes.
        bytes: u64,
        /// How short memory was.
        level: PressureLevel,
    },
    /// A generation was stopped, because the policy says so.
    GenerationStopped {
        /// The model's id.
        model: String,
    },
    /// So many events before the next one were missed by this subscriber.
    Missed {
        /// How many.
        events: u64,
    },
}

/// Why a model was unloaded by the engine itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvictionReason {
    /// Another model needed its memory, or its place.
    RoomFor {
        /// That model's id.
        model: String,
    },
    /// Nobody has used it for as long as it was to stay.
    Idle,
    /// Memory runs short.
    Pressure(PressureLevel),
}

impl fmt::Display for MemoryEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pressure { level, source: Some(source), reason } => {
                write!(f, "memory pressure is {level}: {source}: {reason}")
            }
            Self::Pressure { level, source: None, reason } => write!(f, "memory pressure is {level}: {reason}"),
            Self::Admitted { model, bytes } => {
                write!(f, "{} are set aside for `{model}`", DecimalBytes(*bytes))
            }
            Self::Refused { model, reason } => write!(f, "`{model}` is not loaded: {reason}"),
            Self::Retried { model, context_length, reason } => {
                write!(f, "`{model}` is loaded once more, with a context of {context_length} tokens: {reason}")
            }
            Self::Evicted { model, bytes, reason } => {
                write!(f, "`{model}` was unloaded, {} freed: {reason}", DecimalBytes(*bytes))
            }
            Self::Trimmed { model, bytes, level } => {
                write!(f, "`{model}` gave back {}: memory pressure is {level}", DecimalBytes(*bytes))
            }
            Self::GenerationStopped { model } => {
                write!(f, "a generation of `{model}` was stopped: memory pressure is critical")
            }
            Self::Missed { events } => write!(f, "{events} events were missed"),
        }
    }
}

impl fmt::Display for EvictionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoomFor { model } => write!(f, "to make room for `{model}`"),
            Self::Idle => f.write_str("nobody has used it for as long as it was to stay"),
            Self::Pressure(level) => write!(f, "memory pressure is {level}"),
        }
    }
}

/// What happens from the subscription on ([`crate::Engine::memory_events`]). Whoever looks too late misses the oldest, and is
/// told how many.
pub struct MemoryEvents {
    receiver: broadcast::Receiver<MemoryEvent>,
}

impl MemoryEvents {
    /// The next event, once there is one; `None` when the engine and its models are gone. May be dropped and called again.
    pub async fn next(&mut self) -> Option<MemoryEvent> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(events)) => Some(MemoryEvent::Missed { events }),
            Err(RecvError::Closed) => None,
        }
    }

    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<MemoryEvent> {
        match self.receiver.try_recv() {
            Ok(event) => Some(event),
            Err(TryRecvError::Lagged(events)) => Some(MemoryEvent::Missed { events }),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }
}

impl fmt::Debug for MemoryEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryEvents").field("waiting", &self.receiver.len()).finish()
    }
}

/// Where events go: to whoever subscribed, and to the log.
pub(super) struct Events(broadcast::Sender<MemoryEvent>);

impl Events {
    pub(super) fn new() -> Self {
        Self(broadcast::channel(KEPT).0)
    }

    pub(super) fn subscribe(&self) -> MemoryEvents {
        MemoryEvents { receiver: self.0.subscribe() }
    }

    pub(super) fn tell(&self, event: MemoryEvent) {
        match &event {
            MemoryEvent::Admitted { .. } => tracing::debug!(target: "llm_local::memory", "{event}"),
            MemoryEvent::Refused { .. } => tracing::warn!(target: "llm_local::memory", "{event}"),
            _ => tracing::info!(target: "llm_local::memory", "{event}"),
        }
        // Where nobody has subscribed, nobody is to be told.
        let _ = self.0.send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscribers_hear_what_comes_after_them_and_how_much_they_missed() {
        let events = Events::new();
        let event = |n: usize| MemoryEvent::GenerationStopped { model: n.to_string() };
        events.tell(event(0));
        let mut subscriber = events.subscribe();
        assert_eq!(subscriber.try_next(), None);
        events.tell(event(1));
        assert_eq!(pollster::block_on(subscriber.next()), Some(event(1)));
        for n in 0..KEPT + 3 {
            events.tell(event(n));
        }
        assert_eq!(subscriber.try_next(), Some(MemoryEvent::Missed { events: 3 }));
        assert_eq!(subscriber.try_next(), Some(event(3)));
        drop(events);
        let last = std::iter::from_fn(|| pollster::block_on(subscriber.next())).last();
        assert_eq!(last, Some(event(KEPT + 2)));
    }
}
