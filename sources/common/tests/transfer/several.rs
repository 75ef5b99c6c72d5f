//! Several ranges, files, artifacts and engines at a time.

use std::sync::Arc;

use llm_local_core::{ManifestFile, ProgressEvent};
use llm_local_source_common::{progress::Meter, transfer::TransferConfig};
use llm_local_testkit::hub::{Content, Fault, Host, Repo};

use super::support::*;

#[test]
fn ranges_and_files_come_side_by_side() {
    let mut setup = Setup::new();
    setup.config = TransferConfig::new().with_segment_bytes(10_000);
    setup.fetch().unwrap();
    assert_eq!((setup.asked(MODEL).len(), setup.served()), (105, SIZE));
}

#[test]
fn no_more_connections_are_open_than_allowed() {
    let mut setup = Setup::new().only(MODEL);
    setup.config = TransferConfig::new().with_segment_bytes(10_000).with_ranges_per_file(8).with_connections(3);
    setup.fetch().unwrap();
    let connections: std::collections::BTreeSet<_> = setup.asked(MODEL).iter().map(|r| r.connection).collect();
    assert!(connections.len() <= 3, "{connections:?}");
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
    std::thread::scope(|scope| {
        let engines = [scope.spawn(|| setup.fetch_unchecked()), scope.spawn(|| setup.fetch_unchecked())];
        setup.hub.wait_until(|requests| requests.iter().any(|r| r.body_bytes_sent == 1000));
        // One may have waited for the small file before.
        let waits = |e: &ProgressEvent| matches!(e, ProgressEvent::Waiting { what, .. } if what.starts_with(MODEL));
        while !setup.events.lock().unwrap().iter().any(waits) {
            std::thread::yield_now();
        }
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
    let mut setup = Setup::new();
    setup.files.clear();
    let mut repo = Repo::new(REPO);
    for i in 0..100 {
        let (path, content) = (format!("{i}.json"), Content::generated(100 + i, i));
        setup.files.push(ManifestFile::new(&path, 100 + i).with_digest(git_blob(&content)));
        repo = repo.with_file(&path, content.clone());
        setup.contents.insert(path, content);
    }
    setup.hub.publish(repo);
    setup.config = TransferConfig::new();
    setup.fetch().unwrap();
    let requests = setup.hub.requests();
    let connections: std::collections::BTreeSet<_> = requests.iter().map(|r| r.connection).collect();
    assert_eq!(requests.len(), 100);
    assert!(connections.len() <= 8, "{connections:?}");
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
