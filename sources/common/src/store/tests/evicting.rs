use llm_local_core::Error;

use super::*;

fn left(f: &Fixture) -> Vec<String> {
    f.listed().into_iter().map(|(text, ..)| text).collect()
}

#[test]
fn the_least_recently_used_go_first_and_no_more_than_needed() {
    let f = Fixture::new();
    for (i, name) in ["hf:x/a", "hf:x/b", "hf:x/c"].iter().enumerate() {
        f.own(name, "1", &[("x", &name.repeat(10))], i as u64);
    }
    f.store.touch(&reference("hf:x/a"), "1", at(9)).unwrap();
    // 60 bytes each.
    assert_eq!(f.store.evict(300, 120).unwrap(), Default::default());
    assert_eq!(f.store.evict(300, 121).unwrap().bytes, 60);
    assert_eq!(left(&f), ["hf:x/a", "hf:x/c"]);
    assert_eq!(f.store.evict(300, 250).unwrap().artifacts, 2);
    assert_eq!(left(&f), [""; 0]);
}

#[test]
fn what_is_pinned_held_or_found_stays_and_a_quota_that_is_too_small_says_so() {
    let f = Fixture::new();
    f.own("hf:x/pinned", "1", &[("x", &"p".repeat(100))], 0);
    let held = f.own("hf:x/held", "1", &[("x", &"h".repeat(100))], 1);
    f.own("hf:x/idle", "1", &[("x", &"i".repeat(100))], 2);
    let found = manifest("hf:x/found", "1", &[("x", &"f".repeat(100))]);
    let placement = f.placement(&found, None);
    write(&placement.files[0].link, &"f".repeat(100));
    let paths = BTreeMap::from([("x".to_owned(), placement.files[0].link.clone())]);
    f.store.record(&found, &paths, &BTreeMap::new(), Some(&placement), false, at(0)).unwrap();
    assert_eq!(f.store.size().unwrap().found, 100);
    f.store.pin(&reference("hf:x/pinned")).unwrap();
    let hold = f.store.hold(&held, None).unwrap();
    // 300 bytes are ours, of which 200 must stay.
    for (quota, needed, available) in [(250, 51, 50), (199, 1, 0), (10, 11, 0)] {
        match f.store.evict(quota, needed).unwrap_err() {
            Error::InsufficientStorage { required, available: free, .. } => {
                assert_eq!((required, free), (needed, available));
            }
            other => panic!("{other}"),
        }
        assert_eq!(left(&f).len(), 4, "nothing was evicted");
    }
    assert_eq!(f.store.evict(250, 50).unwrap().bytes, 100);
    assert_eq!(left(&f), ["hf:x/found", "hf:x/held", "hf:x/pinned"]);
    drop(hold);
    f.store.unpin(&reference("hf:x/pinned")).unwrap();
    assert_eq!(f.store.evict(100, 100).unwrap().bytes, 200);
    assert_eq!(left(&f), ["hf:x/found"]);
    assert!(placement.files[0].link.exists());
}

#[test]
fn content_that_is_still_used_frees_nothing_so_its_user_is_passed_over() {
    let f = Fixture::new();
    let shared = "s".repeat(100);
    f.own("hf:x/old", "1", &[("x", &shared)], 0);
    f.own("hf:x/middle", "1", &[("x", &"m".repeat(100))], 1);
    f.own("hf:x/new", "1", &[("x", &shared), ("y", &"n".repeat(100))], 2);
    assert_eq!(f.store.evict(300, 1).unwrap().bytes, 100);
    assert_eq!(left(&f), ["hf:x/new", "hf:x/old"]);
    // Only both together free what they share; `new` alone frees its own.
    assert_eq!(f.store.evict(200, 100).unwrap().bytes, 100);
    assert_eq!(left(&f), ["hf:x/old"]);
    assert_eq!(f.store.evict(200, 101).unwrap().bytes, 100);
    assert_eq!(left(&f), [""; 0]);
}

#[test]
fn content_without_a_record_goes_before_any_artifact() {
    let f = Fixture::new();
    f.own("hf:x/a", "1", &[("x", &"a".repeat(100))], 0);
    write(&f.store.root().join("blobs/sha256-0"), &"o".repeat(100));
    assert_eq!(f.store.evict(200, 1).unwrap().bytes, 100);
    assert_eq!(left(&f), ["hf:x/a"]);
}
