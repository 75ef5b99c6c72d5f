//! What holds loads and unloads back until a test lets them through.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Semaphore;

/// Something that is done when it is let through.
type Parked = Box<dyn FnOnce() + Send>;

/// Holds loads, or unloads, back until a test lets them through.
pub struct Gate {
    permits: Semaphore,
    /// Unloads, which go on whether anybody waits for them or not.
    parked: Mutex<VecDeque<Parked>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self { permits: Semaphore::new(0), parked: Mutex::default() }
    }

    /// Lets `n` through, those that wait first.
    pub fn let_through(&self, n: usize) {
        let parked: Vec<_> = {
            let mut waiting = self.parked();
            let first = n.min(waiting.len());
            self.permits.add_permits(n - first);
            waiting.drain(..first).collect()
        };
        // Not under the lock: what is done may bring the next one here.
        parked.into_iter().for_each(|parked| parked());
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        let parked: Vec<_> = {
            let mut waiting = self.parked();
            self.permits.close();
            waiting.drain(..).collect()
        };
        parked.into_iter().for_each(|parked| parked());
    }

    /// How many unloads are held back now.
    pub fn parked_unloads(&self) -> usize {
        self.parked().len()
    }

    pub(super) async fn pass(&self) {
        // An error says that the gate was opened for good.
        if let Ok(permit) = self.permits.acquire().await {
            permit.forget();
        }
    }

    /// Does `then` once it is let through, which may be now.
    pub(super) fn park(&self, then: impl FnOnce() + Send + 'static) {
        {
            let mut waiting = self.parked();
            let is_through = match self.permits.try_acquire() {
                Ok(permit) => {
                    permit.forget();
                    true
                }
                Err(_) => self.permits.is_closed(),
            };
            if !is_through {
                waiting.push_back(Box::new(then));
                return;
            }
        }
        then();
    }

    fn parked(&self) -> MutexGuard<'_, VecDeque<Parked>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("permits", &self.permits).field("parked", &self.parked_unloads()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    #[test]
    fn what_is_parked_goes_on_in_its_order_and_at_once_where_it_is_let_through_before() {
        let (gate, done) = (Gate::new(), Arc::new(AtomicUsize::new(0)));
        let park = |add: usize| {
            let counts = done.clone();
            gate.park(move || {
                counts.fetch_add(add, Ordering::SeqCst);
            });
            (done.load(Ordering::SeqCst), gate.parked_unloads())
        };
        let done = || done.load(Ordering::SeqCst);
        assert_eq!((park(1), park(10)), ((0, 1), (0, 2)));
        gate.let_through(1);
        assert_eq!((done(), gate.parked_unloads()), (1, 1));
        gate.let_through(2);
        assert_eq!(done(), 11);
        // The other one was not used yet.
        assert_eq!((park(100), park(1000)), ((111, 0), (111, 1)));
        gate.open();
        assert_eq!((done(), park(10_000)), (1111, (11_111, 0)));
    }
}
