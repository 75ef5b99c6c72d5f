//! Blocking work off the caller's executor, on any executor.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use llm_local_core::{Error, Result};

/// Runs `work` on a thread of its own and waits for it. Dropping the future lets the thread finish unheard.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(format!("llm-local {what}"))
        .spawn(move || {
            let _ = sender.send(work());
        })
        .map_err(|e| Error::load(what, format!("the operating system gave no thread: {e}")))?;
    // The sender is dropped without a value only by a panic, whose message the panic hook has printed.
    receiver.await.unwrap_or_else(|_| Err(Error::load(what, "it panicked; this is a bug in llm-local")))
}

/// As [`blocking`], for work that stops, or leaves its last step, once nobody waits for it.
pub(crate) async fn blocking_while_wanted<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce(&Wanted) -> Result<T> + Send + 'static,
) -> Result<T> {
    let wanted = Wanted::new();
    let _given_up_on_drop = GiveUp(wanted.clone());
    blocking(what, move || work(&wanted)).await
}

/// As [`blocking_while_wanted`], for work that removes what it has done once nobody waits for it: dropping the future waits
/// until that is gone, so that a program that ends then leaves nothing. It takes as long as `work` goes on before it looks
/// whether it is wanted.
pub(crate) async fn blocking_until_ended<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce(&Wanted) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (ending, ended) = mpsc::channel();
    // Dropped after the future below, by which the work hears that nobody waits.
    let _until_ended = UntilEnded { what, ended };
    blocking_while_wanted(what, move |wanted| {
        let _ending: mpsc::Sender<()> = ending;
        work(wanted)
    })
    .await
}

/// Waits, when it is dropped, until the other end of its channel is gone.
struct UntilEnded {
    what: &'static str,
    ended: mpsc::Receiver<()>,
}

impl Drop for UntilEnded {
    fn drop(&mut self) {
        // Nothing is ever sent.
        if self.ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
            tracing::debug!("`{}` is given up, and ends behind the step at hand", self.what);
            let _ = self.ended.recv();
        }
    }
}

/// Whether somebody still waits for work on a thread.
#[derive(Clone)]
pub(crate) struct Wanted(Arc<Mutex<bool>>);

impl Wanted {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(true)))
    }

    /// # Errors
    /// [`Error::Cancelled`] once nobody waits.
    pub(crate) fn check(&self) -> Result<()> {
        self.commit(|| Ok(()))
    }

    /// Does `step`, unless nobody waits any more. A future that is dropped meanwhile is gone only when the step is done,
    /// so that what its owner does next comes after it.
    ///
    /// # Errors
    /// Those of `step`; [`Error::Cancelled`] if nobody waits.
    pub(crate) fn commit<T>(&self, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let wanted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *wanted { step() } else { Err(Error::Cancelled) }
    }

    /// Nobody waits any more.
    pub(crate) fn give_up(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

struct GiveUp(Wanted);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_panic_becomes_an_error() {
        let error = pollster::block_on(blocking::<()>("test", || panic!("on purpose"))).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        assert_eq!(pollster::block_on(blocking("test", || Ok(7))).unwrap(), 7);
    }

    #[test]
    fn work_that_nobody_waits_for_does_not_take_its_last_step() {
        let (release, released) = mpsc::channel();
        let (done, result) = mpsc::channel();
        let mut work = Box::pin(blocking_while_wanted("test", move |wanted| {
            released.recv().unwrap();
            done.send(wanted.commit(|| Ok("done")).map_err(|e| e.code())).unwrap();
            Ok(())
        }));
        assert!(work.as_mut().now_or_never().is_none());
        drop(work);
        release.send(()).unwrap();
        assert_eq!(result.recv().unwrap(), Err("cancelled"));
        assert_eq!(pollster::block_on(blocking_while_wanted("test", |wanted| wanted.commit(|| Ok(7)))).unwrap(), 7);
    }

    #[test]
    fn a_drop_waits_until_work_has_removed_what_it_did() {
        struct Removed(mpsc::Sender<&'static str>);
        impl Drop for Removed {
            fn drop(&mut self) {
                // Long enough for a drop that does not wait to come first.
                (0..1000).for_each(|_| std::thread::yield_now());
                self.0.send("removed").unwrap();
            }
        }
        let (begin, begun) = mpsc::channel();
        let (order, events) = mpsc::channel();
        let (done, dropped) = (Removed(order.clone()), order);
        let mut work = Box::pin(blocking_until_ended::<()>("test", move |wanted| {
            let _done = done;
            begin.send(()).unwrap();
            loop {
                wanted.check()?;
                std::thread::yield_now();
            }
        }));
        assert!(work.as_mut().now_or_never().is_none());
        begun.recv().unwrap();
        drop(work);
        dropped.send("drop").unwrap();
        assert_eq!([events.recv().unwrap(), events.recv().unwrap()], ["removed", "drop"]);
        assert_eq!(pollster::block_on(blocking_until_ended("test", |_| Ok(7))).unwrap(), 7);
    }

    #[test]
    fn a_drop_waits_for_the_last_step_that_has_begun() {
        let (release, released) = mpsc::channel();
        let (begin, begun) = mpsc::channel();
        let (order, events) = mpsc::channel();
        let dropped = order.clone();
        let mut work = Box::pin(blocking_while_wanted("test", move |wanted| {
            released.recv().unwrap();
            wanted.commit(|| {
                begin.send(()).unwrap();
                // Long enough for a drop that does not wait to come first.
                (0..1000).for_each(|_| std::thread::yield_now());
                order.send("step").unwrap();
                Ok(())
            })
        }));
        assert!(work.as_mut().now_or_never().is_none());
        release.send(()).unwrap();
        begun.recv().unwrap();
        drop(work);
        dropped.send("drop").unwrap();
        assert_eq!([events.recv().unwrap(), events.recv().unwrap()], ["step", "drop"]);
    }
}
