use std::cell::RefCell;

use super::*;

#[test]
fn a_target_must_have_a_name_and_be_no_mounted_file_system() {
    let folder = tempfile::tempdir().unwrap();
    for nameless in [Path::new("."), Path::new(".."), Path::new("/"), &folder.path().join("..")] {
        let error = check_free("export to", nameless).unwrap_err().to_string();
        assert!(error.contains("name of a folder; name a new one in it"), "{error}");
    }
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    check_free("export to", &empty).unwrap();
    let error = check_free_with("export to", &empty, |one, other| {
        assert_eq!((one, other), (folder.path(), empty.as_path()));
        false
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("empty") && error.contains("mounted there"), "{error}");
    // Where nothing is, the folder is made on the file system of its parent.
    check_free_with("export to", &folder.path().join("none"), |_, _| false).unwrap();
}

/// Puts a folder with the file `file` to `into`, which is a folder with the files `theirs`, where each renaming fails with
/// the error that `fails` has for its number. Gives the outcome, and what is at `into` then.
fn put_onto(theirs: &[&str], fails: &[(usize, io::ErrorKind)]) -> (Result<(), io::ErrorKind>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let [from, into] = ["from", "into"].map(|name| folder.path().join(name));
    for (folder, files) in [(&from, &["file"][..]), (&into, theirs)] {
        fs::create_dir(folder).unwrap();
        files.iter().for_each(|file| fs::write(folder.join(file), "").unwrap());
    }
    let calls = RefCell::new(0);
    let rename = |from: &Path, to: &Path| {
        let call = calls.replace_with(|calls| *calls + 1);
        match fails.iter().find(|(number, _)| *number == call) {
            Some((_, kind)) => Err((*kind).into()),
            None => fs::rename(from, to),
        }
    };
    let outcome = put(&from, &into, rename).map_err(|e| e.kind());
    let mut names: Vec<_> =
        fs::read_dir(&into).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    (outcome, names)
}

#[test]
fn an_empty_folder_is_replaced_where_the_system_does_not_and_is_back_when_that_fails() {
    use io::ErrorKind as K;
    // As on Windows.
    assert_eq!(put_onto(&[], &[(0, K::AlreadyExists)]), (Ok(()), vec!["file".into()]));
    // The first error counts, and an empty folder is there again.
    assert_eq!(put_onto(&[], &[(0, K::AlreadyExists), (1, K::StorageFull)]), (Err(K::AlreadyExists), vec![]));
    // Whoever has put something into it meanwhile keeps it, whatever fails.
    for fails in [&[(0, K::AlreadyExists)][..], &[(0, K::AlreadyExists), (1, K::StorageFull)]] {
        assert_eq!(put_onto(&["theirs"], fails), (Err(K::AlreadyExists), vec!["theirs".into()]));
    }
    // Another error than that something is there is no reason to touch it.
    assert_eq!(put_onto(&[], &[(0, K::StorageFull)]), (Err(K::StorageFull), vec![]));
}

#[test]
fn a_folder_is_published_over_an_empty_one_and_not_over_another() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("into");
    let new = || {
        let mut new = NewFolder::beside("export to", &into).unwrap();
        new.write("file", b"new").unwrap();
        new
    };
    fs::create_dir(&into).unwrap();
    assert_eq!(new().publish(&into, &Wanted::new()).unwrap(), ["file"]);
    assert_eq!(new().publish(&into, &Wanted::new()).unwrap_err().code(), "io");
    let given_up = Wanted::new();
    given_up.give_up();
    fs::remove_dir_all(&into).unwrap();
    assert!(matches!(new().publish(&into, &given_up), Err(Error::Cancelled)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
