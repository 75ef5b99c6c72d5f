use std::{
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use tempfile::TempDir;

use super::*;
use crate::Pressure;

/// A folder with the files of a group that may have 1000 bytes, of which `used` are in use and 300 more hold files.
struct Fake {
    folder: TempDir,
}

impl Fake {
    fn new(events: &str, used: u64) -> Self {
        let fake = Self { folder: tempfile::tempdir().unwrap() };
        fake.write(events, &counts(0, 0, 0, 0));
        fake.write("memory.max", "1000\n");
        fake.write("memory.high", "max\n");
        fake.write("memory.stat", "anon 1\ninactive_file 200\nactive_file 100\n");
        fake.write("memory.current", &format!("{}\n", used + 300));
        fake
    }

    /// In place and at once, as the kernel does: nobody sees half of it.
    fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
    }

    fn group(&self) -> Group {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        Group::watch(&inotify, self.folder.path()).unwrap()
    }
}

/// Of the same length whatever the counts are.
fn counts(high: u64, max: u64, oom: u64, kill: u64) -> String {
    format!("low 7\nhigh {high:3}\nmax {max:3}\noom {oom:3}\noom_kill {kill:3}\noom_group_kill 0\n")
}

fn sink() -> (PressureSink, Receiver<Pressure>) {
    let (sender, reports) = channel();
    (Arc::new(move |pressure| sender.send(pressure).unwrap()), reports)
}

#[test]
fn the_counters_of_the_kernel_are_read() {
    let text = "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nsock_throttled 7\n";
    assert_eq!(Counts::parse(text), Counts { high: 2, max: 3, oom: 4, kills: 11 });
    // Before 4.19 there were fewer.
    assert_eq!(Counts::parse("low 0\nhigh 1\nmax 0\n"), Counts { high: 1, ..Counts::default() });
}

#[test]
fn what_a_rise_means_depends_on_what_is_left() {
    use PressureLevel::{Critical, Warn};
    let cases = [
        (counts(1, 0, 0, 0), [None, Some(Warn), Some(Warn)]),
        (counts(0, 1, 0, 0), [None, Some(Warn), Some(Critical)]),
        (counts(9, 1, 0, 0), [None, Some(Warn), Some(Critical)]),
        (counts(0, 0, 1, 0), [Some(Critical); 3]),
        (counts(0, 0, 0, 1), [Some(Critical); 3]),
        (counts(0, 0, 0, 0), [None; 3]),
    ];
    for (counts, levels) in &cases {
        for (used, level) in [700, 920, 960].into_iter().zip(levels) {
            let fake = Fake::new("memory.events.local", used);
            let mut group = fake.group();
            fake.write("memory.events.local", counts);
            let heard = group.look(&Shares::default()).unwrap();
            assert_eq!(heard.map(|heard| heard.0), *level, "{counts} with {used} in use");
            // It is told once.
            assert_eq!(group.look(&Shares::default()).unwrap(), None);
        }
    }
}

#[test]
fn a_file_that_changes_is_told_until_the_drop() {
    let [own, above] = [Fake::new("memory.events.local", 500), Fake::new("memory.events", 970)];
    let (sink, reports) = sink();
    let source = MemoryEvents::at([own.folder.path(), above.folder.path()]);
    let watch = source.watch(sink).unwrap();

    above.write("memory.events", &counts(0, 5, 0, 0));
    let pressure = reports.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!((pressure.level, pressure.source.as_str()), (PressureLevel::Critical, source.name()));
    let file = above.folder.path().join("memory.events");
    let said = format!("{}: max rose from 0 to 5; 30 of 1000 bytes are left", file.display());
    assert!(pressure.reason.starts_with(&said), "{}", pressure.reason);

    own.write("memory.events.local", &counts(0, 0, 2, 0));
    let pressure = reports.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(pressure.reason.ends_with("memory.events.local: oom rose from 0 to 2"), "{}", pressure.reason);

    drop(watch);
    own.write("memory.events.local", &counts(0, 0, 3, 0));
    assert!(reports.recv().is_err(), "the sink outlived the watch");
}

#[test]
fn how_little_is_short_can_be_said() {
    let fake = Fake::new("memory.events.local", 700);
    let (sink, reports) = sink();
    let source = MemoryEvents::at([fake.folder.path()]).with_shares(Shares::new(0.5, 0.2));
    let watch = source.watch(sink).unwrap();
    fake.write("memory.events.local", &counts(0, 1, 0, 0));
    assert_eq!(reports.recv_timeout(Duration::from_secs(60)).unwrap().level, PressureLevel::Warn);
    drop(watch);
}

#[test]
fn a_rise_is_told_later_where_what_is_left_cannot_be_read() {
    let fake = Fake::new("memory.events.local", 960);
    let mut group = fake.group();
    fake.write("memory.events.local", &counts(0, 1, 0, 0));
    fake.write("memory.max", "soon");
    group.look(&Shares::default()).unwrap_err();
    fake.write("memory.max", "1000");
    let heard = group.look(&Shares::default()).unwrap();
    assert_eq!(heard.map(|heard| heard.0), Some(PressureLevel::Critical));
}

#[test]
fn a_group_that_is_gone_is_left_out_and_the_last_one_ends_the_watch() {
    let [own, above] = [500, 970].map(|used| Fake::new("memory.events.local", used));
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
    let groups = [&own, &above].map(|fake| Group::watch(&inotify, fake.folder.path()).unwrap()).into();
    let mut counters = Counters { inotify, groups, shares: Shares::default() };
    assert_eq!(counters.hear(&[PollFlags::IN]), Heard::Nothing);
    let gone = |fake: &Fake| fs::remove_file(fake.folder.path().join("memory.events.local")).unwrap();
    // What has risen in the others is told all the same.
    gone(&own);
    above.write("memory.events.local", &counts(0, 1, 0, 0));
    let Heard::Report(pressure) = counters.hear(&[PollFlags::IN]) else { panic!("nothing is reported") };
    assert_eq!(pressure.level, PressureLevel::Critical);
    assert_eq!(counters.hear(&[PollFlags::IN]), Heard::Nothing);
    gone(&above);
    assert_eq!(counters.hear(&[PollFlags::IN]), Heard::Gone);
}

#[test]
fn of_what_rose_in_several_groups_the_worst_is_told_and_of_equals_the_nearest() {
    let fakes = [970, 970, 920].map(|used| Fake::new("memory.events.local", used));
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
    let groups = fakes.iter().map(|fake| Group::watch(&inotify, fake.folder.path()).unwrap()).collect();
    let mut counters = Counters { inotify, groups, shares: Shares::default() };
    for worst in [0, 1, 2] {
        for (at, fake) in fakes.iter().enumerate().skip(worst) {
            fake.write("memory.events.local", &counts(0, 1 + worst as u64 * 3 + at as u64, 0, 0));
        }
        let Heard::Report(pressure) = counters.hear(&[PollFlags::IN]) else { panic!("nothing is reported") };
        let level = [PressureLevel::Critical, PressureLevel::Critical, PressureLevel::Warn][worst];
        assert_eq!(pressure.level, level);
        assert!(pressure.reason.starts_with(fakes[worst].folder.path().to_str().unwrap()), "{}", pressure.reason);
    }
}

#[test]
fn groups_without_events_are_left_out_unless_no_group_has_them() {
    let (root, fake) = (tempfile::tempdir().unwrap(), Fake::new("memory.events", 500));
    let (sink, _reports) = sink();
    drop(MemoryEvents::at([fake.folder.path(), root.path()]).watch(sink.clone()).unwrap());
    let error = MemoryEvents::at([root.path()]).watch(sink.clone()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains(root.path().join("memory.events").to_str().unwrap()), "{error}");
    let error = MemoryEvents::at(Vec::<PathBuf>::new()).watch(sink).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
