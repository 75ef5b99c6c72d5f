//! Downloads into a cache of another tool that were given up.

use std::os::unix::fs::symlink;

use super::{hub::commit, *};
use crate::store::{Came, Cleaned, Hold};

const DAY: Duration = Duration::from_secs(86_400);

/// What the tests fetch: three files.
const FILES: [(&str, &str); 3] = [("config.json", "{}"), ("model-1", "one"), ("model-2", "four")];

impl Fixture {
    /// A fetch of the artifact that published and noted `came`, and is still under way until the hold is dropped.
    fn begin(&self, revision: &str, came: &[&str]) -> (Manifest, Hold) {
        let made = manifest("hf:org/name", revision, &FILES);
        let placement = self.placement(&made, Some("main"));
        let hold = self.store.hold(&made, Some(&placement)).unwrap();
        for name in came {
            let (_, content) = FILES.iter().find(|(path, _)| path == name).unwrap();
            self.publish(&manifest("hf:org/name", revision, &[(name, content)]), &[content], None);
            self.store.note_fetched(&made, &placement, name).unwrap();
        }
        (made, hold)
    }

    /// What the rest of the fetch does.
    fn finish(&self, made: &Manifest, came: &[&str]) {
        let placement = self.publish(made, &FILES.map(|(_, content)| content), Some("main"));
        let paths = made.files.iter().zip(&placement.files).map(|(f, p)| (f.path.clone(), p.link.clone())).collect();
        let came = came.iter().map(|path| ((*path).to_owned(), Came::Fetched)).collect();
        self.store.record_files(made, &paths, &BTreeMap::new(), Some(&placement), &came, at(0)).unwrap();
    }

    fn clean_later(&self) -> Cleaned {
        self.store.clean(DAY, SystemTime::now() + 2 * DAY).unwrap()
    }

    fn notes_left(&self) -> usize {
        self.tree().iter().filter(|path| path.starts_with("store/unfinished/") && path.ends_with(".jsonl")).count()
    }
}

#[test]
fn what_was_fetched_for_an_artifact_that_never_became_whole_is_freed() {
    let f = Fixture::new();
    // Another tool had one of its files.
    f.publish(&manifest("hf:org/name", &commit('a'), &[FILES[0]]), &["{}"], Some("main"));
    let (_, hold) = f.begin(&commit('a'), &["model-1", "model-2"]);
    let size = f.store.size().unwrap();
    assert_eq!((size.unrecorded, size.fetched, size.found), (7, 0, 0));
    assert_eq!(f.clean_later(), Cleaned::default(), "it is under way");
    drop(hold);
    assert_eq!(f.store.clean(DAY, SystemTime::now()).unwrap(), Cleaned::default(), "it is new");
    let cleaned = f.clean_later();
    assert_eq!((cleaned.files, cleaned.bytes), (2, 7));
    let config = format!("blobs/{}", f.hub_blob("{}").file_name().unwrap().display());
    assert_eq!(f.cache(), [config, "refs/main".into(), format!("snapshots/{}/config.json", commit('a'))]);
    assert_eq!((f.notes_left(), f.store.size().unwrap().unrecorded), (0, 0));
    assert_eq!(f.clean_later(), Cleaned::default());
}

#[test]
fn nothing_is_left_of_a_download_that_began_alone() {
    let f = Fixture::new();
    drop(f.begin(&commit('a'), &["config.json", "model-1"]));
    assert_eq!(f.clean_later().bytes, 5);
    assert!(!f.repo().exists(), "{:?}", f.cache());
}

#[test]
fn a_download_that_goes_on_remembers_what_came_before() {
    let f = Fixture::new();
    f.publish(&manifest("hf:org/name", &commit('a'), &[FILES[0]]), &["{}"], Some("main"));
    drop(f.begin(&commit('a'), &["model-1"]));
    let (made, hold) = f.begin(&commit('a'), &[]);
    f.finish(&made, &["model-2"]);
    drop(hold);
    assert_eq!(f.notes_left(), 0);
    assert_eq!(f.store.list().unwrap().artifacts[0].found, ["config.json"]);
    assert_eq!(f.clean_later(), Cleaned::default());
    assert_eq!(f.store.evict(0, 0).unwrap().bytes, 7);
    assert_eq!(f.cache().len(), 3);
}

#[test]
fn what_another_tool_uses_or_brought_anew_stays() {
    let f = Fixture::new();
    drop(f.begin(&commit('a'), &["config.json", "model-1", "model-2"]));
    // A link of another revision, and content that was deleted and came again.
    f.publish(&manifest("hf:org/name", &commit('b'), &[FILES[0]]), &["{}"], None);
    fs::remove_file(f.hub_blob("one")).unwrap();
    write(&f.hub_blob("one"), "one");
    fs::File::options().write(true).open(f.hub_blob("one")).unwrap().set_modified(at(9)).unwrap();
    // Content without a link at all: another tool is about to make it.
    write(&f.hub_blob("theirs"), "theirs");
    let cleaned = f.clean_later();
    assert_eq!((cleaned.files, cleaned.bytes), (1, 4));
    assert!(f.hub_blob("{}").exists() && f.hub_blob("one").exists() && f.hub_blob("theirs").exists());
    assert!(f.dangling().is_empty(), "{:?}", f.dangling());
    assert!(f.repo().join("snapshots").join(commit('a')).join("model-1").exists());
}

#[test]
fn what_a_recorded_artifact_needs_stays() {
    let f = Fixture::new();
    let (made, hold) = f.begin(&commit('b'), &[]);
    f.finish(&made, &["config.json", "model-1", "model-2"]);
    drop(hold);
    drop(f.begin(&commit('a'), &["config.json", "model-1"]));
    assert_eq!(f.clean_later().bytes, 0);
    assert_eq!(f.listed(), [("hf:org/name".into(), commit('b'), true)]);
    assert!(!f.repo().join("snapshots").join(commit('a')).exists() && f.notes_left() == 0);
}

#[test]
fn a_user_deletes_what_is_not_whole_by_its_ref() {
    let f = Fixture::new();
    let (_, hold) = f.begin(&commit('a'), &["model-1"]);
    assert!(f.store.delete(&reference("hf:org/name")).unwrap_err().to_string().contains("is loaded or being fetched"));
    drop(hold);
    let deleted = f.store.delete(&reference("hf:org/name")).unwrap();
    assert_eq!((deleted.artifacts, deleted.bytes, f.notes_left()), (0, 3, 0));
    assert!(!f.repo().exists());
    assert_eq!(f.store.delete(&reference("hf:org/name")).unwrap_err().code(), "not_found");
}

#[test]
fn what_is_not_whole_goes_before_any_artifact_is_evicted() {
    let f = Fixture::new();
    f.own("hf:x/y", "1", &[("a", "content")], 0);
    let (_, hold) = f.begin(&commit('a'), &["model-1"]);
    assert!(f.store.evict(9, 7).is_err());
    assert_eq!(f.store.evict(10, 0).unwrap().bytes, 0);
    drop(hold);
    assert_eq!(f.store.evict(9, 0).unwrap().bytes, 3);
    assert_eq!((f.listed().len(), f.repo().exists(), f.notes_left()), (1, false, 0));
}

#[test]
fn a_note_that_a_crash_cut_off_tells_what_came_before_that() {
    let f = Fixture::new();
    let (made, hold) = f.begin(&commit('a'), &["model-1", "model-2"]);
    drop(hold);
    let note = f.tree().into_iter().find(|path| path.ends_with(".jsonl")).unwrap();
    let note = f.folder.path().join(note);
    let text = fs::read_to_string(&note).unwrap();
    fs::write(&note, &text[..text.len() - 9]).unwrap();
    f.publish(&manifest("hf:org/name", &commit('a'), &[FILES[0]]), &["{}"], None);
    f.store.note_fetched(&made, &f.placement(&made, Some("main")), "config.json").unwrap();
    let ledger = f.store.ledger().unwrap();
    let paths: Vec<_> = ledger.unfinished[0].files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["model-1", "config.json"]);
    // A note that nobody can read is listed, and nothing that it names goes.
    fs::write(&note, text.replacen("\"version\":3", "\"version\":7", 1)).unwrap();
    assert_eq!(f.store.list().unwrap().unreadable[0].path, note);
    assert_eq!(f.clean_later().bytes, 0);
    assert!(note.exists());
}

#[test]
fn of_copies_beside_the_contents_only_ours_go() {
    let f = Fixture::new();
    let (_, hold) = f.begin(&commit('a'), &["model-1"]);
    let blobs = f.repo().join("blobs");
    let hex = sha256("four").to_string().replace("sha256:", "");
    // As `disk::publish` calls it: by the path of the partial.
    let partial = f.store.root().join("partials").join(format!("sha256-{hex}"));
    let tag = &sha256(partial.to_str().unwrap()).to_string()["sha256:".len()..][..8];
    let ours = blobs.join(format!("{hex}.{tag}.incomplete"));
    let theirs = [blobs.join(format!("{hex}.0123abcd.incomplete")), blobs.join(format!("{hex}.incomplete"))];
    for path in theirs.iter().chain([&ours]) {
        write(path, "copied");
    }
    symlink("nowhere", f.repo().join(".llm-local-abc.tmp")).unwrap();
    let lock =
        crate::disk::FileLock::try_acquire(&f.store.locks().join(format!("sha256-{hex}.lock"))).unwrap().unwrap();
    assert_eq!(f.clean_later().bytes, 0);
    assert!(ours.exists());
    drop((hold, lock));
    // The copies, and then `model-1`.
    assert_eq!(f.clean_later().bytes, 6 + 3);
    assert!(!ours.exists() && theirs.iter().all(|path| path.exists()));
    assert!(fs::symlink_metadata(f.repo().join(".llm-local-abc.tmp")).is_err());
}

#[test]
fn a_file_that_the_manifest_lacks_is_not_noted() {
    let f = Fixture::new();
    let made = manifest("hf:org/name", &commit('a'), &FILES);
    let error = f.store.note_fetched(&made, &f.placement(&made, None), "other").unwrap_err();
    assert!(error.to_string().contains("`other`"), "{error}");
    assert!(!f.store.root().exists());
}
