//! The thread that calls a handler, and its inbox.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use llm_local_core::{Error, ProgressEvent, ProgressHandler, Result};
use tokio::sync::watch;

/// What an event tells of. A newer one takes the place of an unheard one of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What is present at the start.
    First,
    /// The plan, on its way.
    Plan,
    /// A file, on its way.
    File(usize),
    /// A file that somebody else fetches.
    Waiting(usize),
    /// A file that is in place.
    Last(usize),
    /// The plan, done.
    Final,
}

/// An event on its way to the handler.
#[derive(Debug, Clone)]
pub(super) struct Note {
    pub(super) kind: Kind,
    pub(super) event: ProgressEvent,
}

/// A thread that calls one handler until it is closed.
pub(super) struct Delivery {
    inbox: Arc<Inbox>,
    ended: watch::Receiver<bool>,
}

#[derive(Default)]
struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    notes: VecDeque<Note>,
    closed: bool,
}

impl Delivery {
    /// Starts the thread.
    pub(super) fn start(handler: Arc<dyn ProgressHandler>) -> Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let (ending, ended) = watch::channel(false);
        let theirs = inbox.clone();
        let run = move || {
            // Dropped last, however the thread ends.
            let ending = ending;
            theirs.run(&*handler);
            // The handler may hold a channel whose other end waits for it to go.
            drop(handler);
            ending.send_replace(true);
        };
        thread::Builder::new().name("progress".into()).spawn(run).map_err(|e| Error::DownloadFailed {
            what: "the plan".into(),
            reason: format!("no thread could be started for its progress: {e}"),
            retryable: true,
            source: Some(Arc::new(e)),
        })?;
        Ok(Self { inbox, ended })
    }

    /// Leaves events for the handler. Never waits for it.
    pub(super) fn post(&self, notes: Vec<Note>) {
        if notes.is_empty() {
            return;
        }
        let mut state = self.inbox.state();
        if !state.closed {
            notes.into_iter().for_each(|note| state.put(note));
            self.inbox.changed.notify_one();
        }
    }

    /// Leaves the last events; the thread ends once they were heard.
    pub(super) fn close(&self, last: Vec<Note>) {
        let mut state = self.inbox.state();
        if !state.closed {
            last.into_iter().for_each(|note| state.put(note));
            state.closed = true;
            self.inbox.changed.notify_one();
        }
    }

    /// Forgets what was not heard but for what is present at the start, which every consumer hears first; the thread ends.
    pub(super) fn stop(&self) {
        let mut state = self.inbox.state();
        state.notes.retain(|note| note.kind == Kind::First);
        state.closed = true;
        self.inbox.changed.notify_one();
    }

    /// Forgets what was not heard; the thread ends.
    pub(super) fn cut(&self) {
        let mut state = self.inbox.state();
        state.notes.clear();
        state.closed = true;
        self.inbox.changed.notify_one();
    }

    /// Ends when the handler will be called no more. Close or cut before.
    pub(super) async fn ended(&self) {
        // An error means that the thread is gone without a word, which is an end too.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, handler: &dyn ProgressHandler) {
        while let Some(note) = self.next() {
            // Not under the lock: a handler may take its time, and may panic.
            if catch_unwind(AssertUnwindSafe(|| handler.on_progress(&note.event))).is_err() {
                tracing::error!("a progress handler panicked; it is called no more, and the download goes on");
                return;
            }
        }
    }

    fn next(&self) -> Option<Note> {
        let mut state = self.state();
        loop {
            if let Some(note) = state.notes.pop_front() {
                return Some(note);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn put(&mut self, note: Note) {
        match note.kind {
            // They say all that these had to say.
            Kind::Last(i) => self.notes.retain(|n| n.kind != Kind::File(i) && n.kind != Kind::Waiting(i)),
            Kind::Final => self.notes.retain(|n| n.kind != Kind::Plan),
            _ => {}
        }
        match self.notes.iter_mut().find(|n| n.kind == note.kind) {
            Some(unheard) => *unheard = note,
            None => self.notes.push_back(note),
        }
    }
}
