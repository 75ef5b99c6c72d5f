use llm_local_core::Error;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::store::Outcome;

fn verify(f: &Fixture) -> Vec<crate::store::Verified> {
    f.store.verify(None, &CancellationToken::new()).unwrap()
}

fn outcomes(f: &Fixture) -> Vec<(String, Outcome)> {
    verify(f).into_iter().map(|v| (v.path, v.outcome)).collect()
}

#[test]
fn every_kind_of_damage_is_told_and_removed_and_nothing_else() {
    let f = Fixture::new();
    let contents = [("a", "intact"), ("b", "flipped"), ("c", "shorter"), ("d", "missing")];
    f.own("hf:x/y", "1", &contents, 0);
    assert!(verify(&f).iter().all(|v| v.outcome == Outcome::Intact));
    fs::write(f.blob("flipped"), "flopped").unwrap();
    fs::write(f.blob("shorter"), "short").unwrap();
    fs::remove_file(f.blob("missing")).unwrap();
    let expected = [
        ("a".into(), Outcome::Intact),
        ("b".into(), Outcome::WrongDigest { expected: sha256("flipped"), found: sha256("flopped") }),
        ("c".into(), Outcome::WrongSize { expected: 7, found: 5 }),
        ("d".into(), Outcome::Missing),
    ];
    let found = verify(&f);
    assert_eq!(outcomes(&f), expected);
    let removed = f.store.remove_damaged(&found).unwrap();
    assert_eq!((removed.artifacts, removed.files, removed.bytes), (0, 2, 12));
    assert!(f.blob("intact").exists() && !f.blob("flipped").exists() && !f.blob("shorter").exists());
    assert_eq!(f.store.list().unwrap().artifacts[0].damaged, ["b", "c", "d"]);
    assert_eq!(f.store.remove_damaged(&found).unwrap(), Default::default());
}

#[test]
fn what_was_replaced_since_it_was_verified_stays() {
    let f = Fixture::new();
    f.own("hf:x/y", "1", &[("a", "content")], 0);
    fs::write(f.blob("content"), "damage").unwrap();
    let found = verify(&f);
    fs::write(f.blob("content"), "content").unwrap();
    assert_eq!(f.store.remove_damaged(&found).unwrap().files, 0);
    assert_eq!(outcomes(&f)[0].1, Outcome::Intact);
}

#[test]
fn a_damaged_file_that_is_in_use_stays() {
    let f = Fixture::new();
    f.own("hf:x/y", "1", &[("a", "content")], 0);
    fs::write(f.blob("content"), "damage").unwrap();
    let found = verify(&f);
    let hold = f.store.hold(&manifest("hf:other/one", "1", &[("b", "content")]), None).unwrap();
    let error = f.store.remove_damaged(&found).unwrap_err();
    assert!(error.to_string().contains("is loaded or being fetched"), "{error}");
    drop(hold);
    assert_eq!(f.store.remove_damaged(&found).unwrap().files, 1);
}

#[test]
fn a_file_without_a_promised_digest_is_held_against_the_one_it_came_with() {
    let f = Fixture::new();
    let files = vec![ManifestFile::new("known", 1), ManifestFile::new("unknown", 1)];
    let plain = Manifest::new(reference("hf:x/y"), Want::Model, "1", files).unwrap();
    let path = |file| f.store.blob(&FileKey::new(&plain, file));
    let paths: BTreeMap<_, _> = plain.files.iter().map(|file| (file.path.clone(), path(file))).collect();
    paths.values().for_each(|path| write(path, "k"));
    let computed = BTreeMap::from([("known".to_owned(), sha256("k"))]);
    f.store.record(&plain, &paths, &computed, None, true, at(0)).unwrap();
    assert_eq!(outcomes(&f), [("known".into(), Outcome::Intact), ("unknown".into(), Outcome::Unproven)]);
    paths.values().for_each(|path| write(path, "z"));
    let wrong = Outcome::WrongDigest { expected: sha256("k"), found: sha256("z") };
    assert_eq!(outcomes(&f), [("known".into(), wrong), ("unknown".into(), Outcome::Unproven)]);
}

#[test]
fn a_git_digest_is_compared_as_one() {
    let f = Fixture::new();
    // printf hello | git hash-object --stdin
    let digest: Digest = "git-sha1:b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0".parse().unwrap();
    let files = vec![ManifestFile::new("a", 5).with_digest(digest)];
    let made = Manifest::new(reference("hf:x/y"), Want::Model, "1", files).unwrap();
    let blob = f.store.blob(&FileKey::of_digest(&digest));
    write(&blob, "hello");
    let paths = BTreeMap::from([("a".to_owned(), blob.clone())]);
    f.store.record(&made, &paths, &BTreeMap::new(), None, true, at(0)).unwrap();
    assert_eq!(outcomes(&f)[0].1, Outcome::Intact);
    write(&blob, "hallo");
    assert!(matches!(outcomes(&f)[0].1, Outcome::WrongDigest { expected, .. } if expected == digest));
}

#[test]
fn verifying_one_leaves_the_others_unread_and_a_cancel_ends_it() {
    let f = Fixture::new();
    f.own("hf:x/y", "1", &[("a", "one")], 0);
    f.own("hf:x/z", "1", &[("a", "two")], 0);
    let cancel = CancellationToken::new();
    let found = f.store.verify(Some(&reference("hf:x/z")), &cancel).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].reference.to_string().as_str(), &found[0].file), ("hf:x/z", &f.blob("two")));
    assert_eq!(f.store.verify(Some(&reference("hf:x/w")), &cancel).unwrap_err().code(), "not_found");
    cancel.cancel();
    assert!(matches!(f.store.verify(None, &cancel), Err(Error::Cancelled)));
}
