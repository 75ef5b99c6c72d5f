//! What the kernel tells of pressure, in real control groups, where they can be made.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, clippy::print_stderr)] // a process tells another, and a test that cannot run says so

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{self, Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use fs_err as fs;
use llm_local_system::{
    CgroupTree, Pressure, PressureLevel, PressureSink, PressureSource, SystemProbe, Watch,
    pressure::{
        linux::{GroupNotifications, Psi},
        of_system,
    },
};

const MB: u64 = 1 << 20;
const LIMIT: u64 = 64 * MB;
/// What is eaten at a time.
const BITE: u64 = MB;
/// Far more than any of it takes, for machines that are busy.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_group_that_fills_up_is_told_of_before_it_is_full_and_when_it_is_over() {
    let _alone = alone();
    let Some(group) = Group::new(CgroupTree::of_process().unwrap().v1(), "fills") else { return };
    group.write("memory.limit_in_bytes", &LIMIT.to_string());
    let (sink, reports) = sink();
    let watch = GroupNotifications::at([&group.0]).watch(sink).unwrap();

    let mut hog = Hog::new(&group);
    let mut heard = Vec::new();
    for (share, level) in [(91, PressureLevel::Warn), (96, PressureLevel::Critical)] {
        while group.used() < LIMIT * share / 100 {
            hog.eat();
        }
        // The kernel compares use with files, which may have crossed the last threshold before: then it takes a bite more.
        let said = |pressure: &Pressure| pressure.level >= level;
        while !heard.last().is_some_and(said) {
            match reports.recv_timeout(Duration::from_secs(2)) {
                Ok(pressure) => heard.push(pressure),
                Err(_) => hog.eat(),
            }
        }
        assert_eq!(heard.last().unwrap().level, level, "{heard:#?}");
    }
    let critical = heard.last().unwrap();
    assert!(critical.reason.starts_with(group.0.to_str().unwrap()), "{critical:?}");
    assert!(hog.is_alive(), "it was killed before anybody was told: {heard:#?}");

    // At the limit it waits for memory, as it is not to be killed, and more is told.
    group.write("memory.oom_control", "1");
    hog.told.write_all(format!("{LIMIT}\n").as_bytes()).unwrap();
    let mut missing = vec!["memory.oom_control", "memory.pressure_level critical", "memory.pressure_level medium"];
    while !missing.is_empty() {
        let pressure = reports.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{missing:?}: {error}"));
        assert_eq!(pressure.level, PressureLevel::Critical, "{pressure:?}");
        missing.retain(|event| !pressure.reason.contains(event));
    }

    // Its memory comes back, across the thresholds.
    drop(hog);
    let over = std::iter::from_fn(|| reports.recv_timeout(PATIENCE).ok())
        .find(|pressure| pressure.level == PressureLevel::Normal);
    assert!(over.is_some(), "nobody said that it was over");
    drop(watch);
    assert!(reports.recv().is_err(), "the sink outlived the watch");
    wait_for_threads(0);
}

#[test]
fn a_watch_ends_with_its_group() {
    let _alone = alone();
    let tree = CgroupTree::of_process().unwrap();
    ends_with_its_group(tree.v1(), |folder| GroupNotifications::at([folder]));
    ends_with_its_group(tree.v2(), |folder| Psi::at(folder));
}

fn ends_with_its_group<S: PressureSource>(groups: &[PathBuf], source: impl Fn(&Path) -> S) {
    let Some(group) = Group::new(groups, "goes") else { return };
    let source = source(&group.0);
    let (sink, reports) = sink();
    let watch = match source.watch(sink) {
        Ok(watch) => watch,
        Err(error) => return eprintln!("SKIPPED: {}: {error}", source.name()),
    };
    wait_for_threads(1);
    drop(group);
    // The thread gives up its sink as it ends, by itself.
    assert_eq!(reports.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    drop(watch);
    wait_for_threads(0);
}

#[test]
fn the_sources_of_this_system_can_be_watched_again_and_again_and_leave_no_thread() {
    let _alone = alone();
    let sources = of_system(Arc::new(SystemProbe::new()));
    assert_eq!(sources.last().unwrap().name(), "polling");
    for _ in 0..3 {
        let (sink, reports) = sink();
        let mut watches: Vec<Box<dyn Watch>> = Vec::new();
        for source in &sources {
            match source.watch(sink.clone()) {
                Ok(watch) => watches.push(watch),
                Err(error) => {
                    assert!(
                        matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied),
                        "{}: {error:?}",
                        source.name()
                    );
                    eprintln!("SKIPPED: {}: {error}", source.name());
                }
            }
        }
        drop(sink);
        wait_for_threads(watches.len());
        drop(watches);
        wait_for_threads(0);
        // What came is of no interest here, but that nothing comes any more.
        assert!(reports.iter().all(|pressure| !pressure.source.is_empty()));
    }
}

/// Eats memory: a process that the first test starts, and puts in a group before it says a word to it.
#[test]
#[ignore = "a part of another test"]
fn eats_a_bite_for_each_line() {
    let mut eaten = Vec::new();
    for line in io::stdin().lines() {
        let bytes = line.unwrap().parse::<usize>().unwrap();
        eaten.push(std::hint::black_box(vec![1_u8; bytes]));
        println!("\neaten");
    }
}

struct Hog {
    process: Child,
    told: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Hog {
    fn new(group: &Group) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "eats_a_bite_for_each_line", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (told, answers) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let hog = Self { told, answers, process };
        group.write("cgroup.procs", &hog.process.id().to_string());
        hog
    }

    /// Returns when the memory is taken.
    fn eat(&mut self) {
        writeln!(self.told, "{BITE}").unwrap();
        let lines = self.answers.by_ref().lines().map(|line| line.unwrap());
        assert!(lines.into_iter().any(|line| line == "eaten"), "it was killed as it ate: {:?}", self.process.wait());
    }

    fn is_alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A group of its own, below the one that this process is in.
struct Group(PathBuf);

impl Group {
    fn new(groups: &[PathBuf], name: &str) -> Option<Self> {
        let Some(own) = groups.first() else {
            eprintln!("SKIPPED: this process is in no such group");
            return None;
        };
        let folder = own.join(format!("llm-local-test-{name}-{}", process::id()));
        match fs::create_dir(&folder) {
            Ok(()) => Some(Self(folder)),
            Err(error) => {
                eprintln!("SKIPPED: no control group can be made here: {error}");
                None
            }
        }
    }

    fn write(&self, name: &str, text: &str) {
        let file = fs::OpenOptions::new().write(true).open(self.0.join(name));
        file.and_then(|mut file| file.write_all(text.as_bytes())).unwrap();
    }

    /// The bytes in use, files aside.
    fn used(&self) -> u64 {
        let stat = fs::read_to_string(self.0.join("memory.stat")).unwrap();
        let files = stat.lines().filter_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            ["total_inactive_file", "total_active_file"].contains(&name).then(|| bytes.parse::<u64>().unwrap())
        });
        let usage = fs::read_to_string(self.0.join("memory.usage_in_bytes")).unwrap();
        usage.trim().parse::<u64>().unwrap().saturating_sub(files.sum())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group cannot be removed while a process that has ended is still being taken out of it.
        for _ in 0..10_000 {
            match fs::remove_dir(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::yield_now(),
                _ => return,
            }
        }
    }
}

fn sink() -> (PressureSink, Receiver<Pressure>) {
    let (sender, reports) = channel();
    (Arc::new(move |pressure| sender.send(pressure).unwrap()), reports)
}

/// The threads of this process that watch for pressure, by name.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path().join("comm"));
    // One that ends meanwhile has no name any more.
    let names = tasks.filter_map(|comm| fs::read_to_string(comm).ok()).map(|name| name.trim_end().to_owned());
    names.filter(|name| name.starts_with("llm-")).collect()
}

/// A thread has its name only once it runs, and the kernel may still show it for a moment when it was joined.
fn wait_for_threads(count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while threads().len() != count {
        assert!(Instant::now() < deadline, "expected {count} threads, found {:?}", threads());
        thread::yield_now();
    }
}

/// So that one test does not count the threads of another.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
