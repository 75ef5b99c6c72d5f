//! One bad entry does no harm to the others.

use super::*;

impl Fixture {
    /// Everything that reads or changes the store works, and `hf:x/good` is listed, with `bad` beside it.
    fn works_beside(&self, bad: &Path, reason: &str) {
        let listing = self.store.list().unwrap();
        assert_eq!(self.listed(), [("hf:x/good".into(), "1".into(), true)]);
        let told: Vec<_> = listing.unreadable.iter().filter(|u| u.path == bad).collect();
        assert!(told.len() == 1 && told[0].reason.contains(reason), "{listing:?}");
        self.store.size().unwrap();
        self.store.touch(&reference("hf:x/good"), "1", at(5)).unwrap();
        self.store.pin(&reference("hf:x/good")).unwrap();
        self.store.unpin(&reference("hf:x/good")).unwrap();
        assert_eq!(self.store.verify(None, &Default::default()).unwrap().len(), 1);
        let other = self.own("hf:x/other", "1", &[("a", "other")], 1);
        drop(self.store.hold(&other, None).unwrap());
        self.store.delete(&reference("hf:x/other")).unwrap();
        assert!(!self.blob("other").exists());
        self.own("hf:x/other", "1", &[("a", "other")], 6);
        assert_eq!(self.store.evict(8, 0).unwrap().artifacts, 1);
        assert_eq!(self.listed().len(), 1);
        self.store.delete(&reference("hf:x/other")).unwrap();
        assert!(self.listed().is_empty() && bad.exists());
    }

    fn good() -> Self {
        let f = Self::new();
        f.own("hf:x/good", "1", &[("a", "good")], 2);
        f
    }
}

#[test]
fn a_folder_called_like_a_record_is_listed_and_left() {
    let f = Fixture::good();
    let bad = f.store.artifacts().join("x.json");
    fs::create_dir(&bad).unwrap();
    f.works_beside(&bad, "a folder");
}

#[test]
fn a_broken_record_is_listed_and_left() {
    for text in ["", "{", "[]", "{\"version\": \"2\"}", "{\"version\": 0}", "{\"version\": 3}"] {
        let f = Fixture::good();
        let bad = f.store.artifacts().join("x.json");
        fs::write(&bad, text).unwrap();
        f.works_beside(&bad, "");
    }
    let f = Fixture::good();
    let bad = f.store.artifacts().join("x.json");
    fs::write(&bad, b"\xff\xfe{").unwrap();
    f.works_beside(&bad, "not a record");
}

// A link that leads to itself can be read by nobody, not even by root.
#[cfg(unix)]
#[test]
fn a_record_that_the_system_does_not_give_is_listed_and_keeps_content_without_a_record() {
    let f = Fixture::good();
    let bad = f.store.artifacts().join("x.json");
    std::os::unix::fs::symlink("x.json", &bad).unwrap();
    write(&f.blob("nobody's"), "nobody's");
    let listing = f.store.list().unwrap();
    assert!(listing.unreadable[0].reason.contains("cannot be read"), "{listing:?}");
    assert_eq!(f.store.evict(12, 4).unwrap().bytes, 4, "the record's own");
    assert!(f.blob("nobody's").exists() && f.listed().is_empty());
    let f = Fixture::good();
    let bad = f.store.artifacts().join("x.json");
    std::os::unix::fs::symlink("x.json", &bad).unwrap();
    let listing = f.store.list().unwrap();
    assert_eq!((listing.artifacts.len(), listing.unreadable.len()), (1, 1));
    f.store.delete(&reference("hf:x/good")).unwrap();
    assert!(!f.blob("good").exists());
}

#[test]
fn a_broken_record_is_replaced_when_its_artifact_comes_and_one_of_a_newer_version_is_not() {
    let f = Fixture::good();
    let record = f.store.ledger().unwrap().records.remove(0);
    let path = f.store.record_path(&record);
    fs::write(&path, "{").unwrap();
    f.own("hf:x/good", "1", &[("a", "good")], 3);
    assert_eq!(f.listed(), [("hf:x/good".into(), "1".into(), true)]);
    let newer = record.to_text().unwrap().replace("\"version\": 3", "\"version\": 4, \"pinned_until\": 9");
    fs::write(&path, &newer).unwrap();
    f.own("hf:x/good", "1", &[("a", "good")], 4);
    f.store.touch(&record.reference, &record.revision, at(5)).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
    // What it needs stays, whoever goes.
    f.own("hf:x/other", "1", &[("a", "good"), ("b", "other")], 5);
    assert_eq!(f.store.delete(&reference("hf:x/other")).unwrap().bytes, 5);
    assert!(f.blob("good").exists() && f.store.evict(5, 4).is_err());
}

#[test]
fn a_folder_called_like_a_mark_or_its_lock_is_nobodys_hold() {
    for name in ["artifact-x.json", "artifact-x.lock"] {
        let f = Fixture::good();
        fs::create_dir_all(f.store.locks().join(name)).unwrap();
        fs::create_dir_all(f.store.locks().join("artifact-x.json")).unwrap();
        assert_eq!(f.store.delete(&reference("hf:x/good")).unwrap().bytes, 4, "{name}");
    }
}

#[cfg(unix)]
#[test]
fn while_somebody_holds_nobody_knows_what_nothing_goes_and_that_is_said() {
    let f = Fixture::good();
    let mark = f.store.locks().join("artifact-x.json");
    std::os::unix::fs::symlink("artifact-x.json", &mark).unwrap();
    let lock = crate::disk::FileLock::try_acquire(&f.store.locks().join("artifact-x.lock")).unwrap().unwrap();
    let error = f.store.delete(&reference("hf:x/good")).unwrap_err().to_string();
    assert!(error.contains(&mark.display().to_string()) && error.contains("remove it"), "{error}");
    assert!(f.store.evict(4, 4).is_err() && f.listed().len() == 1);
    f.store.touch(&reference("hf:x/good"), "1", at(3)).unwrap();
    drop(lock);
    assert_eq!(f.store.delete(&reference("hf:x/good")).unwrap().bytes, 4);
}

#[test]
fn a_ref_that_names_nothing_is_answered_with_what_there_is() {
    let f = Fixture::new();
    let said = |text: &str| {
        let which = reference(text);
        let errors = [
            f.store.delete(&which).unwrap_err(),
            f.store.verify(Some(&which), &Default::default()).unwrap_err(),
            f.store.pin(&which).unwrap_err(),
        ];
        let texts = errors.map(|e| e.to_string());
        assert!(texts[0] == texts[1] && texts[1] == texts[2] && texts[0].contains(text), "{texts:?}");
        texts[0].clone()
    };
    assert!(said("hf:org/tiny").contains("nothing is kept here yet"));
    f.own("hf:org/tiny", "c1", &[("a", "a")], 0);
    f.own("hf:else/where", "c1", &[("a", "a")], 0);
    assert!(said("hf:org/tiny@c2").ends_with("this store has `hf:org/tiny` at c1"), "{}", said("hf:org/tiny@c2"));
    assert!(said("hf:org/Tinny").ends_with("did you mean `hf:org/tiny`?"));
    assert!(said("hf:what/ever-this-is").ends_with("this store has `hf:else/where`, `hf:org/tiny`"));
    // Without its scheme a ref is a path.
    assert!(said("file:org/tiny").ends_with("this store has `hf:org/tiny` at c1"));
    for i in 0..9 {
        f.own(&format!("hf:many/{i}"), "c1", &[("a", "a")], 0);
    }
    assert!(said("hf:zzzz/zzzzzzzz").ends_with("`hf:many/3` and 6 more"), "{}", said("hf:zzzz/zzzzzzzz"));
}
