//! Anonymous memory over time.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use crate::{Result, resident};

/// When this process had how many anonymous bytes (RssAnon).
pub(super) struct Samples(Vec<(Instant, u64)>);

impl Samples {
    /// Bytes that were there in the first sample, and are not in the last.
    pub(super) fn fell(&self) -> u64 {
        match (self.0.first(), self.0.last()) {
            (Some((_, first)), Some((_, last))) => first.saturating_sub(*last),
            _ => 0,
        }
    }

    /// The first moment from which on at least `share` of what fell was gone, for good.
    ///
    /// # Panics
    /// Without samples.
    pub(super) fn back(&self, share: f64) -> Instant {
        let first = self.0.first().map_or(0, |(_, bytes)| *bytes);
        let most = first - (self.fell() as f64 * share) as u64;
        let above = self.0.iter().rposition(|(_, bytes)| *bytes > most);
        // What is above is not the last one, which fell by all of it.
        self.0[above.map_or(0, |at| (at + 1).min(self.0.len() - 1))].0
    }
}

/// A thread that looks at the memory as often as it can.
pub(super) struct Sampler {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<(Instant, u64)>>>,
}

impl Sampler {
    /// Begins. There is a sample when this returns.
    pub(super) fn start() -> Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let (first, begun) = mpsc::channel();
        let ended = end.clone();
        let thread = thread::spawn(move || {
            let status = File::open("/proc/self/status")?;
            let mut text = [0; 4096];
            let mut samples = Vec::new();
            while !ended.load(Ordering::Acquire) {
                let length = status.read_at(&mut text, 0)?;
                let bytes = resident::parse(str::from_utf8(&text[..length])?, "RssAnon");
                samples.push((Instant::now(), bytes.ok_or("/proc/self/status has no RssAnon in kB")?));
                if samples.len() == 1 {
                    // Whoever waits for it has asked for it.
                    let _ = first.send(());
                }
            }
            Ok(samples)
        });
        // A thread that fails says why when it is joined.
        let _ = begun.recv();
        Ok(Self { end, thread })
    }

    /// Ends.
    pub(super) fn stop(self) -> Result<Samples> {
        self.end.store(true, Ordering::Release);
        Ok(Samples(self.thread.join().map_err(|_| "the thread that looks at the memory panicked")??))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn memory_is_back_when_no_later_sample_has_it_again() {
        let start = Instant::now();
        let at = |n: u64| start + Duration::from_millis(n);
        let of = |bytes: &[u64]| Samples((0..).map(at).zip(bytes.iter().copied()).collect());
        let samples = of(&[110, 110, 60, 14, 80, 15, 12, 10]);
        assert_eq!(samples.fell(), 100);
        assert_eq!(samples.back(0.95), at(5));
        assert_eq!(samples.back(0.5), at(5));
        assert_eq!(samples.back(1.0), at(7));
        assert_eq!(of(&[110, 110, 10]).back(0.95), at(2));
        assert_eq!((of(&[10, 20]).fell(), of(&[10, 20]).back(0.95)), (0, at(1)));
    }
}
