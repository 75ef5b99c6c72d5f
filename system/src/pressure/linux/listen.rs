//! A thread that sleeps until the system has something to say.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

use crate::pressure::{
    Pressure, PressureSink, Watch,
    watch::{join, tell},
};

/// How long a thread lets further events come together after one: so that a storm of them costs no more than a hundred looks
/// and calls a second. The kernel holds back the events of cgroup v2 files for as long.
const REST: Duration = Duration::from_millis(10);

/// What a thread listens to, and what it makes of it.
pub(super) trait Listen: Send + 'static {
    /// What is waited for.
    fn fds(&self) -> Vec<PollFd<'_>>;

    /// What it means that the `fds`, in their order, are `ready`. It must take away what made them so.
    fn hear(&mut self, ready: &[PollFlags]) -> Heard;
}

/// What a wake means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Report(Pressure),
    /// What was listened to is no more: the thread ends.
    Gone,
}

/// Listens in a thread `name` of its own.
///
/// # Errors
/// What the system said of the eventfd or the thread.
pub(super) fn spawn(name: &str, listener: impl Listen, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (named, stopped) = (name.to_owned(), stop.clone());
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        // One that ends by itself leaves a watch behind that tells of nothing, which is worth a line.
        match run(&stopped, listener, &sink) {
            Ok(End::Stopped) => {}
            Ok(End::Gone) => tracing::warn!(thread = named, "memory pressure is no longer heard of: the group is gone"),
            Err(error) => tracing::error!(thread = named, %error, "memory pressure is no longer heard of: poll failed"),
        }
    })?;
    Ok(Box::new(Listening { stop, thread: Some(thread) }))
}

enum End {
    Stopped,
    Gone,
}

fn run(stop: &OwnedFd, mut listener: impl Listen, sink: &PressureSink) -> io::Result<End> {
    loop {
        let Some(ready) = wait(stop, listener.fds(), None)? else { return Ok(End::Stopped) };
        match listener.hear(&ready) {
            Heard::Nothing => {}
            Heard::Report(pressure) => tell(sink, pressure),
            Heard::Gone => return Ok(End::Gone),
        }
        if wait(stop, Vec::new(), Some(REST))?.is_none() {
            return Ok(End::Stopped);
        }
    }
}

/// What of `fds` is ready, after `time` at the latest; nothing where the thread is to stop.
fn wait<'a>(stop: &'a OwnedFd, mut fds: Vec<PollFd<'a>>, time: Option<Duration>) -> io::Result<Option<Vec<PollFlags>>> {
    fds.push(PollFd::new(stop, PollFlags::IN));
    let time = time.map(|time| Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() });
    loop {
        match poll(&mut fds, time.as_ref()) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut ready: Vec<_> = fds.iter().map(PollFd::revents).collect();
    Ok(ready.pop().is_none_or(|stop| stop.is_empty()).then_some(ready))
}

struct Listening {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch for Listening {}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.stop, &1_u64.to_ne_bytes()) {
            // It cannot be: there is room for 2^64 - 2 in it. A join would wait for ever.
            tracing::error!(%error, "the thread that listens for memory pressure could not be stopped");
            return;
        }
        join(self.thread.take());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Mutex,
            mpsc::{Receiver, RecvTimeoutError, Sender, channel},
        },
        time::Instant,
    };

    use super::*;
    use crate::pressure::PressureLevel;

    /// Says what it is told each time that its bell rings, and tells when it is dropped, which is when its thread ends.
    struct Bell {
        bell: Arc<OwnedFd>,
        says: Receiver<Heard>,
        _ended: Sender<()>,
    }

    impl Listen for Bell {
        fn fds(&self) -> Vec<PollFd<'_>> {
            vec![PollFd::new(&self.bell, PollFlags::IN)]
        }

        fn hear(&mut self, ready: &[PollFlags]) -> Heard {
            assert_eq!(ready, [PollFlags::IN]);
            rustix::io::read(&self.bell, &mut [0; 8]).unwrap();
            self.says.recv().unwrap()
        }
    }

    struct Ringer {
        bell: Arc<OwnedFd>,
        says: Sender<Heard>,
        ended: Receiver<()>,
    }

    impl Ringer {
        fn new() -> (Self, Bell) {
            let bell = Arc::new(eventfd(0, EventfdFlags::SEMAPHORE).unwrap());
            let ((says, told), (ends, ended)) = (channel(), channel());
            (Self { bell: bell.clone(), says, ended }, Bell { bell, says: told, _ended: ends })
        }

        fn ring(&self, heard: Heard) {
            self.says.send(heard).unwrap();
            rustix::io::write(&self.bell, &1_u64.to_ne_bytes()).unwrap();
        }

        /// Waits until the thread drops its listener.
        fn wait_for_its_end(&self) {
            self.ended.recv_timeout(Duration::from_secs(60)).unwrap_err();
        }
    }

    fn report(reason: &str) -> Heard {
        Heard::Report(Pressure::new(PressureLevel::Warn, "bell", reason))
    }

    fn sink() -> (PressureSink, Receiver<String>) {
        let (sender, reports) = channel();
        (Arc::new(move |pressure: Pressure| sender.send(pressure.reason).unwrap()), reports)
    }

    /// Threads of this process with that name.
    fn threads(name: &str) -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path().join("comm"));
        tasks.filter(|comm| std::fs::read_to_string(comm).is_ok_and(|comm| comm.trim_end() == name)).count()
    }

    /// The kernel may still show a thread for a moment that was joined.
    fn wait_for_no_thread(name: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while threads(name) > 0 {
            assert!(Instant::now() < deadline, "{name} still runs");
            thread::yield_now();
        }
    }

    #[test]
    fn reports_come_in_order_and_nothing_is_left_after_the_drop() {
        let (ringer, bell) = Ringer::new();
        let (sink, reports) = sink();
        let watch = spawn("test-joins", bell, sink).unwrap();
        for heard in [report("one"), Heard::Nothing, report("two")] {
            ringer.ring(heard);
        }
        assert_eq!(reports.iter().take(2).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(threads("test-joins"), 1);
        drop(watch);
        wait_for_no_thread("test-joins");
        assert!(ringer.says.send(report("three")).is_err(), "the listener outlived the watch");
        assert!(reports.recv().is_err(), "the sink outlived the watch");
    }

    #[test]
    fn a_sink_that_panics_is_called_again() {
        let (ringer, bell) = Ringer::new();
        let (sink, reports) = sink();
        let failing: PressureSink = Arc::new(move |pressure| {
            sink(pressure.clone());
            assert_ne!(pressure.reason, "bad", "as the test wants");
        });
        let watch = spawn("test-panics", bell, failing).unwrap();
        ringer.ring(report("bad"));
        ringer.ring(report("good"));
        assert_eq!(reports.iter().take(2).collect::<Vec<_>>(), ["bad", "good"]);
        drop(watch);
        wait_for_no_thread("test-panics");
    }

    #[test]
    fn a_sink_may_drop_the_watch_that_it_is_called_by() {
        let (ringer, bell) = Ringer::new();
        let watch = Arc::new(Mutex::new(None::<Box<dyn Watch>>));
        let (dropped, drops) = channel();
        let dropping: PressureSink = Arc::new({
            let watch = watch.clone();
            move |_| {
                let watch = watch.lock().unwrap().take();
                let is_first = watch.is_some();
                drop(watch);
                // Behind the drop, which must return.
                dropped.send(is_first).unwrap();
            }
        });
        // Held until it is there, so that the sink cannot be first.
        let mut held = watch.lock().unwrap();
        *held = Some(spawn("test-drops", bell, dropping).unwrap());
        ringer.ring(report("once"));
        drop(held);
        assert_eq!(drops.recv_timeout(Duration::from_secs(60)), Ok(true));
        ringer.wait_for_its_end();
        assert!(drops.recv().is_err(), "the sink was called after the drop, or is still held");
    }

    #[test]
    fn a_thread_ends_with_what_it_listens_to_and_its_watch_can_be_dropped() {
        let (ringer, bell) = Ringer::new();
        let (sink, reports) = sink();
        let watch = spawn("test-gone", bell, sink).unwrap();
        ringer.ring(Heard::Gone);
        ringer.wait_for_its_end();
        assert!(reports.recv().is_err());
        drop(watch);
        wait_for_no_thread("test-gone");
    }

    #[test]
    fn a_drop_waits_for_the_sink() {
        let (ringer, bell) = Ringer::new();
        let (enters, entered) = channel();
        let (drops, dropped) = channel::<()>();
        let (tells, told) = channel();
        let dropped = Mutex::new(dropped);
        let slow: PressureSink = Arc::new(move |_| {
            enters.send(()).unwrap();
            // In this time a drop that waits for nobody is over.
            tells.send(dropped.lock().unwrap().recv_timeout(Duration::from_millis(200))).unwrap();
        });
        let watch = spawn("test-waits", bell, slow).unwrap();
        ringer.ring(report("one"));
        entered.recv().unwrap();
        drop(watch);
        // Nobody listens any more, if the sink is gone with the thread.
        assert!(drops.send(()).is_err(), "the sink outlived the watch");
        assert_eq!(told.recv(), Ok(Err(RecvTimeoutError::Timeout)));
    }
}
