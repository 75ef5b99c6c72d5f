use super::*;

#[test]
fn shared_content_stays_while_it_is_used_and_goes_with_the_last() {
    let f = Fixture::new();
    f.own("hf:a/b", "1", &[("x", "shared"), ("y", "one")], 0);
    f.own("hf:c/d", "1", &[("x", "shared"), ("y", "other")], 1);
    let deleted = f.store.delete(&reference("hf:a/b")).unwrap();
    assert_eq!((deleted.artifacts, deleted.files, deleted.bytes), (1, 1, 3));
    assert!(f.blob("shared").exists() && !f.blob("one").exists());
    assert_eq!(f.listed(), [("hf:c/d".into(), "1".into(), true)]);
    let deleted = f.store.delete(&reference("hf:c/d")).unwrap();
    assert_eq!((deleted.artifacts, deleted.files, deleted.bytes), (1, 2, 11));
    assert_eq!(f.tree(), ["store/CACHEDIR.TAG", "store/artifacts/", "store/blobs/", "store/locks/store.lock"]);
}

#[test]
fn a_ref_names_all_its_revisions_or_the_one_it_has() {
    let f = Fixture::new();
    for (text, revision) in
        [("hf:a/b", "c1"), ("hf:a/b@dev", "c2"), ("hf:a/b", "c3"), ("hf:a/b#q4", "c1"), ("hf:a/c", "c1")]
    {
        f.own(text, revision, &[("x", &format!("{text} {revision}"))], 0);
    }
    let error = f.store.delete(&reference("hf:a/b@c9")).unwrap_err();
    assert_eq!(error.code(), "not_found");
    assert!(error.to_string().contains("`hf:a/b@dev` at c2"), "{error}");
    let left = |f: &Fixture| {
        f.listed().into_iter().map(|(text, revision, _)| format!("{text} {revision}")).collect::<Vec<_>>()
    };
    f.store.delete(&reference("hf:a/b@dev")).unwrap();
    assert_eq!(left(&f), ["hf:a/b c1", "hf:a/b c3", "hf:a/b#q4 c1", "hf:a/c c1"]);
    f.store.delete(&reference("hf:a/b@c1")).unwrap();
    assert_eq!(left(&f), ["hf:a/b c3", "hf:a/b#q4 c1", "hf:a/c c1"]);
    f.store.delete(&reference("hf:a/b")).unwrap();
    assert_eq!(left(&f), ["hf:a/b#q4 c1", "hf:a/c c1"]);
}

#[test]
fn what_is_held_is_not_deleted_until_it_is_let_go() {
    let f = Fixture::new();
    let made = f.own("hf:a/b", "1", &[("x", "content")], 0);
    let holds = [f.store.hold(&made, None).unwrap(), f.store.hold(&made, None).unwrap()];
    let error = f.store.delete(&reference("hf:a/b")).unwrap_err();
    assert!(error.to_string().contains("hf:a/b at 1 is loaded or being fetched"), "{error}");
    let [first, second] = holds;
    drop(first);
    assert!(f.store.delete(&reference("hf:a/b")).is_err());
    assert!(f.blob("content").exists());
    drop(second);
    f.store.delete(&reference("hf:a/b")).unwrap();
    assert!(!f.blob("content").exists());
    // Marks that nobody holds any more went with it.
    assert_eq!(f.tree(), ["store/CACHEDIR.TAG", "store/artifacts/", "store/blobs/", "store/locks/store.lock"]);
}

#[test]
fn what_is_being_fetched_keeps_content_that_another_shares() {
    let f = Fixture::new();
    f.own("hf:a/b", "1", &[("x", "shared"), ("y", "one")], 0);
    // Nothing is recorded of it yet; `shared` is present and will not be fetched again.
    let hold = f.store.hold(&manifest("hf:c/d", "1", &[("z", "shared")]), None).unwrap();
    f.store.delete(&reference("hf:a/b")).unwrap();
    assert!(f.blob("shared").exists() && !f.blob("one").exists());
    assert!(f.store.evict(100, 95).is_err());
    drop(hold);
    assert_eq!(f.store.evict(100, 95).unwrap().bytes, 6);
    assert!(!f.blob("shared").exists());
}

#[test]
fn content_that_is_gone_already_is_no_error() {
    let f = Fixture::new();
    f.own("hf:a/b", "1", &[("x", "one"), ("y", "two")], 0);
    fs::remove_file(f.blob("one")).unwrap();
    assert_eq!(f.listed(), [("hf:a/b".into(), "1".into(), false)]);
    assert_eq!(f.store.delete(&reference("hf:a/b")).unwrap().bytes, 3);
    f.own("hf:a/b", "1", &[("x", "one")], 0);
    fs::remove_dir_all(f.store.root().join("blobs")).unwrap();
    assert_eq!(f.store.delete(&reference("hf:a/b")).unwrap().artifacts, 1);
}

#[cfg(unix)]
#[test]
fn contents_may_all_be_elsewhere_by_a_link_in_place_of_their_folder() {
    let f = Fixture::new();
    f.own("hf:a/b", "1", &[("x", "one"), ("y", "two")], 0);
    let kept = f.own("hf:c/d", "1", &[("x", "two"), ("y", "three")], 0);
    let (blobs, outside) = (f.store.root().join("blobs"), f.folder.path().join("outside"));
    fs::rename(&blobs, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &blobs).unwrap();
    let deleted = f.store.delete(&reference("hf:a/b")).unwrap();
    assert_eq!((deleted.artifacts, deleted.files, deleted.bytes), (1, 1, 3));
    assert!(!f.blob("one").exists() && f.blob("two").exists() && f.listed().len() == 1);
    fs::write(f.blob("three"), "thr").unwrap();
    let verified = f.store.verify(Some(&kept.reference), &llm_local_core::CancellationToken::new()).unwrap();
    assert_eq!(f.store.remove_damaged(&verified).unwrap().files, 1);
    write(&f.blob("nobody's"), "nobody's");
    f.store.clean(Duration::ZERO, SystemTime::now() + Duration::from_secs(1)).unwrap();
    assert_eq!(f.store.evict(3, 3).unwrap().bytes, 3);
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
    assert!(blobs.is_symlink());
}

#[cfg(unix)]
#[test]
fn a_folder_below_the_contents_that_leads_elsewhere_is_refused_before_anything_goes() {
    let f = Fixture::new();
    f.own("hf:a/b", "1", &[("x", "one")], 0);
    let (blobs, outside) = (f.store.root().join("blobs"), f.folder.path().join("outside"));
    let name = f.blob("one").file_name().unwrap().to_str().unwrap().to_owned();
    fs::create_dir(&outside).unwrap();
    fs::rename(f.blob("one"), outside.join(&name)).unwrap();
    std::os::unix::fs::symlink(&outside, blobs.join("sub")).unwrap();
    let record = fs::read_dir(f.store.artifacts()).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("blobs/", "blobs/sub/")).unwrap();
    let error = f.store.delete(&reference("hf:a/b")).unwrap_err();
    assert!(error.code() == "invalid_spec" && error.to_string().contains("outside"), "{error}");
    assert!(outside.join(name).exists() && f.listed() == [("hf:a/b".into(), "1".into(), true)]);
}
