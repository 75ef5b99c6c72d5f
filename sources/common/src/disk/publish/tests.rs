use std::cell::Cell;

use llm_local_core::{Manifest, ManifestFile, Want};

use super::*;

const CONTENT: &[u8] = b"the content of a file";

/// A folder with a store and, in the layout of the Hub's cache, a place for one file.
struct Place {
    folder: tempfile::TempDir,
    key: FileKey,
    target: Target,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let digest = format!("sha256:{}", "5a".repeat(32)).parse().unwrap();
        let file = ManifestFile::new("sub/model.safetensors", CONTENT.len() as u64).with_digest(digest);
        let manifest = Manifest::new("hf:a/b".parse().unwrap(), Want::Model, "1", vec![file]).unwrap();
        let cache = folder.path().join("hub/models--a--b");
        let target =
            Target { blob: cache.join("blobs/5a"), link: Some(cache.join("snapshots/1/sub/model.safetensors")) };
        Self { folder, key: FileKey::new(&manifest, &manifest.files[0]), target }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn partial(&self, content: &[u8]) -> Partial {
        let lock = FileLock::try_acquire(&self.key.lock(&self.root())).unwrap().expect("the lock is free");
        let partial = Partial::open(&self.root(), &self.key, CONTENT.len() as u64, lock, None).unwrap();
        partial.writer().write(0, content).unwrap();
        partial
    }

    fn targets(&self) -> [Target; 1] {
        [self.target.clone()]
    }

    fn link_all(&self) -> Result<bool> {
        link(&self.targets(), CONTENT.len() as u64, None, &Folders::default())
    }

    fn link(&self) -> &Path {
        self.target.path()
    }

    /// Asserts that the file is published and nothing else is in the cache or left of the partial.
    fn assert_published(&self, files: &[&str]) {
        assert_eq!(fs::read(self.link()).unwrap(), CONTENT);
        assert!(self.target.is_published(CONTENT.len() as u64));
        assert_eq!(self.files(), files);
        assert!(!self.key.partial(&self.root()).exists());
    }

    /// All files below the cache.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if fs::symlink_metadata(&path).unwrap().is_dir() { walk(&path, found) } else { found.push(path) }
            }
        }
        let cache = self.folder.path().join("hub/models--a--b");
        let mut found = Vec::new();
        walk(&cache, &mut found);
        found.sort();
        found.iter().map(|p| p.strip_prefix(&cache).unwrap().to_str().unwrap().to_owned()).collect()
    }
}

const BOTH: [&str; 2] = ["blobs/5a", "snapshots/1/sub/model.safetensors"];

/// A system where renames to another folder fail so, and links so.
struct Lacking {
    rename: Cell<Option<io::ErrorKind>>,
    symlink: Option<Box<dyn Fn() -> io::Error>>,
}

impl FileSystem for Lacking {
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename.get().map_or_else(|| fs::rename(from, to), |kind| Err(kind.into()))
    }

    fn symlink(&self, target: &Path, link: &Path, staging: &Path) -> io::Result<()> {
        assert!(staging.ends_with("models--a--b"), "{} would be taken for an artifact's", staging.display());
        self.symlink.as_ref().map_or_else(|| replace_with_symlink(target, link, staging), |error| Err(error()))
    }
}

#[cfg(unix)]
#[test]
fn a_file_is_published_with_a_relative_link_and_common_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    assert!(!place.target.is_published(CONTENT.len() as u64));
    publish(place.partial(CONTENT), &place.targets(), &Folders::default()).unwrap();
    place.assert_published(&BOTH);
    assert_eq!(fs::read_link(place.link()).unwrap(), Path::new("../../../blobs/5a"));
    let plain = place.folder.path().join("plain");
    fs::write(&plain, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&place.target.blob), mode(&plain));
    // Again, and with the whole cache moved elsewhere.
    publish(place.partial(CONTENT), &place.targets(), &Folders::default()).unwrap();
    place.assert_published(&BOTH);
    let moved = place.folder.path().join("moved");
    fs::rename(place.folder.path().join("hub"), &moved).unwrap();
    assert_eq!(fs::read(moved.join("models--a--b").join(BOTH[1])).unwrap(), CONTENT);
}

#[test]
fn content_that_is_there_stays_and_the_partial_goes() {
    let place = Place::new();
    fs::create_dir_all(place.target.blob.parent().unwrap()).unwrap();
    fs::write(&place.target.blob, CONTENT).unwrap();
    let before = fs::metadata(&place.target.blob).unwrap().modified().unwrap();
    publish(place.partial(b"another file's bytes!"), &place.targets(), &Folders::default()).unwrap();
    place.assert_published(&BOTH);
    assert_eq!(fs::metadata(&place.target.blob).unwrap().modified().unwrap(), before);
}

#[test]
fn content_of_another_size_is_replaced() {
    let place = Place::new();
    fs::create_dir_all(place.target.blob.parent().unwrap()).unwrap();
    fs::write(&place.target.blob, "cut").unwrap();
    place.link_all().unwrap();
    assert!(!place.target.is_published(CONTENT.len() as u64) && !place.target.has_blob(CONTENT.len() as u64));
    publish(place.partial(CONTENT), &place.targets(), &Folders::default()).unwrap();
    place.assert_published(&BOTH);
}

#[test]
fn without_a_link_the_blob_is_what_is_used() {
    let mut place = Place::new();
    place.target.link = None;
    publish(place.partial(CONTENT), &place.targets(), &Folders::default()).unwrap();
    place.assert_published(&BOTH[..1]);
}

#[test]
fn a_file_that_is_not_whole_is_not_published() {
    let place = Place::new();
    let error = publish(place.partial(&CONTENT[1..]), &place.targets(), &Folders::default()).unwrap_err().to_string();
    assert!(error.contains("only 20 of 21 bytes"), "{error}");
    assert!(place.files().is_empty());
    assert_eq!(Partial::peek(&place.root(), &place.key, CONTENT.len() as u64), 20);
}

#[test]
fn another_file_system_takes_a_copy() {
    let place = Place::new();
    let partial = place.partial(CONTENT);
    // What a crash in the middle of a copy leaves.
    fs::create_dir_all(place.target.blob.parent().unwrap()).unwrap();
    let name = format!("5a.{}.incomplete", partial.tag());
    fs::write(place.target.blob.with_file_name(&name), [7; 100]).unwrap();
    let system = Lacking { rename: Cell::new(Some(io::ErrorKind::CrossesDevices)), symlink: None };
    publish_by(partial, &place.targets(), &Folders::default(), &system).unwrap();
    place.assert_published(&BOTH);
}

#[test]
fn a_copy_that_fails_is_named_and_leaves_nothing() {
    let place = Place::new();
    fs::create_dir_all(&place.target.blob).unwrap();
    let system = Lacking { rename: Cell::new(Some(io::ErrorKind::CrossesDevices)), symlink: None };
    let error =
        publish_by(place.partial(CONTENT), &place.targets(), &Folders::default(), &system).unwrap_err().to_string();
    assert!(error.contains(&place.target.blob.display().to_string()), "{error}");
    assert!(place.files().is_empty());
    assert_eq!(Partial::peek(&place.root(), &place.key, CONTENT.len() as u64), CONTENT.len() as u64);
}

/// `EPERM`, and `ERROR_PRIVILEGE_NOT_HELD`.
const NOT_PERMITTED: i32 = if cfg!(windows) { 1314 } else { 1 };

fn without_links(error: impl Fn() -> io::Error + 'static) -> Lacking {
    Lacking { rename: Cell::new(None), symlink: Some(Box::new(error)) }
}

#[test]
fn where_links_are_not_permitted_the_file_itself_is_used() {
    let errors: [fn() -> io::Error; 2] =
        [|| io::Error::from_raw_os_error(NOT_PERMITTED), || io::ErrorKind::Unsupported.into()];
    for error in errors {
        let place = Place::new();
        let system = without_links(error);
        publish_by(place.partial(CONTENT), &place.targets(), &Folders::default(), &system).unwrap();
        place.assert_published(&BOTH[1..]);
        // A blob that was there is perhaps another's: it stays.
        fs::rename(place.link(), &place.target.blob).unwrap();
        publish_by(place.partial(CONTENT), &place.targets(), &Folders::default(), &system).unwrap();
        place.assert_published(&BOTH);
        assert!(!fs::symlink_metadata(place.link()).unwrap().is_symlink());
    }
}

/// Two more files of the same content.
fn three(place: &Place) -> Vec<Target> {
    let sibling = |name: &str| Target { link: Some(place.link().with_file_name(name)), ..place.target.clone() };
    vec![place.target.clone(), sibling("second"), sibling("third")]
}

#[test]
fn where_links_are_not_permitted_files_of_one_content_become_copies() {
    const ALL: [&str; 3] = ["model.safetensors", "second", "third"];
    let all = ALL.map(|name| format!("snapshots/1/sub/{name}"));
    let (size, folders) = (CONTENT.len() as u64, Folders::default());
    let system = without_links(|| io::Error::from_raw_os_error(NOT_PERMITTED));
    for small in [false, true] {
        let place = Place::new();
        let (targets, root) = (three(&place), place.root());
        if small {
            publish_bytes_by(CONTENT, &root, &targets, &folders, &system).unwrap();
        } else {
            publish_by(place.partial(CONTENT), &targets, &folders, &system).unwrap();
        }
        assert_eq!(place.files(), all);
        for target in &targets {
            assert_eq!(fs::read(target.path()).unwrap(), CONTENT);
            assert!(!fs::symlink_metadata(target.path()).unwrap().is_symlink());
        }
        // One of them is gone: it is a copy of the others, also of one that is not asked for.
        fs::remove_file(targets[0].path()).unwrap();
        assert!(link_by(&targets, size, None, &folders, &system).unwrap());
        fs::remove_file(targets[0].path()).unwrap();
        let twin = Some(targets[2].path());
        assert!(!link_by(&targets[..1], size, None, &folders, &system).unwrap());
        assert!(link_by(&targets[..1], size, twin, &folders, &system).unwrap());
        assert_eq!(place.files(), all);
    }
}

#[test]
fn a_folder_that_may_not_be_written_to_is_no_lack_of_links() {
    let place = Place::new();
    let system = without_links(|| io::Error::from_raw_os_error(if cfg!(windows) { 5 } else { 13 }));
    let error = publish_by(place.partial(CONTENT), &place.targets(), &Folders::default(), &system).unwrap_err();
    assert!(error.to_string().contains(&place.link().display().to_string()), "{error}");
    assert_eq!(place.files(), BOTH[..1], "the blob is not moved away");
}

#[test]
fn bytes_are_published_as_a_partial_is() {
    let place = Place::new();
    let folders = Folders::default();
    publish_bytes(CONTENT, &place.root(), &three(&place), &folders).unwrap();
    assert_eq!(place.files().len(), 4);
    folders.sync().unwrap();
    assert!(!place.root().exists(), "nothing is made there");
    // What is there stays.
    let before = fs::metadata(&place.target.blob).unwrap().modified().unwrap();
    publish_bytes(&[7; CONTENT.len()], &place.root(), &three(&place), &folders).unwrap();
    assert_eq!(fs::metadata(&place.target.blob).unwrap().modified().unwrap(), before);
    assert_eq!(fs::read(place.link()).unwrap(), CONTENT);
    // In a store of their own.
    let own = [Target { blob: place.root().join("blobs/5a"), link: None }];
    publish_bytes(CONTENT, &place.root(), &own, &folders).unwrap();
    assert_eq!(fs::read(own[0].path()).unwrap(), CONTENT);
    assert_eq!(fs::read_dir(place.root().join("partials")).unwrap().count(), 0);
}

#[test]
fn bytes_get_to_another_file_system_and_a_failure_leaves_none() {
    let place = Place::new();
    let (targets, folders) = (place.targets(), Folders::default());
    let system = Lacking { rename: Cell::new(Some(io::ErrorKind::PermissionDenied)), symlink: None };
    let error = publish_bytes_by(CONTENT, &place.root(), &targets, &folders, &system).unwrap_err().to_string();
    assert!(error.contains(&place.target.blob.display().to_string()), "{error}");
    assert!(place.files().is_empty(), "{:?}", place.files());
    system.rename.set(Some(io::ErrorKind::CrossesDevices));
    publish_bytes_by(CONTENT, &place.root(), &targets, &folders, &system).unwrap();
    assert_eq!((fs::read(place.link()).unwrap().as_slice(), place.files()), (CONTENT, BOTH.map(str::to_owned).into()));
}

#[test]
fn a_failed_move_keeps_the_partial_and_names_the_target() {
    let place = Place::new();
    let system = Lacking { rename: Cell::new(Some(io::ErrorKind::PermissionDenied)), symlink: None };
    let error =
        publish_by(place.partial(CONTENT), &place.targets(), &Folders::default(), &system).unwrap_err().to_string();
    assert!(error.contains(&place.target.blob.display().to_string()), "{error}");
    assert!(place.files().is_empty());
    system.rename.set(None);
    publish_by(place.partial(CONTENT), &place.targets(), &Folders::default(), &system).unwrap();
    place.assert_published(&BOTH);
}

#[test]
fn a_crash_before_the_link_is_made_good_by_the_link_alone() {
    let place = Place::new();
    let system = Lacking { rename: Cell::new(None), symlink: Some(Box::new(|| io::ErrorKind::StorageFull.into())) };
    let error =
        publish_by(place.partial(CONTENT), &place.targets(), &Folders::default(), &system).unwrap_err().to_string();
    assert!(error.contains(&place.link().display().to_string()), "{error}");
    assert!(place.target.has_blob(CONTENT.len() as u64) && !place.target.is_published(CONTENT.len() as u64));
    place.link_all().unwrap();
    assert_eq!(fs::read(place.link()).unwrap(), CONTENT);
    // What the crash left of the partial is no file's beginning.
    assert_eq!(Partial::peek(&place.root(), &place.key, CONTENT.len() as u64), 0);
    publish(place.partial(CONTENT), &place.targets(), &Folders::default()).unwrap();
    place.assert_published(&BOTH);
}

#[test]
fn a_file_where_a_folder_is_expected_and_the_other_way_round_are_named() {
    let place = Place::new();
    let cache = place.folder.path().join("hub/models--a--b");
    fs::create_dir_all(&cache).unwrap();
    fs::write(cache.join("blobs"), "").unwrap();
    let error = publish(place.partial(CONTENT), &place.targets(), &Folders::default()).unwrap_err().to_string();
    assert!(error.contains(&format!("{}:", cache.join("blobs").display())), "{error}");
    fs::remove_file(cache.join("blobs")).unwrap();
    fs::create_dir_all(place.link()).unwrap();
    let error = publish(place.partial(CONTENT), &place.targets(), &Folders::default()).unwrap_err().to_string();
    assert!(error.contains(&place.link().display().to_string()), "{error}");
    assert_eq!(place.files(), ["blobs/5a"]);
}

#[cfg(unix)]
#[test]
fn a_partial_that_was_deleted_or_replaced_meanwhile_is_not_published() {
    for replaced in [false, true] {
        let place = Place::new();
        let partial = place.partial(CONTENT);
        let path = partial.path().to_owned();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        if replaced {
            // Somebody else's, who has not got far.
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, [0; CONTENT.len()]).unwrap();
        }
        let error = publish(partial, &place.targets(), &Folders::default()).unwrap_err().to_string();
        assert!(error.contains("deleted or replaced") && error.contains(&path.display().to_string()), "{error}");
        assert!(place.files().is_empty());
        assert_eq!(path.exists(), replaced);
    }
}

#[cfg(unix)]
#[test]
fn a_link_leads_to_its_blob_out_of_a_folder_that_lies_elsewhere() {
    let place = Place::new();
    let elsewhere = place.folder.path().join("else/where/deep/down");
    fs::create_dir_all(&elsewhere).unwrap();
    let snapshots = place.link().ancestors().nth(3).unwrap();
    fs::create_dir_all(snapshots.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&elsewhere, snapshots).unwrap();
    publish(place.partial(CONTENT), &place.targets(), &Folders::default()).unwrap();
    assert_eq!(fs::read(place.link()).unwrap(), CONTENT);
    assert!(fs::symlink_metadata(elsewhere.join("1/sub/model.safetensors")).unwrap().is_symlink());
}

#[test]
fn what_a_kill_left_behind_a_published_file_is_swept_and_unfinished_work_is_not() {
    let place = Place::new();
    let (root, size) = (place.root(), CONTENT.len() as u64);
    let left = |content: &[u8]| {
        let partial = place.partial(content);
        (partial.path().to_owned(), place.key.partial(&root))
    };
    // Renamed away; then copied away; then not yet whole.
    let (data, folder) = left(CONTENT);
    fs::remove_file(data).unwrap();
    sweep(&root, &place.key, size).unwrap();
    assert!(!folder.exists());
    let (_, folder) = left(CONTENT);
    sweep(&root, &place.key, size).unwrap();
    assert!(!folder.exists());
    let (_, folder) = left(&CONTENT[..5]);
    sweep(&root, &place.key, size).unwrap();
    assert!(folder.join("data").exists());
    // Somebody is at work.
    fs::remove_dir_all(&folder).unwrap();
    let partial = place.partial(CONTENT);
    sweep(&root, &place.key, size).unwrap();
    assert!(partial.path().exists());
}

#[test]
fn a_temporary_file_takes_the_place_of_what_is_there_also_from_another_file_system() {
    for rename in [None, Some(io::ErrorKind::CrossesDevices)] {
        let place = Place::new();
        let blob = &place.target.blob;
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(blob, "broken").unwrap();
        let mut file = temporary(&place.root()).unwrap();
        file.write_all(CONTENT).unwrap();
        let from = file.path().to_owned();
        let system = Lacking { rename: Cell::new(rename), symlink: None };
        publish_temporary_by(file, blob, &Folders::default(), &system).unwrap();
        assert_eq!(
            (fs::read(blob).unwrap().as_slice(), place.files(), from.exists()),
            (CONTENT, vec!["blobs/5a".to_owned()], false)
        );
    }
}
