//! What an earlier run left.

use llm_local_testkit::hub::{Content, Fault, Host};

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
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    setup.fetch().unwrap();
    assert_eq!(setup.served(), SIZE - 2 * SEGMENT - 100_000 + SIZE);
}

#[test]
fn another_ref_to_the_same_content_continues_it() {
    let mut setup = begun();
    let repo = llm_local_testkit::hub::Repo::new(REPO).with_lfs("renamed.bin", setup.contents[MODEL].clone());
    setup.hub.publish(repo);
    setup.files[0].path = "renamed.bin".into();
    let model: Content = setup.contents.remove(MODEL).unwrap();
    setup.contents.insert("renamed.bin".into(), model);
    setup.fetch().unwrap();
    let cdn: u64 = setup.hub.wait_until_idle().iter().filter(|r| r.host == Host::Cdn).map(|r| r.body_bytes_sent).sum();
    assert_eq!(cdn, SIZE - 2 * SEGMENT - 100_000);
}
