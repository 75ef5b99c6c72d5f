//! The process that fetches, and is killed.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use llm_local::core::{ProgressEvent, Want};
use pollster::block_on;

use crate::world::{REFERENCE, World, engine};

const ENDPOINT: &str = "LLM_LOCAL_TEST_ENDPOINT";
const FOLDER: &str = "LLM_LOCAL_TEST_FOLDER";
const SEGMENT: &str = "LLM_LOCAL_TEST_SEGMENT_BYTES";
const WAITING: &str = "waiting: ";
/// How long something on the disk is waited for at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// Another process's part of the other tests.
#[test]
#[ignore = "a process that other tests start"]
fn fetches_for_another_test() {
    let Ok(endpoint) = std::env::var(ENDPOINT) else { return };
    let (folder, segment) = (std::env::var_os(FOLDER).unwrap(), std::env::var(SEGMENT).unwrap().parse().unwrap());
    let engine = engine(&endpoint, folder.as_ref(), segment, false);
    let hears = |event: &ProgressEvent| {
        if let ProgressEvent::Waiting { what, reason, .. } = event {
            let mut out = std::io::stdout();
            writeln!(out, "\n{WAITING}{what}: {reason}").unwrap();
            out.flush().unwrap();
        }
    };
    block_on(engine.download_artifact(&REFERENCE.parse().unwrap(), Want::Model, Some(Arc::new(hears)))).unwrap();
}

/// A process that fetches the model of a world; killed when dropped.
pub(crate) struct Fetching {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Fetching {
    /// Starts to fetch into `folder`.
    pub(crate) fn start(world: &World, folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["process::fetches_for_another_test", "--exact", "--ignored", "--nocapture"])
            .env(ENDPOINT, world.hub.endpoint())
            .env(FOLDER, folder)
            .env(SEGMENT, world.segment_bytes().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it says of whom it waits for with the file `name`.
    pub(crate) fn waits(&mut self, name: &str) -> String {
        let start = format!("{WAITING}{name} of {REFERENCE}: ");
        let said = self.out.by_ref().lines().find_map(|line| Some(line.unwrap().strip_prefix(&start)?.to_owned()));
        said.expect("it waits for the other process")
    }

    /// Waits until `done` holds, which is seen on the disk.
    pub(crate) fn until(&mut self, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(self.child.try_wait().unwrap().is_none() || done(), "it ended without that");
            assert!(begun.elapsed() < PATIENCE, "nothing happens");
            thread::yield_now();
        }
    }

    /// Kills it: no destructor runs, and nothing is written that was not.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it end, which it has to do well.
    pub(crate) fn succeed(mut self) {
        let mut said = String::new();
        for line in self.out.by_ref().lines() {
            said += &(line.unwrap() + "\n");
        }
        let status: ExitStatus = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {said}");
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
