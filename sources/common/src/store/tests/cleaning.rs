use super::*;
use crate::{disk::FileLock, store::Cleaned};

const DAY: Duration = Duration::from_secs(86_400);

impl Fixture {
    /// Cleans what is older than a day, `later` than now.
    fn clean(&self, later: Duration) -> Cleaned {
        self.store.clean(DAY, SystemTime::now() + later).unwrap()
    }
}

#[test]
fn nothing_is_made_where_nothing_is() {
    let f = Fixture::new();
    assert_eq!(f.clean(2 * DAY), Cleaned::default());
    assert!(!f.store.root().exists());
}

#[test]
fn old_partials_go_and_those_at_work_stay() {
    let f = Fixture::new();
    for key in ["sha256-old", "sha256-busy"] {
        write(&f.store.root().join("partials").join(key).join("data"), "part");
    }
    let lock = FileLock::try_acquire(&f.store.root().join("locks/sha256-busy.lock")).unwrap().unwrap();
    assert_eq!(f.clean(Duration::ZERO).files, 0, "they are new");
    assert_eq!(f.store.clean(DAY, SystemTime::now() - 2 * DAY).unwrap().files, 0, "by a clock that was set back");
    let cleaned = f.clean(2 * DAY);
    assert!(cleaned.files == 1 && cleaned.bytes > 0, "{cleaned:?}");
    assert!(f.store.root().join("partials/sha256-busy/data").exists());
    drop(lock);
    assert_eq!(f.clean(2 * DAY).files, 1);
    assert!(!f.tree().iter().any(|path| path.contains("partials/sha256")), "{:?}", f.tree());
}

#[test]
fn partials_of_what_is_held_stay() {
    let f = Fixture::new();
    let mut held = manifest("hf:x/coming", "1", &[("a", "proved"), ("b", "plain")]);
    held.files[1].digest = None;
    let keys: Vec<_> = held.files.iter().map(|file| FileKey::new(&held, file)).collect();
    let partials = || f.store.root().join("partials").read_dir().unwrap().count();
    for key in &keys {
        write(&key.partial(f.store.root()).join("data"), "part");
    }
    write(&f.store.root().join("partials/sha256-0123/data"), "nobody's");
    let hold = f.store.hold(&held, None).unwrap();
    // Its fetch has not come to these files yet.
    assert_eq!((f.clean(2 * DAY).files, partials()), (1, 2));
    // A hold of another version of this program names digests in ways of its own.
    let mark = f.store.marks().unwrap().remove(0);
    write(&mark, &format!("{{\"version\": 99, \"needs\": \"{}\"}}", sha256("proved")));
    write(&f.store.root().join("partials/sha256-0123/data"), "nobody's");
    assert_eq!((f.clean(2 * DAY).files, partials()), (1, 2));
    drop(hold);
    assert_eq!((f.clean(2 * DAY).files, partials()), (2, 0));
}

#[test]
fn old_content_that_nothing_names_goes_and_what_is_recorded_or_held_stays() {
    let f = Fixture::new();
    f.own("hf:x/kept", "1", &[("a", "recorded")], 0);
    for content in ["nobody's", "coming"] {
        write(&f.blob(content), content);
    }
    // What is no content of ours.
    write(&f.store.root().join("blobs/README"), "a note");
    let hold = f.store.hold(&manifest("hf:x/coming", "1", &[("a", "coming"), ("b", "more")]), None).unwrap();
    assert_eq!(f.store.size().unwrap().unrecorded, 8 + 6 + 6);
    assert_eq!(f.clean(Duration::ZERO).files, 0, "they are new");
    let cleaned = f.clean(2 * DAY);
    assert_eq!((cleaned.files, cleaned.bytes), (1, 8));
    assert!(f.blob("recorded").exists() && f.blob("coming").exists());
    drop(hold);
    assert_eq!(f.clean(2 * DAY).bytes, 6);
    assert!(f.blob("recorded").exists() && f.store.root().join("blobs/README").exists());
}

#[test]
fn content_that_an_unreadable_record_may_name_stays() {
    let f = Fixture::new();
    for content in ["named", "other"] {
        write(&f.blob(content), content);
    }
    let name = f.blob("named").file_name().unwrap().to_str().unwrap().to_owned();
    write(&f.store.artifacts().join("x.json"), &format!("{{\"version\": 9, \"of\": \"{name}\"}}"));
    assert_eq!(f.clean(2 * DAY).bytes, 5);
    assert!(f.blob("named").exists());
    #[cfg(unix)]
    {
        let unknown = f.store.artifacts().join("y.json");
        std::os::unix::fs::symlink("y.json", &unknown).unwrap();
        write(&f.blob("other"), "other");
        assert_eq!(f.clean(2 * DAY).bytes, 0);
        fs::remove_file(unknown).unwrap();
        assert_eq!(f.clean(2 * DAY).bytes, 5);
    }
}

#[test]
fn temporary_files_go_when_they_are_old_and_never_within_an_hour() {
    let f = Fixture::new();
    f.own("hf:x/y", "1", &[("a", "content")], 0);
    let root = f.store.root();
    let left: Vec<_> = ["", "artifacts", "trust", "selected", "unfinished", "locks", "blobs", "partials"]
        .map(|at| root.join(at).join(".llm-local-abc.tmp"))
        .into();
    for path in &left {
        write(path, "left");
    }
    let hour = Duration::from_secs(60 * 60);
    assert_eq!(f.store.clean(Duration::ZERO, SystemTime::now() + hour / 2).unwrap(), Cleaned::default());
    assert!(left.iter().all(|path| path.exists()));
    let cleaned = f.store.clean(Duration::ZERO, SystemTime::now() + 2 * hour).unwrap();
    assert_eq!((cleaned.files, cleaned.bytes), (8, 32));
    assert_eq!(f.listed(), [("hf:x/y".into(), "1".into(), true)]);
}

#[test]
fn answers_that_were_not_used_for_thirty_days_go() {
    let f = Fixture::new();
    let folder = f.store.root().join("github");
    let (answer, used, note) =
        (folder.join("a".repeat(64) + ".json"), folder.join("b".repeat(64) + ".json"), "note.json");
    for path in [&answer, &used, &folder.join(note)] {
        write(path, "answer");
    }
    assert_eq!(f.clean(29 * DAY).files, 0);
    let file = fs::File::options().write(true).open(&used).unwrap();
    file.set_modified(SystemTime::now() + 20 * DAY).unwrap();
    let cleaned = f.clean(31 * DAY);
    assert_eq!((cleaned.files, cleaned.bytes), (1, 6));
    assert!(!answer.exists() && used.exists());
    assert_eq!(f.store.clean(60 * DAY, SystemTime::now() + 51 * DAY).unwrap().files, 0, "they may stay for longer");
    assert_eq!(f.clean(51 * DAY).files, 1);
    assert!(folder.join(note).exists(), "it is none");
}

#[test]
fn one_that_cannot_be_cleaned_keeps_no_other_from_it_and_is_told() {
    let f = Fixture::new();
    for key in ["sha256-a", "sha256-b", "sha256-c"] {
        write(&f.store.root().join("partials").join(key).join("data"), "part");
    }
    fs::create_dir_all(f.store.locks().join("sha256-b.lock")).unwrap();
    write(&f.blob("nobody's"), "nobody's");
    let error = f.store.clean(DAY, SystemTime::now() + 2 * DAY).unwrap_err().to_string();
    assert!(error.contains("sha256-b.lock"), "{error}");
    let left: Vec<_> =
        f.tree().into_iter().filter(|path| path.contains("partials/") || path.contains("blobs/")).collect();
    assert_eq!(left, ["store/blobs/", "store/partials/sha256-b/data"]);
}
