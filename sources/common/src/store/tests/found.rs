//! Files that were fetched beside files that another tool brought.

use super::{hub::commit, *};
use crate::store::Came;

impl Fixture {
    /// Publishes an artifact into the cache and records it, with those files as come by this call that `came` has.
    fn mixed(&self, revision: &str, files: &[(&str, &str)], came: &[(&str, Came)], now: u64) -> Manifest {
        let made = manifest("hf:org/name", revision, files);
        let contents: Vec<_> = files.iter().map(|(_, content)| *content).collect();
        let placement = self.publish(&made, &contents, Some("main"));
        self.recorded(&made, came, now);
        assert_eq!(placement.files.len(), files.len());
        made
    }

    fn recorded(&self, made: &Manifest, came: &[(&str, Came)], now: u64) {
        let placement = self.placement(made, Some("main"));
        let paths = made.files.iter().zip(&placement.files).map(|(f, p)| (f.path.clone(), p.link.clone())).collect();
        let came = came.iter().map(|(path, came)| ((*path).to_owned(), *came)).collect();
        self.store.record_files(made, &paths, &BTreeMap::new(), Some(&placement), &came, at(now)).unwrap();
    }

    /// The bytes of all that is evicted if nothing may stay.
    fn evict_all(&self) -> u64 {
        self.store.evict(0, 0).unwrap().bytes
    }
}

const FILES: [(&str, &str); 2] = [("config.json", "{}"), ("model", "one")];

#[test]
fn of_a_snapshot_that_was_found_only_what_was_fetched_is_evicted() {
    let f = Fixture::new();
    let a = commit('a');
    f.mixed(&a, &FILES, &[("model", Came::Fetched)], 0);
    let size = f.store.size().unwrap();
    assert_eq!((size.fetched, size.found), (3, 2));
    let artifact = f.store.list().unwrap().artifacts.remove(0);
    assert_eq!((artifact.fetched, &artifact.found[..]), (true, &["config.json".to_owned()][..]));
    assert_eq!(f.evict_all(), 3);
    let config = format!("blobs/{}", f.hub_blob("{}").file_name().unwrap().display());
    assert_eq!(f.cache(), [config, "refs/main".into(), format!("snapshots/{a}/config.json")]);
    assert!(f.listed().is_empty() && f.dangling().is_empty());
}

#[test]
fn a_user_deletes_what_was_found_with_what_was_fetched() {
    let f = Fixture::new();
    f.mixed(&commit('a'), &FILES, &[("model", Came::Fetched)], 0);
    assert_eq!(f.store.delete(&reference("hf:org/name")).unwrap().bytes, 5);
    assert!(!f.repo().exists());
}

#[test]
fn using_it_again_changes_nothing_of_who_brought_it() {
    let f = Fixture::new();
    let made = f.mixed(&commit('a'), &FILES, &[("model", Came::Fetched)], 0);
    f.recorded(&made, &[], 1);
    assert_eq!(f.store.list().unwrap().artifacts[0].found, ["config.json"]);
    // A later repair of the other one.
    f.recorded(&made, &[("config.json", Came::Fetched)], 2);
    assert_eq!(f.store.list().unwrap().artifacts[0].found, [""; 0]);
    assert_eq!(f.evict_all(), 5);
    assert!(!f.repo().exists(), "{:?}", f.cache());
}

#[test]
fn a_link_to_what_was_fetched_goes_with_it_and_one_to_what_was_found_stays() {
    let f = Fixture::new();
    let (a, b) = (commit('a'), commit('b'));
    f.mixed(&a, &FILES, &[("config.json", Came::Fetched)], 0);
    f.mixed(&b, &FILES, &[("config.json", Came::Linked), ("model", Came::Linked)], 1);
    assert_eq!(f.store.list().unwrap().artifacts[1].found, ["model"]);
    assert_eq!(f.evict_all(), 2);
    let model = format!("blobs/{}", f.hub_blob("one").file_name().unwrap().display());
    assert_eq!(f.cache(), [model, "refs/main".into(), format!("snapshots/{a}/model"), format!("snapshots/{b}/model")]);
}

#[test]
fn what_another_tool_brought_in_place_of_what_we_did_is_not_ours() {
    let f = Fixture::new();
    let made = f.mixed(&commit('a'), &FILES, &[("config.json", Came::Fetched), ("model", Came::Fetched)], 0);
    // Deleted by hand, and fetched again by another tool.
    fs::remove_file(f.hub_blob("one")).unwrap();
    write(&f.hub_blob("one"), "one");
    fs::File::options().write(true).open(f.hub_blob("one")).unwrap().set_modified(at(7)).unwrap();
    assert_eq!(f.store.size().unwrap().found, 3);
    f.recorded(&made, &[], 1);
    assert_eq!(f.evict_all(), 2);
    assert!(f.hub_blob("one").exists() && f.dangling().is_empty());
}

#[test]
fn a_record_of_version_1_says_it_of_all_its_files_and_is_written_anew() {
    for fetched in [true, false] {
        let f = Fixture::new();
        let made = f.mixed(&commit('a'), &FILES, &[], 0);
        let record = f.store.ledger().unwrap().records.remove(0);
        let path = f.store.record_path(&record);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"version\": 3") && !text.contains("fetched"), "{text}");
        let old = text.replace("\"version\": 3", &format!("\"version\": 1, \"fetched\": {fetched}"));
        fs::write(&path, old).unwrap();
        assert_eq!(f.store.list().unwrap().artifacts[0].fetched, fetched);
        f.store.touch(&made.reference, &made.revision, at(1)).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("\"version\": 3"));
        assert_eq!(f.store.list().unwrap().artifacts[0].fetched, fetched);
        assert_eq!(f.evict_all(), if fetched { 5 } else { 0 });
        assert_eq!(f.repo().exists(), !fetched);
    }
}
