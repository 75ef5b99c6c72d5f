//! What came into the cache of another tool for an artifact that never became whole.

use std::time::{Duration, SystemTime};

use llm_local_core::{ManifestFile, PlacedFile, Placement};
use llm_local_source_common::store::Store;
use llm_local_testkit::hub::{Fault, Host};

use super::support::*;

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn a_file_that_came_alone_is_noted_and_can_be_cleaned_away() {
    let mut setup = Setup::new();
    let cache = tempfile::tempdir().unwrap();
    let root = cache.path().join("models--org--tiny");
    let place = |file: &ManifestFile| {
        let name = file.digest.unwrap().to_string().replace(':', "-");
        PlacedFile::new(root.join("blobs").join(name), root.join("snapshots/1").join(&file.path))
    };
    let files: Vec<_> = setup.files.iter().map(place).collect();
    let config = files[0].clone();
    setup.source.placement = Some(Placement::new(&root, root.join("snapshots"), files));
    setup.hub.fault(Fault::status(404).path(MODEL).on(Host::Cdn));
    setup.fetch().unwrap_err();
    assert!(config.link.exists() && config.blob.exists());
    let store = Store::new(setup.root.path());
    assert!(store.list().unwrap().artifacts.is_empty());
    let cleaned = store.clean(DAY, SystemTime::now() + 2 * DAY).unwrap();
    assert!(cleaned.files >= 1, "{cleaned:?}");
    assert!(!config.link.exists() && !config.blob.exists(), "what came is told from what another tool brought");
    // What becomes whole is recorded, and has no note.
    setup.hub.clear_faults();
    setup.fetch().unwrap();
    assert_eq!(store.list().unwrap().artifacts.len(), 1);
    assert!(!setup.root.path().join("unfinished").read_dir().is_ok_and(|mut notes| notes.next().is_some()));
}
