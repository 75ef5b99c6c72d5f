//! The progress of several loads, as that of one.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use llm_local_core::{LoadOptions, ProgressEvent, ProgressHandler};

/// Loads one after the other that an application hears of as one: each goes on where the one before it ended, and all
/// tensors of all of them are the total.
pub(in crate::engine) struct Loads {
    options: LoadOptions,
    /// How many are still to come.
    left: usize,
    /// Tensors of those before.
    before: Arc<AtomicUsize>,
}

impl Loads {
    /// `count` loads, each as `options` says.
    pub(in crate::engine) fn new(options: LoadOptions, count: usize) -> Self {
        Self { options, left: count, before: Arc::default() }
    }

    /// The options of the next load.
    pub(in crate::engine) fn next(&mut self) -> LoadOptions {
        self.left = self.left.saturating_sub(1);
        let mut options = self.options.clone();
        options.progress = options.progress.map(|handler| {
            let (before, all) = (self.before.load(Ordering::Acquire), self.before.clone());
            Arc::new(Part { handler, before, after: self.left, all }) as Arc<dyn ProgressHandler>
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
    /// Where the next load begins.
    all: Arc<AtomicUsize>,
}

impl ProgressHandler for Part {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Loading { done, total, .. } = event else { return self.handler.on_progress(event) };
        self.all.store(self.before + total, Ordering::Release);
        let total = self.before + total * (self.after + 1);
        self.handler.on_progress(&ProgressEvent::loading(self.before + done, total));
    }
}
