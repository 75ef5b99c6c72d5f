//! What an earlier run left.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    path::Path,
    thread,
};

use llm_local_core::ManifestFile;
use llm_local_testkit::hub::{Content, Fault, Host, Recorded, Repo};

use super::support::*;

/// A setup in which an earlier run brought two of four segments and 100,000 bytes, and then failed.
fn begun() -> Setup {
    let mut setup = Setup::new().only(MODEL);
    setup.hub.fault(Fault::cut(100_000).path(MODEL).on(Host::Cdn).skip(2).once());
    setup.hub.fault(Fault::status(500).on(Host::Hub).path(MODEL).skip(3));
    assert!(setup.fetch().unwrap_err().is_retryable());
    assert_eq!(setup.served(), 2 * SEGMENT + 100_000);
    assert!(setup.published().is_empty());
    setup.hub.clear();
    setup.hub.clear_faults();
    setup.events = Default::default();
    setup
}

#[test]
fn an_earlier_run_is_continued_to_the_byte() {
    let setup = begun();
    setup.fetch().unwrap();
    assert_eq!(setup.served(), SIZE - 2 * SEGMENT - 100_000);
    assert_eq!(ranges(&setup.asked(MODEL)), [Some("bytes=624288-786431".into()), Some("bytes=786432-1048575".into())]);
}

#[test]
fn a_file_that_changed_since_starts_over() {
    let setup = begun();
    setup.hub.fault(Fault::etag("other").path(MODEL));
    setup.fetch().unwrap();
    let requests = setup.asked(MODEL);
    assert_eq!((requests.len(), requests[0].status), (1 + 4, 200));
}

#[test]
fn a_host_that_no_longer_knows_ranges_starts_over() {
    let setup = begun();
    setup.hub.fault(Fault::ignore_range().path(MODEL));
    setup.fetch().unwrap();
    assert_eq!((setup.asked(MODEL).len(), setup.served()), (1, SIZE));
}

#[test]
fn a_damaged_partial_is_found_by_the_digest_and_fetched_anew() {
    let setup = begun();
    let partials = setup.root.path().join("partials");
    let data = partials.read_dir().unwrap().next().unwrap().unwrap().path().join("data");
    let mut bytes = fs::read(&data).unwrap();
    bytes[5] ^= 1;
    fs::write(&data, bytes).unwrap();
    setup.fetch().unwrap();
    assert_eq!(setup.served(), SIZE - 2 * SEGMENT - 100_000 + SIZE);
}

#[test]
fn another_ref_to_the_same_content_continues_it() {
    let mut setup = begun();
    let repo = Repo::new(REPO).with_lfs("renamed.bin", setup.contents[MODEL].clone());
    setup.hub.publish(repo);
    setup.files[0].path = "renamed.bin".into();
    let model: Content = setup.contents.remove(MODEL).unwrap();
    setup.contents.insert("renamed.bin".into(), model);
    setup.fetch().unwrap();
    let cdn: u64 = setup.hub.wait_until_idle().iter().filter(|r| r.host == Host::Cdn).map(|r| r.body_bytes_sent).sum();
    assert_eq!(cdn, SIZE - 2 * SEGMENT - 100_000);
}

fn open(path: &Path) -> fs::File {
    fs::File::open(path).unwrap()
}

fn read(file: &mut fs::File, at: u64, bytes: &mut [u8]) {
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(bytes).unwrap();
}

/// Whoever kills the process at any moment finds on the disk what is looked at here.
#[test]
fn no_byte_counts_as_done_before_it_is_there() {
    const SEGMENT: u64 = 4 << 20;
    let mut setup = Setup::new();
    let content = Content::generated(8 * SEGMENT, 9);
    setup.hub.publish(Repo::new(REPO).with_lfs("large.bin", content.clone()));
    setup.files = vec![ManifestFile::new("large.bin", content.size()).with_digest(sha256(&content))];
    setup.contents.insert("large.bin".into(), content.clone());
    setup.config = setup.config.clone().with_segment_bytes(SEGMENT).with_ranges_per_file(2);
    // So that there is something to see.
    setup.hub.fault(Fault::stall(SEGMENT / 2).on(Host::Cdn).times(2));
    thread::scope(|scope| {
        let _end = EndOnPanic(&setup);
        let fetched = scope.spawn(|| setup.fetch());
        let partial = setup.root.path().join("partials").join(format!("sha256-{}", content.sha256()));
        until("a partial begins", || partial.join("state").exists() || fetched.is_finished());
        let stalled = |r: &&Recorded| r.host == Host::Cdn && r.body_bytes_sent == SEGMENT / 2;
        setup.hub.wait_until(|requests| requests.iter().filter(stalled).count() == 2);
        let (mut data, mut state) = (open(&partial.join("data")), open(&partial.join("state")));
        let counts_at = fs::read(partial.join("state")).unwrap().iter().position(|&byte| byte == b'\n').unwrap() + 1;
        let (mut seen, mut looks) = ([0; 8], 0);
        setup.hub.release();
        // The state is replaced no more: each count is overwritten in its place.
        until("the fetch ends", || {
            let mut counts = [0; 8 * 8];
            read(&mut state, counts_at as u64, &mut counts);
            let counts = counts.chunks_exact(8).map(|count| u64::from_le_bytes(count.try_into().unwrap()));
            for (index, (count, seen)) in counts.zip(&mut seen).enumerate().filter(|(_, (count, seen))| count > *seen) {
                // The last that was written of it.
                let (end, mut bytes) = (index as u64 * SEGMENT + count, [0; 64]);
                read(&mut data, end - 64, &mut bytes);
                assert!(bytes[..] == content.read(end - 64..end).unwrap(), "the bytes before {end} count as done");
                (*seen, looks) = (count, looks + 1);
            }
            fetched.is_finished()
        });
        fetched.join().unwrap().unwrap();
        assert!(looks >= 2);
    });
}
