//! The progress of several loads, as that of one.

use std::sync::{Arc, Mutex, PoisonError};

use llm_local_core::{LoadOptions, ProgressEvent, ProgressHandler};

/// Loads one after the other that an application hears of as one: each goes on where the one before it ended, and all
/// tensors of all of them are the total. It is a guess until the last of them tells how many it has, and is never corrected
/// so far that less than what was told would be done.
pub(in crate::engine) struct Loads {
    options: LoadOptions,
    /// How many are still to come.
    left: usize,
    told: Arc<Mutex<Told>>,
}

/// What an application was told.
#[derive(Default)]
struct Told {
    /// Tensors of the loads so far.
    all: usize,
    done: usize,
    /// Of all loads.
    total: usize,
}

impl Loads {
    /// `count` loads, each as `options` says.
    pub(in crate::engine) fn new(options: LoadOptions, count: usize) -> Self {
        Self { options, left: count, told: Arc::default() }
    }

    /// The options of the next load.
    pub(in crate::engine) fn next(&mut self) -> LoadOptions {
        self.left = self.left.saturating_sub(1);
        let mut options = self.options.clone();
        options.progress = options.progress.map(|handler| {
            let before = self.told.lock().unwrap_or_else(PoisonError::into_inner).all;
            let told = self.told.clone();
            Arc::new(Part { handler, before, after: self.left, told }) as Arc<dyn ProgressHandler>
        });
        options
    }
}

/// Hears of one of several loads.
struct Part {
    handler: Arc<dyn ProgressHandler>,
    before: usize,
    /// How many loads come after it. They are taken to have as many tensors, until they tell.
    after: usize,
    told: Arc<Mutex<Told>>,
}

impl Told {
    /// What is told of a load that says this, where `before` tensors were loaded before it and `after` loads are to come.
    fn next(&mut self, (done, total): (usize, usize), before: usize, after: usize) -> ProgressEvent {
        self.all = before + total;
        let (done, mut total) = (before + done, before + total * (after + 1));
        // The largest total of which `done` is no smaller a part than was told. It is no smaller than `done`, since what was
        // told was not more than all.
        if self.done > 0 {
            let most = done as u128 * self.total as u128 / self.done as u128;
            total = total.min(usize::try_from(most).unwrap_or(usize::MAX));
        }
        (self.done, self.total) = (done, total);
        ProgressEvent::loading(done, total)
    }
}

impl ProgressHandler for Part {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Loading { done, total, .. } = event else { return self.handler.on_progress(event) };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let event = told.next((*done, *total), self.before, self.after);
        // The handler may take as long as it likes.
        drop(told);
        self.handler.on_progress(&event);
    }
}
