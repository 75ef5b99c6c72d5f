//! What wakes a worker that sleeps because a generation has no room. (Whether the thread was asleep already, a test of
//! the whole worker cannot know.)

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
};

use llm_local_core::{CancellationToken, GenerationEvent, Result};
use pollster::block_on;

use crate::worker::events::{Events, channel};

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// Whether `cause` wakes whoever waits for a full channel.
fn wakes(cause: impl FnOnce(Events, &CancellationToken) -> Option<Events>) -> bool {
    let (outlet, events) = channel("fake".into());
    outlet.send(GenerationEvent::Text("unread".into())).unwrap();
    assert!(!outlet.has_room() && !outlet.is_dropped());
    let cancel = CancellationToken::new();
    let mut waiting = pin!(outlet.woken(&cancel));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let _kept = cause(events, &cancel);
    // Both: a wake alone would send the worker back to sleep.
    woken.0.load(SeqCst) && waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
}

#[test]
fn a_sleeping_worker_is_woken_by_a_read_a_drop_and_a_cancel() {
    let read = |mut events: Events, _: &CancellationToken| {
        let next = std::future::poll_fn(|cx| futures_core::Stream::poll_next(pin!(&mut events), cx));
        assert!(matches!(block_on(next), Some(Ok(GenerationEvent::Text(_)))));
        Some(events)
    };
    assert!(wakes(read));
    assert!(wakes(|_, _| None));
    assert!(wakes(|events, cancel| {
        cancel.cancel();
        Some(events)
    }));
    assert!(!wakes(|events, _| Some(events)));
}

#[test]
fn a_full_channel_refuses_a_second_event() {
    let (outlet, _events) = channel("fake".into());
    let send = || -> Result<()> { outlet.send(GenerationEvent::Text("x".into())) };
    send().unwrap();
    assert!(send().unwrap_err().to_string().contains("without room"));
}
