use llm_local_core::{CancellationToken, Error};

use super::*;
use crate::store::{KeptMerge, MERGED_SCHEME, MergeKey, Outcome};

fn key(name: &str) -> MergeKey {
    MergeKey::new(name, ["base", name]).unwrap()
}

/// Keeps `content` under the key of this name.
fn keep(f: &Fixture, name: &str, content: &str) -> KeptMerge {
    let writer = f.store.begin_merge(&key(name), content.len() as u64, None).unwrap().expect("nobody else is at it");
    let (first, second) = content.split_at(content.len() / 2);
    let at = writer.reserve(first.len() as u64);
    let then = writer.reserve(second.len() as u64);
    writer.write_at(second.as_bytes(), then).unwrap();
    writer.write_at(first.as_bytes(), at).unwrap();
    writer.finish(None).unwrap()
}

#[test]
fn a_result_is_an_artifact_that_is_listed_verified_held_and_deleted() {
    let f = Fixture::new();
    assert!(f.store.kept_merge(&key("a+b")).unwrap().is_none());
    let kept = keep(&f, "a+b", "a result");
    assert_eq!((fs::read_to_string(&kept.path).unwrap().as_str(), &kept.path), ("a result", &f.blob("a result")));
    let listing = f.store.list().unwrap();
    let artifact = &listing.artifacts[0];
    assert_eq!((artifact.reference.scheme(), artifact.reference.locator()), (MERGED_SCHEME, "a+b"));
    assert_eq!((artifact.revision.as_str(), artifact.bytes, artifact.fetched), (key("a+b").revision(), 8, true));
    assert_eq!(f.store.size().unwrap().fetched, 8);
    let verify =
        || f.store.verify(Some(&reference("merged:a+b")), &CancellationToken::new()).unwrap().remove(0).outcome;
    assert_eq!(verify(), Outcome::Intact);
    // Of one size, it is seen by its digest alone.
    write(&kept.path, "A RESULT");
    assert!(matches!(verify(), Outcome::WrongDigest { .. }));
    assert!(f.store.kept_merge(&key("a+b")).unwrap().is_some());
    drop(keep(&f, "a+b", "a result"));
    assert_eq!(verify(), Outcome::Intact);

    let busy = f.store.delete(&reference("merged:a+b")).unwrap_err();
    assert!(matches!(busy, Error::Io { .. }) && busy.to_string().contains("is loaded"), "{busy}");
    drop(kept);
    assert_eq!(f.store.delete(&reference("merged:a+b")).unwrap().bytes, 8);
    assert!(f.store.kept_merge(&key("a+b")).unwrap().is_none());
}

#[test]
fn the_key_is_of_all_parts_and_the_name_is_plain() {
    let key = |parts: &[&str]| MergeKey::new("n", parts.iter().copied()).unwrap();
    assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
    for other in [vec!["ab"], vec!["a", "b", ""], vec!["b", "a"], vec!["a", "c"]] {
        assert_ne!(key(&["a", "b"]), key(&other));
    }
    let named = MergeKey::new("a b:c@d#e/f+g.h_i-j", ["x"]).unwrap();
    assert_eq!(named.reference().to_string(), "merged:a-b-c-d-e-f+g.h_i-j");
}

#[test]
fn results_count_in_the_quota_and_the_least_recently_used_go_first() {
    let f = Fixture::new();
    for name in ["a", "b", "c"] {
        drop(keep(&f, name, &name.repeat(60)));
    }
    // To look at it is no use of it, since it may turn out to be unreadable.
    drop(f.store.kept_merge(&key("b")).unwrap().unwrap());
    f.store.use_merge(&key("a")).unwrap();
    let held = f.store.kept_merge(&key("c")).unwrap().unwrap();
    assert_eq!(f.store.evict(180, 60).unwrap().bytes, 60);
    assert_eq!(f.listed().iter().map(|(text, ..)| text.as_str()).collect::<Vec<_>>(), ["merged:a", "merged:c"]);
    // c is in use, and a alone does not make room enough.
    for begun in [f.store.begin_merge(&key("d"), 121, Some(180)), f.store.begin_merge(&key("d"), u64::MAX, None)] {
        assert!(matches!(begun.unwrap_err(), Error::InsufficientStorage { .. }));
    }
    let writer = f.store.begin_merge(&key("d"), 1, Some(180)).unwrap().unwrap();
    let at = writer.reserve(130);
    writer.write_at(&[7; 130], at).unwrap();
    assert!(matches!(writer.finish(Some(180)).unwrap_err(), Error::InsufficientStorage { .. }));
    assert_eq!((f.listed().len(), f.store.size().unwrap().partials), (2, 0));
    drop(held);
}

#[test]
fn one_at_a_time_writes_a_result_and_what_is_dropped_leaves_nothing() {
    let f = Fixture::new();
    let writer = f.store.begin_merge(&key("a"), 1, None).unwrap().unwrap();
    writer.write_at(&[1; 5000], writer.reserve(5000)).unwrap();
    assert!(f.store.begin_merge(&key("a"), 1, None).unwrap().is_none());
    drop(f.store.begin_merge(&key("b"), 1, None).unwrap().unwrap());
    assert!(f.store.size().unwrap().partials >= 5000);
    // To clean does not take it from under who writes it.
    f.store.clean(Duration::ZERO, SystemTime::now()).unwrap();
    drop(writer);
    assert_eq!(f.store.size().unwrap().partials, 0);
    assert!(f.listed().is_empty());
}

#[test]
fn a_result_that_is_cut_off_is_none_and_is_written_anew() {
    let f = Fixture::new();
    let path = keep(&f, "a", "a result").path;
    write(&path, "a res");
    assert!(f.store.kept_merge(&key("a")).unwrap().is_none());
    assert_eq!(f.listed(), [("merged:a".to_owned(), key("a").revision().to_owned(), false)]);
    drop(keep(&f, "a", "a result"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "a result");
    // Of other bytes, as by a merge in another order: the old ones are nobody's.
    drop(keep(&f, "a", "another result"));
    assert_eq!(fs::read_to_string(f.store.kept_merge(&key("a")).unwrap().unwrap().path).unwrap(), "another result");
    assert_eq!(f.listed().len(), 1);
    f.store.clean(Duration::ZERO, SystemTime::now()).unwrap();
    assert!(!path.exists());
}

#[test]
fn what_is_replaced_is_not_counted_twice() {
    let f = Fixture::new();
    drop(keep(&f, "b", &"b".repeat(40)));
    let path = keep(&f, "a", &"a".repeat(60)).path;
    write(&path, &"a".repeat(50));
    assert!(f.store.kept_merge(&key("a")).unwrap().is_none());
    let writer = f.store.begin_merge(&key("a"), 60, Some(100)).unwrap().unwrap();
    writer.write_at(&[b'a'; 60], writer.reserve(60)).unwrap();
    drop(writer.finish(Some(100)).unwrap());
    assert!(f.store.kept_merge(&key("a")).unwrap().is_some());
    assert_eq!(f.listed().iter().map(|(text, ..)| text.as_str()).collect::<Vec<_>>(), ["merged:a", "merged:b"]);
    // Of other bytes, the old ones go.
    let writer = f.store.begin_merge(&key("a"), 60, Some(100)).unwrap().unwrap();
    writer.write_at(&[b'c'; 60], writer.reserve(60)).unwrap();
    drop(writer.finish(Some(100)).unwrap());
    let size = f.store.size().unwrap();
    assert_eq!((f.listed().len(), size.fetched, size.unrecorded), (2, 100, 0));
    // Alone, it is too large all the same.
    assert!(f.store.begin_merge(&key("a"), 200, Some(100)).is_err());
}
