//! The worker with a model that computes nothing: it logs its steps, waits at gates, and breaks on purpose.

/// Each model on a thread of its own, or driven by the test.
#[path = "."]
mod own {
    mod adapters;
    mod anew;
    mod conformance;
    mod driven;
    mod ends;
    mod failures;
    mod fairness;
    mod fake;
    mod generating;
    mod inbox;
    mod lifetime;
    mod outlet;
    mod random;
    mod replaced;
    mod sessions;
    mod sharing;
    mod sleep;

    mod kind {
        pub(super) use crate::worker::spawn::spawn_with_clock;
    }
}

/// The same, with all models of all these tests on one thread; and what is said of such a thread alone.
#[path = "."]
#[expect(clippy::duplicate_mod, reason = "one source of tests for both kinds of threads")]
mod shared {
    mod conformance;
    #[allow(dead_code, reason = "some of it is for the tests above alone")]
    mod driven;
    mod ends;
    mod failures;
    mod fairness;
    #[allow(dead_code, reason = "some of it is for the tests above alone")]
    mod fake;
    mod generating;
    mod lifetime;
    mod sessions;
    mod sharing;

    mod hosted;
    mod hosted_loads;

    mod kind {
        use std::sync::Arc;

        use llm_local_core::{LoadOptions, LoadedModel, Result};

        use crate::worker::{Built, SharedThread, StepModel, clock::Clock, spawn::spawn_on_with_clock};

        static THREAD: SharedThread = SharedThread::new("tests");

        pub(super) async fn spawn_with_clock<M: StepModel>(
            options: &LoadOptions,
            clock: Clock,
            build: impl FnOnce() -> Result<Built<M>> + Send + 'static,
        ) -> Result<Arc<dyn LoadedModel>> {
            spawn_on_with_clock(&THREAD, options, clock, async move || build()).await
        }
    }
}
