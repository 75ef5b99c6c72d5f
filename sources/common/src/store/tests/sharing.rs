//! Pins, holds and shared content together.

use super::*;

#[test]
fn of_two_that_share_content_the_held_one_stays_whole_when_the_other_is_deleted() {
    let f = Fixture::new();
    let held = f.own("hf:x/held", "1", &[("a", "shared"), ("b", "held's")], 0);
    f.own("hf:x/gone", "1", &[("a", "shared"), ("b", "gone's")], 1);
    let hold = f.store.hold(&held, None).unwrap();
    let deleted = f.store.delete(&reference("hf:x/gone")).unwrap();
    assert_eq!((deleted.artifacts, deleted.bytes), (1, 6));
    assert_eq!(f.listed(), [("hf:x/held".into(), "1".into(), true)]);
    // Neither eviction nor a clean takes it, however old it is.
    assert!(f.store.evict(11, 0).is_err());
    let later = SystemTime::now() + Duration::from_secs(1_000_000);
    assert_eq!(f.store.clean(Duration::ZERO, later).unwrap().bytes, 0);
    drop(hold);
    assert_eq!(f.store.evict(11, 0).unwrap().bytes, 12);
}

#[test]
fn a_pin_of_one_revision_keeps_that_and_what_it_shares() {
    let f = Fixture::new();
    f.own("hf:x/y", "1", &[("a", "shared"), ("b", "one")], 0);
    f.own("hf:x/y", "2", &[("a", "shared"), ("b", "two")], 1);
    f.store.pin(&reference("hf:x/y@1")).unwrap();
    let pinned = |f: &Fixture| f.store.list().unwrap().artifacts.iter().map(|a| a.pinned).collect::<Vec<_>>();
    assert_eq!(pinned(&f), [true, false]);
    assert!(f.store.evict(8, 0).is_err(), "9 bytes are pinned");
    assert_eq!(f.store.evict(9, 0).unwrap().bytes, 3);
    assert_eq!(f.listed(), [("hf:x/y".into(), "1".into(), true)]);
    // A pin keeps from eviction, not from its owner.
    assert_eq!(f.store.delete(&reference("hf:x/y")).unwrap().bytes, 9);
}

#[test]
fn each_use_moves_an_artifact_to_the_end_of_the_order() {
    let f = Fixture::new();
    let names = ["hf:x/a", "hf:x/b", "hf:x/c", "hf:x/d"];
    for (i, name) in names.iter().enumerate() {
        f.own(name, "1", &[("x", &name.repeat(10))], i as u64);
    }
    // By a touch, by a load, which records again, and by a clock that was set back.
    f.store.touch(&reference("hf:x/a"), "1", at(50)).unwrap();
    f.own("hf:x/b", "1", &[("x", &"hf:x/b".repeat(10))], 60);
    f.store.touch(&reference("hf:x/c"), "1", at(0)).unwrap();
    for gone in ["hf:x/d", "hf:x/a", "hf:x/b", "hf:x/c"] {
        let size = f.store.size().unwrap().fetched;
        assert_eq!(f.store.evict(size, 1).unwrap().artifacts, 1);
        assert!(!f.listed().iter().any(|(name, ..)| name == gone), "{gone} stays: {:?}", f.listed());
    }
}

#[test]
fn a_damaged_artifact_is_evicted_and_counted_by_what_is_there() {
    let f = Fixture::new();
    f.own("hf:x/damaged", "1", &[("a", "content"), ("b", "gone")], 0);
    fs::write(f.blob("content"), "cont").unwrap();
    fs::remove_file(f.blob("gone")).unwrap();
    f.own("hf:x/whole", "1", &[("a", "whole")], 1);
    assert_eq!(f.store.size().unwrap().fetched, 4 + 5);
    assert_eq!(f.store.evict(9, 1).unwrap().bytes, 4);
    assert_eq!(f.listed(), [("hf:x/whole".into(), "1".into(), true)]);
}

#[test]
fn one_artifact_as_a_model_and_as_an_adapter_is_two_records_of_the_same_content() {
    let f = Fixture::new();
    let model = f.own("hf:x/y", "1", &[("a", "content")], 0);
    let adapter = Manifest::new(reference("hf:x/y"), Want::Adapter, "1", model.files.clone()).unwrap();
    let paths = BTreeMap::from([("a".to_owned(), f.blob("content"))]);
    f.store.record(&adapter, &paths, &BTreeMap::new(), None, true, at(1)).unwrap();
    assert_eq!(f.store.list().unwrap().artifacts.len(), 2);
    let deleted = f.store.delete(&reference("hf:x/y")).unwrap();
    assert_eq!((deleted.artifacts, deleted.bytes), (2, 7));
}
