//! A store that cannot be written to. Root can write anywhere, so that a process of another user does it then.

use std::{
    io::{ErrorKind, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
};

use llm_local_core::Error;

use super::*;
use crate::store::hold::is_unwritable;

/// Where the process below finds the folder of the test.
const FOLDER: &str = "LLM_LOCAL_TEST_READ_ONLY";
/// A user that owns nothing.
const NOBODY: u32 = 65534;

fn set_modes(folder: &Path, mode: u32) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            set_modes(&path, mode);
        }
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
}

/// What works in a store whose folders cannot be written to.
fn use_it(store: &Store, made: &Manifest) {
    let blob = store.blob(&FileKey::new(made, &made.files[0]));
    assert!(fs::write(store.root().join("test"), "").is_err(), "this is no test of a read-only store");
    let artifact = store.list().unwrap().artifacts.remove(0);
    assert_eq!((artifact.damaged.len(), store.size().unwrap().fetched), (0, 7));
    assert_eq!(store.verify(None, &Default::default()).unwrap()[0].outcome, crate::store::Outcome::Intact);
    // What a load does: hold, find, record.
    let hold = store.hold(made, None).unwrap();
    let paths = BTreeMap::from([("a".to_owned(), blob)]);
    store.record_files(made, &paths, &BTreeMap::new(), None, &BTreeMap::new(), at(9)).unwrap();
    store.touch(&made.reference, &made.revision, at(9)).unwrap();
    drop(hold);
    assert_eq!(store.list().unwrap().artifacts[0].last_used, at(0));
    // What came must be recorded, and what is deleted must go.
    assert!(store.record(made, &paths, &BTreeMap::new(), None, true, at(9)).is_err());
    assert!(matches!(store.delete(&made.reference), Err(Error::Io { .. })));
    assert_eq!(store.delete(&reference("hf:x/z")).unwrap_err().code(), "not_found");
}

fn made() -> Manifest {
    manifest("hf:x/y", "1", &[("a", "content")])
}

#[test]
#[ignore = "a process that another test starts"]
fn uses_it_as_another_user() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    use_it(&Store::new(Path::new(&folder).join("store")), &made());
    let mut out = std::io::stdout();
    writeln!(out, "\nused").unwrap();
    out.flush().unwrap();
}

#[test]
fn a_read_only_store_lists_verifies_and_lets_what_is_there_be_used() {
    let f = Fixture::new();
    f.own("hf:x/y", "1", &[("a", "content")], 0);
    let root = f.store.root();
    set_modes(root, 0o555);
    let can_write = fs::write(root.join("test"), "").is_ok();
    if !can_write {
        use_it(&f.store, &made());
        set_modes(root, 0o755);
        return;
    }
    fs::remove_file(root.join("test")).unwrap();
    fs::set_permissions(f.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (program, copy) = (std::env::current_exe().unwrap(), f.folder.path().join("program"));
    fs::hard_link(&program, &copy).or_else(|_| fs::copy(&program, &copy).map(|_| ())).unwrap();
    let output = Command::new(&copy)
        .args(["--exact", "--ignored", "--nocapture", "store::tests::read_only::uses_it_as_another_user"])
        .current_dir(f.folder.path())
        .env(FOLDER, f.folder.path())
        .uid(NOBODY)
        .output();
    set_modes(root, 0o755);
    match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("\nused"), "{text}{}", String::from_utf8_lossy(&output.stderr));
        }
        // Root of a container that may not become anybody else.
        Err(e) => assert_eq!(e.kind(), ErrorKind::PermissionDenied, "{e}"),
    }
}

#[test]
fn only_errors_of_writing_at_all_are_taken_for_a_read_only_store() {
    let io = |kind: ErrorKind| Error::io("open", "x", kind.into());
    for kind in [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem, ErrorKind::StorageFull] {
        assert!(is_unwritable(&io(kind)), "{kind}");
    }
    for kind in [ErrorKind::NotFound, ErrorKind::ResourceBusy, ErrorKind::NotADirectory, ErrorKind::Unsupported] {
        assert!(!is_unwritable(&io(kind)), "{kind}");
    }
    assert!(!is_unwritable(&Error::Cancelled));
}

#[test]
fn what_cannot_be_noted_of_a_use_is_no_error_and_what_came_must_be_noted() {
    let f = Fixture::new();
    let made = made();
    let blob = f.blob("content");
    write(&blob, "content");
    // A file where the records should be.
    write(&f.store.artifacts(), "");
    let paths = BTreeMap::from([("a".to_owned(), blob)]);
    f.store.record(&made, &paths, &BTreeMap::new(), None, false, at(0)).unwrap();
    assert!(f.store.record(&made, &paths, &BTreeMap::new(), None, true, at(0)).is_err());
}
