//! What is here already: it neither comes again nor needs room again.

use std::{fs, path::PathBuf};

use llm_local_core::{Error, ManifestFile, PlacedFile, Placement, ProgressEvent};
use llm_local_source_common::{store::Store, transfer::Transfer};
use llm_local_testkit::hub::{Fault, Host};

use super::support::*;

impl Setup {
    fn missing(&self) -> u64 {
        let missing = pollster::block_on(self.transfer().unpublished_bytes(&[self.job()], &self.cx())).unwrap();
        assert!(self.hub.requests().is_empty(), "nobody is asked");
        missing
    }

    /// How much the first event says is here.
    fn first(&self) -> u64 {
        let events = self.events.lock().unwrap();
        let first = events.iter().find_map(|event| match event {
            ProgressEvent::Download(progress) => Some(progress.completed_bytes),
            _ => None,
        });
        first.unwrap()
    }

    /// The content of each file lies in a folder and has its own link.
    fn place(&mut self) -> PathBuf {
        let root = self.root.path().join("cache");
        let place = |f: &ManifestFile| {
            let name = f.digest.unwrap().to_string().replace(':', "-");
            PlacedFile::new(root.join("blobs").join(name), root.join("snapshots/1").join(&f.path))
        };
        let files = self.files.iter().map(place).collect();
        self.source.placement = Some(Placement::new(&root, root.join("snapshots"), files));
        root
    }
}

#[test]
fn nothing_is_missing_of_a_file_that_lacks_its_link_alone() {
    let mut setup = Setup::new();
    setup.place();
    assert_eq!(setup.missing(), SIZE + 8);
    assert!(!setup.root.path().join("cache").exists() && !setup.root.path().join("locks").exists());
    let files = setup.fetch().unwrap();
    assert_eq!(setup.first(), 0);
    setup.hub.clear();
    assert_eq!(setup.missing(), 0);
    fs::remove_file(&files[MODEL]).unwrap();
    assert_eq!(setup.missing(), 0);
    setup.events.lock().unwrap().clear();
    assert_eq!(setup.fetch().unwrap(), files);
    assert_eq!(setup.first(), SIZE + 8);
    assert!(setup.hub.requests().is_empty());
}

#[test]
fn content_that_several_files_and_artifacts_have_is_missing_once() {
    let mut setup = Setup::new();
    setup.files.push(ManifestFile::new("copy.bin", SIZE).with_digest(sha256(&setup.contents[MODEL])));
    assert_eq!(setup.missing(), SIZE + 8);
    let jobs = [setup.job(), setup.job()];
    let missing = pollster::block_on(setup.transfer().unpublished_bytes(&jobs, &setup.cx()));
    assert_eq!(missing.unwrap(), SIZE + 8);
}

#[test]
fn what_came_of_a_file_is_here_but_not_yet_published() {
    let setup = Setup::new();
    setup.hub.fault(Fault::status(404).path(MODEL).on(Host::Cdn).skip(2));
    setup.fetch().unwrap_err();
    setup.hub.clear();
    setup.hub.clear_faults();
    // A quota counts what is published: all of it will be.
    assert_eq!(setup.missing(), SIZE);
    setup.events.lock().unwrap().clear();
    setup.fetch().unwrap();
    assert_eq!(setup.first(), 8 + 2 * SEGMENT);
}

/// The system itself says that the disk is full: what is written down of the partial goes to a device that always is. But
/// where it lies there is room for what is missing, so that the file which could not be written is what is told.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_gets_full_midway_is_an_error_that_names_the_file_and_what_came_stays() {
    let setup = Setup::new().only(MODEL);
    setup.hub.fault(Fault::cut(100_000).path(MODEL).on(Host::Cdn).skip(2).once());
    setup.hub.fault(Fault::status(404).path(MODEL).skip(6));
    setup.fetch().unwrap_err();
    setup.hub.clear_faults();
    setup.hub.clear();
    let kept = 2 * SEGMENT + 100_000;
    // Now the file is another one, so that all of it is to be forgotten.
    let partial = fs::read_dir(setup.root.path().join("partials")).unwrap().next().unwrap().unwrap().path();
    std::os::unix::fs::symlink("/dev/full", partial.join("state.new")).unwrap();
    setup.hub.fault(Fault::etag("other").path(MODEL));
    let error = setup.fetch().unwrap_err();
    match error {
        Error::Io { path, source, .. } => {
            assert_eq!((path, source.kind()), (partial.join("state.new"), std::io::ErrorKind::StorageFull));
        }
        // Where the file system of the device has no room itself.
        Error::InsufficientStorage { required, available, .. } => {
            assert!(required == SIZE - kept && available < required, "{required} of {available}");
        }
        error => panic!("{error:?}"),
    }
    fs::remove_file(partial.join("state.new")).unwrap();
    setup.hub.clear();
    setup.hub.clear_faults();
    setup.fetch().unwrap();
    assert_eq!(setup.served(), SIZE - kept);
}

#[test]
fn what_is_here_can_be_used_from_a_store_that_cannot_be_written_to() {
    let mut setup = Setup::new();
    setup.place();
    let files = setup.fetch().unwrap();
    setup.hub.clear();
    // No folder can be made below a file, whoever tries.
    let file = setup.root.path().join("file");
    fs::write(&file, "").unwrap();
    let transfer =
        Transfer::new(setup.transfer().network().clone(), Store::new(file.join("store")), Default::default());
    let fetch = || pollster::block_on(transfer.fetch(vec![setup.job()], &setup.cx()));
    assert_eq!(fetch().unwrap(), std::slice::from_ref(&files));
    fs::remove_file(&files[MODEL]).unwrap();
    let error = fetch().unwrap_err();
    assert!(error.code() == "io" && error.to_string().contains(&file.display().to_string()), "{error}");
    assert!(setup.hub.requests().is_empty());
}

/// Of a file that no disk has room for, all bytes but the link are here, in a blob that has no block.
#[cfg(target_os = "linux")]
#[test]
fn no_room_is_needed_for_content_that_is_here() {
    const HUGE: u64 = 8 << 40;
    let mut setup = Setup::new().only(MODEL);
    setup.files = vec![ManifestFile::new(MODEL, HUGE).with_digest(sha256(&setup.contents[MODEL]))];
    setup.place();
    let fetch = || pollster::block_on(setup.transfer().fetch(vec![setup.job()], &setup.cx()));
    assert_eq!(fetch().unwrap_err().code(), "insufficient_storage");
    let place = &setup.source.placement.as_ref().unwrap().files[0];
    fs::create_dir_all(place.blob.parent().unwrap()).unwrap();
    fs::File::create(&place.blob).unwrap().set_len(HUGE).unwrap();
    assert_eq!(fetch().unwrap()[0][MODEL], place.link);
    assert!(setup.hub.requests().is_empty());
}
