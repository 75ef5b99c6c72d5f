//! Several ranges, files, artifacts and engines at a time.

use std::{collections::BTreeSet, sync::Arc, thread};

use llm_local_core::{ManifestFile, ProgressEvent};
use llm_local_source_common::{progress::Meter, transfer::TransferConfig};
use llm_local_testkit::hub::{Content, Fault, Host, Outcome, Recorded, Repo};

use super::support::*;

/// Too large to come with many others at a time.
const LARGE: u64 = 600_000;

#[test]
fn ranges_and_files_come_side_by_side() {
    let mut setup = Setup::new();
    setup.config = TransferConfig::new().with_segment_bytes(10_000);
    setup.fetch().unwrap();
    assert_eq!((setup.asked(MODEL).len(), setup.served()), (105, SIZE));
}

impl Setup {
    /// Fetches from a `host` that says nothing but the head of each answer until `at_once` requests are open, and then
    /// lets those go on: the `all` requests come in rounds of exactly so many. Fewer at a time, and it waits in vain; more,
    /// and a round has too many.
    fn fetch_in_rounds(&self, host: Host, at_once: usize, all: usize) {
        self.fetch_and_look_at_rounds(host, at_once, all, all);
    }

    /// As [`Setup::fetch_in_rounds`], but looks at the first requests alone: where several files share what may be open,
    /// one may be left at the end that cannot fill a round by itself.
    fn fetch_and_look_at_rounds(&self, host: Host, at_once: usize, looked_at: usize, all: usize) {
        self.hub.fault(Fault::stall(0).on(host));
        let of_host = |requests: &[Recorded]| -> Vec<Recorded> {
            requests.iter().filter(|request| request.host == host).cloned().collect()
        };
        thread::scope(|scope| {
            let _end = EndOnPanic(self);
            let fetched = scope.spawn(|| self.fetch());
            let mut before = 0;
            while before < looked_at {
                let expected = looked_at.min(before + at_once);
                let round = |requests: &[Recorded]| {
                    let requests = of_host(requests);
                    let has_come = requests.len() >= expected && requests.iter().all(|r| r.status > 0);
                    has_come && requests[..before].iter().all(|r| r.outcome.is_over())
                };
                let requests = of_host(&self.hub.wait_until(round));
                assert_eq!(requests.len(), expected, "{before} are over, {at_once} may be open: {requests:#?}");
                assert!(requests[before..].iter().all(|r| r.outcome == Outcome::Open), "{requests:#?}");
                self.hub.release();
                before = expected;
            }
            self.hub.clear_faults();
            self.hub.release();
            fetched.join().unwrap().unwrap();
        });
        assert_eq!(of_host(&self.hub.wait_until_idle()).len(), all);
    }

    /// In place of the two files, so many of these bytes, in LFS or plain.
    fn with_files(mut self, count: u64, size: u64, lfs: bool) -> Self {
        let mut repo = Repo::new(REPO);
        self.files.clear();
        for i in 0..count {
            let (path, content) = (format!("{i}.bin"), Content::generated(size, i));
            let digest = if lfs { sha256(&content) } else { git_blob(&content) };
            self.files.push(ManifestFile::new(&path, size).with_digest(digest));
            repo = match lfs {
                true => repo.with_lfs(&path, content.clone()),
                false => repo.with_file(&path, content.clone()),
            };
            self.contents.insert(path, content);
        }
        self.hub.publish(repo);
        self
    }
}

#[test]
fn so_many_ranges_of_a_file_come_at_a_time_as_are_allowed() {
    for ranges in [1, 3, 5] {
        let mut setup = Setup::new().only(MODEL);
        setup.config = TransferConfig::new().with_segment_bytes(SIZE / 16).with_ranges_per_file(ranges);
        setup.fetch_in_rounds(Host::Cdn, ranges, 16);
        assert_eq!(setup.served(), SIZE);
    }
}

#[test]
fn so_many_files_come_at_a_time_as_are_allowed() {
    for files in [1, 2, 5] {
        let mut setup = Setup::new().with_files(12, LARGE, false);
        setup.config = TransferConfig::new().with_files_at_once(files);
        setup.fetch_in_rounds(Host::Hub, files, 12);
    }
}

/// Each may be in memory as a whole, so that their number bounds that.
#[test]
fn small_files_come_as_many_at_a_time_as_there_are_connections_and_no_more_than_32() {
    for (files_at_once, connections, expected) in [(1, 8, 1), (2, 3, 3), (2, 64, 32), (4, 64, 32), (40, 64, 40)] {
        let mut setup = Setup::new().with_files(90, 100, false);
        setup.config = TransferConfig::new().with_files_at_once(files_at_once).with_connections(connections);
        setup.fetch_in_rounds(Host::Hub, expected, 90);
    }
}

#[test]
fn so_many_connections_are_open_over_all_files_as_are_allowed() {
    for connections in [1, 3, 6] {
        let mut setup = Setup::new().with_files(2, SIZE, true);
        // As many ranges, so that the last file fills them too.
        let config = TransferConfig::new().with_segment_bytes(SIZE / 16).with_ranges_per_file(connections);
        setup.config = config.with_connections(connections);
        setup.fetch_in_rounds(Host::Cdn, connections, 2 * 16);
    }
}

#[test]
fn the_defaults_are_four_files_four_ranges_and_eight_connections() {
    let mut setup = Setup::new().with_files(8, LARGE, false);
    setup.config = TransferConfig::new();
    setup.fetch_in_rounds(Host::Hub, 4, 8);
    let mut setup = Setup::new().only(MODEL);
    setup.config = TransferConfig::new().with_segment_bytes(SIZE / 16);
    setup.fetch_in_rounds(Host::Cdn, 4, 16);
    let mut setup = Setup::new().with_files(4, SIZE, true);
    setup.config = TransferConfig::new().with_segment_bytes(SIZE / 16);
    // As long as two of four files have ranges left, whichever those are.
    setup.fetch_and_look_at_rounds(Host::Cdn, 8, 4 * 16 / 2, 4 * 16);
}

#[test]
fn one_content_under_two_names_is_fetched_once() {
    let mut setup = Setup::new().only(MODEL);
    let model = setup.contents[MODEL].clone();
    setup.files.push(ManifestFile::new("copy.bin", SIZE).with_digest(sha256(&model)));
    setup.contents.insert("copy.bin".into(), model);
    let files = setup.fetch().unwrap();
    assert_eq!(files[MODEL], files["copy.bin"]);
    assert_eq!(setup.served(), SIZE);
}

#[test]
fn two_artifacts_are_one_plan() {
    let (one, mut other) = (Setup::new(), Setup::new());
    other.want = llm_local_core::Want::Adapter;
    let files = pollster::block_on(one.transfer().fetch(vec![one.job(), other.job()], &one.cx())).unwrap();
    assert_eq!((files.len(), &files[0]), (2, &files[1]));
    assert_eq!(one.served() + other.served(), SIZE);
    let last = one.events.lock().unwrap().last().unwrap().clone();
    let ProgressEvent::Download(last) = last else { panic!("{last:?}") };
    assert_eq!((last.fraction, last.total_bytes), (1.0, 2 * (SIZE + 8)));
}

#[test]
fn two_engines_on_one_store_fetch_each_byte_once() {
    let mut setup = Setup::new();
    setup.config = TransferConfig::new().with_segment_bytes(SEGMENT);
    // Long enough for the other to come and wait.
    setup.hub.fault(Fault::stall(1000).path(MODEL).on(Host::Cdn).once());
    thread::scope(|scope| {
        let _end = EndOnPanic(&setup);
        let engines = [scope.spawn(|| setup.fetch_unchecked()), scope.spawn(|| setup.fetch_unchecked())];
        setup.hub.wait_until(|requests| requests.iter().any(|r| r.body_bytes_sent == 1000));
        // One may have waited for the small file before.
        let waits = |e: &ProgressEvent| matches!(e, ProgressEvent::Waiting { what, .. } if what.starts_with(MODEL));
        until("one waits for the other", || setup.events.lock().unwrap().iter().any(waits));
        setup.hub.release();
        for engine in engines {
            engine.join().unwrap().unwrap();
        }
    });
    assert_eq!((setup.served(), setup.asked(CONFIG).len()), (SIZE, 1));
    let events = setup.events.lock().unwrap();
    let waiting = events.iter().find_map(|e| match e {
        ProgressEvent::Waiting { what, reason, .. } if what.starts_with(MODEL) => Some((what, reason)),
        _ => None,
    });
    let (what, reason) = waiting.unwrap();
    assert!(what.contains("model.bin of test:org/tiny"), "{what}");
    // Who it is stands there a moment after the lock was taken.
    assert!(reason.contains(" holds ") && reason.contains(".lock"), "{reason}");
}

impl Setup {
    fn fetch_unchecked(&self) -> llm_local_core::Result<()> {
        pollster::block_on(self.transfer().fetch(vec![self.job()], &self.cx())).map(drop)
    }
}

#[test]
fn many_small_files_need_a_request_each_and_few_connections() {
    let mut setup = Setup::new().with_files(100, 100, false);
    setup.config = TransferConfig::new();
    setup.fetch().unwrap();
    let requests = setup.hub.requests();
    let connections: BTreeSet<_> = requests.iter().map(|r| r.connection).collect();
    assert_eq!(requests.len(), 100);
    // The next file may come before a connection is known to be free, which opens another. That at most eight are open at a
    // time is held by `the_defaults_are_four_files_four_ranges_and_eight_connections`, and for small files, by the number that
    // is allowed, by `small_files_come_as_many_at_a_time_as_there_are_connections_and_no_more_than_32`.
    assert!(connections.len() <= 16, "{connections:?}");
}

#[test]
fn a_meter_is_shared_with_sources_that_report_by_themselves() {
    // What an application that moves bytes itself may use.
    let setup = Setup::new();
    let events = setup.events.clone();
    let handler = move |event: &ProgressEvent| events.lock().unwrap().push(event.clone());
    let meter = Meter::new(Arc::new(setup.timer.clone()), Some(Arc::new(handler)), 1).unwrap();
    let file = meter.file("test:x".parse().unwrap(), "a", 1);
    meter.begin();
    file.add(1);
    file.done();
    pollster::block_on(meter.finish());
    assert!(matches!(setup.events.lock().unwrap().last(), Some(ProgressEvent::Download(p)) if p.fraction == 1.0));
}
