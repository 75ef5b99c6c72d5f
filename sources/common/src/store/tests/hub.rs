//! A cache that other tools use too.

use std::os::unix::fs::symlink;

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::store::Outcome;

/// The commit of this letter.
pub(super) fn commit(letter: char) -> String {
    letter.to_string().repeat(40)
}

impl Fixture {
    /// Publishes an artifact into the cache, without a record.
    pub(super) fn publish(&self, made: &Manifest, contents: &[&str], branch: Option<&str>) -> Placement {
        let placement = self.placement(made, branch);
        for (placed, content) in placement.files.iter().zip(contents) {
            if !placed.blob.exists() {
                write(&placed.blob, content);
            }
            fs::create_dir_all(placed.link.parent().unwrap()).unwrap();
            let up = "../".repeat(placed.link.strip_prefix(self.repo()).unwrap().components().count() - 1);
            let _ = fs::remove_file(&placed.link);
            symlink(format!("{up}blobs/{}", placed.blob.file_name().unwrap().to_str().unwrap()), &placed.link).unwrap();
        }
        for (path, text) in &placement.refs {
            write(path, text);
        }
        placement
    }

    /// Publishes and records.
    pub(super) fn hub(
        &self,
        text: &str,
        revision: &str,
        files: &[(&str, &str)],
        branch: Option<&str>,
        now: u64,
    ) -> Manifest {
        let made = manifest(text, revision, files);
        let contents: Vec<_> = files.iter().map(|(_, content)| *content).collect();
        let placement = self.publish(&made, &contents, branch);
        let paths = made.files.iter().zip(&placement.files).map(|(f, p)| (f.path.clone(), p.link.clone())).collect();
        self.store.record(&made, &paths, &BTreeMap::new(), Some(&placement), true, at(now)).unwrap();
        made
    }

    /// What is in the cache, as paths below the repository's folder.
    pub(super) fn cache(&self) -> Vec<String> {
        let tree = self.tree().into_iter();
        tree.filter_map(|path| path.strip_prefix("hub/models--org--name/").map(str::to_owned)).collect()
    }

    pub(super) fn hub_blob(&self, content: &str) -> PathBuf {
        self.repo().join("blobs").join(sha256(content).to_string().replace("sha256:", ""))
    }

    pub(super) fn dangling(&self) -> Vec<PathBuf> {
        let mut files = crate::store::tree::files(&self.repo()).unwrap();
        files.retain(|path| !path.exists());
        files
    }
}

#[test]
fn of_two_revisions_that_share_content_one_goes_and_then_the_other_and_the_folder() {
    let f = Fixture::new();
    let (a, b) = (commit('a'), commit('b'));
    f.hub("hf:org/name", &a, &[("config.json", "{}"), ("sub/model", "one")], None, 0);
    f.hub("hf:org/name", &b, &[("config.json", "{}"), ("sub/model", "two")], Some("main"), 1);
    // What other tools keep of both.
    for commit in [&a, &b] {
        write(&f.repo().join("trees").join(format!("{commit}.json")), "{}");
        write(&f.repo().join(".no_exist").join(commit).join("sub/adapter_config.json"), "");
    }
    write(&f.repo().join("refs/refs/pr/1"), &a);
    let deleted = f.store.delete(&reference(&format!("hf:org/name@{a}"))).unwrap();
    assert_eq!((deleted.artifacts, deleted.files, deleted.bytes), (1, 1, 3));
    let mut left = vec![
        format!(".no_exist/{b}/sub/adapter_config.json"),
        format!("blobs/{}", f.hub_blob("{}").file_name().unwrap().display()),
        format!("blobs/{}", f.hub_blob("two").file_name().unwrap().display()),
        "refs/main".into(),
        format!("snapshots/{b}/config.json"),
        format!("snapshots/{b}/sub/model"),
        format!("trees/{b}.json"),
    ];
    left.sort();
    assert_eq!(f.cache(), left);
    assert_eq!(f.listed(), [("hf:org/name".into(), b, true)]);
    // The folder that all repositories share is not ours to remove.
    write(&f.folder.path().join("hub/CACHEDIR.TAG"), "");
    assert_eq!(f.store.delete(&reference("hf:org/name")).unwrap().bytes, 5);
    assert_eq!(f.cache(), [""; 0]);
    assert!(!f.repo().exists() && f.repo().parent().unwrap().exists());
}

#[test]
fn content_that_a_link_of_another_tool_leads_to_stays() {
    let f = Fixture::new();
    let (a, b) = (commit('a'), commit('b'));
    f.hub("hf:org/name", &a, &[("config.json", "{}"), ("model", "one")], Some("main"), 0);
    f.publish(&manifest("hf:org/name", &b, &[("config.json", "{}")]), &["{}"], Some("dev"));
    assert_eq!(f.store.evict(5, 2).unwrap().bytes, 3, "the rest frees nothing");
    assert!(f.listed().is_empty() && f.dangling().is_empty());
    let shared = format!("blobs/{}", f.hub_blob("{}").file_name().unwrap().display());
    assert_eq!(f.cache(), [shared, "refs/dev".into(), format!("snapshots/{b}/config.json")]);
    f.hub("hf:org/name", &b, &[("config.json", "{}")], None, 0);
    // Another tool's own link in the very revision keeps it, its ref and the content.
    f.publish(&manifest("hf:org/name", &b, &[("README.md", "{}")]), &["{}"], None);
    assert_eq!(f.store.delete(&reference("hf:org/name")).unwrap().bytes, 0);
    assert_eq!(f.cache()[1..], ["refs/dev".to_owned(), format!("snapshots/{b}/README.md")]);
    assert!(f.dangling().is_empty());
}

#[test]
fn links_that_another_record_needs_stay_with_what_names_them() {
    let f = Fixture::new();
    let a = commit('a');
    f.hub("hf:org/name", &a, &[("config.json", "{}"), ("model", "one")], Some("main"), 0);
    f.hub(&format!("hf:org/name@{a}#part"), &a, &[("config.json", "{}")], None, 0);
    assert_eq!(f.store.delete(&reference("hf:org/name")).unwrap().bytes, 3);
    assert_eq!(f.cache()[1..], ["refs/main".to_owned(), format!("snapshots/{a}/config.json")]);
    assert_eq!(f.listed().len(), 1);
    f.store.delete(&reference("hf:org/name#part")).unwrap();
    assert!(!f.repo().exists(), "{:?}", f.cache());
}

#[test]
fn a_ref_that_moved_on_stays() {
    let f = Fixture::new();
    let (a, b) = (commit('a'), commit('b'));
    f.hub("hf:org/name", &a, &[("model", "one")], Some("main"), 0);
    f.publish(&manifest("hf:org/name", &b, &[("model", "two")]), &["two"], Some("main"));
    f.store.delete(&reference("hf:org/name")).unwrap();
    let two = format!("blobs/{}", f.hub_blob("two").file_name().unwrap().display());
    assert_eq!(f.cache(), [two, "refs/main".into(), format!("snapshots/{b}/model")]);
}

#[test]
fn what_a_source_noted_of_a_revision_goes_with_it_and_all_of_it_with_the_last() {
    let f = Fixture::new();
    let [a, b, seen, coming] = ['a', 'b', 'c', 'd'].map(commit);
    f.hub(&format!("hf:org/name@{a}"), &a, &[("model", "one")], None, 0);
    f.hub("hf:org/name", &b, &[("model", "two"), ("sub/config.json", "{}")], Some("main"), 0);
    f.hub(&format!("hf:org/name@{b}#part"), &b, &[("sub/config.json", "{}")], None, 0);
    let notes = f.repo().join(crate::disk::SOURCE_NOTES);
    // Of one more that was looked at and never fetched, and what a crash left.
    for commit in [&a, &b, &seen] {
        write(&notes.join(format!("{commit}.json")), "{\"files\": {}}");
        write(&notes.join(commit).join("sub/model.safetensors.index.json"), "{\"weight_map\": {}}");
    }
    write(&notes.join(&a).join(".llm-local-abc.tmp"), "half");
    let noted =
        |commit: &str| f.cache().iter().filter(|path| path.starts_with(".llm-local/") && path.contains(commit)).count();
    f.store.delete(&reference("hf:org/name").with_revision(&a).unwrap()).unwrap();
    assert_eq!((noted(&a), noted(&b), noted(&seen)), (0, 2, 2), "{:?}", f.cache());
    f.store.delete(&reference("hf:org/name")).unwrap();
    assert_eq!((noted(&b), noted(&seen)), (2, 2), "a part of it is there still");
    // Somebody is about to fetch another one.
    write(&notes.join(format!("{coming}.json")), "{}");
    fs::create_dir_all(f.repo().join("snapshots").join(&coming)).unwrap();
    f.store.delete(&reference("hf:org/name#part")).unwrap();
    assert_eq!(f.cache(), [format!(".llm-local/{coming}.json"), format!("snapshots/{coming}/")]);
    fs::remove_dir(f.repo().join("snapshots").join(&coming)).unwrap();
    f.hub("hf:org/name", &b, &[("model", "two")], Some("main"), 0);
    f.store.delete(&reference("hf:org/name")).unwrap();
    assert!(!f.repo().exists(), "{:?}", f.cache());
}

#[test]
fn the_folder_of_links_stays_while_anything_is_beside_it() {
    let f = Fixture::new();
    f.hub("hf:org/name", &commit('a'), &[("model", "one")], Some("main"), 0);
    write(&f.repo().join(".no_exist").join(commit('c')).join("x"), "");
    f.store.delete(&reference("hf:org/name")).unwrap();
    assert_eq!(f.cache(), [format!(".no_exist/{}/x", commit('c')), "snapshots/".into()]);
}

#[test]
fn a_file_in_place_of_a_link_goes_too() {
    let f = Fixture::new();
    let a = commit('a');
    f.hub("hf:org/name", &a, &[("model", "one"), ("config.json", "{}")], Some("main"), 0);
    // A copy, and a file that was moved.
    for (path, content) in [("model", "one"), ("config.json", "{}")] {
        let link = f.repo().join("snapshots").join(&a).join(path);
        fs::remove_file(&link).unwrap();
        write(&link, content);
    }
    fs::remove_file(f.hub_blob("{}")).unwrap();
    let size = f.store.size().unwrap();
    // What was written anew was not by us.
    assert_eq!((size.fetched, size.found), (3 + 3, 2));
    assert_eq!(f.store.delete(&reference("hf:org/name")).unwrap().bytes, 3 + 3 + 2);
    assert!(!f.repo().exists());
}

#[test]
fn a_deletion_that_was_cut_off_goes_on() {
    let f = Fixture::new();
    let a = commit('a');
    f.hub("hf:org/name", &a, &[("model", "one"), ("config.json", "{}")], Some("main"), 0);
    fs::remove_file(f.repo().join("refs/main")).unwrap();
    fs::remove_dir_all(f.repo().join("snapshots").join(&a)).unwrap();
    assert_eq!(f.store.delete(&reference("hf:org/name")).unwrap().bytes, 5);
    assert!(!f.repo().exists(), "{:?}", f.cache());
}

#[test]
fn content_in_a_place_that_repositories_share_loses_its_link_and_stays() {
    let f = Fixture::new();
    f.hub("hf:org/name", &commit('a'), &[("model", "one")], Some("main"), 0);
    let shared = f.folder.path().join("hub/blobs/00/xet");
    write(&shared, "one");
    fs::remove_file(f.hub_blob("one")).unwrap();
    symlink("../../blobs/00/xet", f.hub_blob("one")).unwrap();
    assert_eq!(f.listed(), [("hf:org/name".into(), commit('a'), true)]);
    assert_eq!(f.store.delete(&reference("hf:org/name")).unwrap().bytes, 0);
    assert!(shared.exists() && !f.repo().exists());
}

#[test]
fn a_link_that_leads_a_deletion_out_of_the_cache_is_refused_before_anything_goes() {
    let f = Fixture::new();
    let a = commit('a');
    f.hub("hf:org/name", &a, &[("model", "one")], Some("main"), 0);
    let (snapshot, outside) = (f.repo().join("snapshots").join(&a), f.folder.path().join("outside"));
    fs::rename(&snapshot, &outside).unwrap();
    symlink(&outside, &snapshot).unwrap();
    let error = f.store.delete(&reference("hf:org/name")).unwrap_err();
    assert!(error.to_string().contains("outside"), "{error}");
    assert!(f.repo().join("refs/main").exists() && f.hub_blob("one").exists() && f.listed().len() == 1);
    assert!(fs::symlink_metadata(outside.join("model")).is_ok());
}

#[test]
fn folders_that_somebody_is_about_to_write_into_stay() {
    let f = Fixture::new();
    f.hub("hf:org/name", &commit('a'), &[("model", "one")], Some("main"), 0);
    let coming = manifest("hf:org/name", &commit('b'), &[("model", "two")]);
    fs::create_dir_all(f.repo().join("snapshots").join(commit('b'))).unwrap();
    let _hold = f.store.hold(&coming, Some(&f.placement(&coming, None))).unwrap();
    f.store.delete(&reference("hf:org/name")).unwrap();
    assert_eq!(f.cache(), ["blobs/".to_owned(), format!("snapshots/{}/", commit('b'))]);
}

#[test]
fn a_cache_behind_a_link_is_the_same_cache() {
    let f = Fixture::new();
    let elsewhere = f.folder.path().join("disk");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, f.folder.path().join("hub")).unwrap();
    f.hub("hf:org/name", &commit('a'), &[("model", "one"), ("x", "shared")], Some("main"), 0);
    f.hub("hf:org/name", &commit('b'), &[("x", "shared")], None, 0);
    let coming = manifest("hf:org/name", &commit('c'), &[("deep/model", "two")]);
    let hold = f.store.hold(&coming, Some(&f.placement(&coming, None))).unwrap();
    assert_eq!(f.store.delete(&reference(&format!("hf:org/name@{}", commit('a')))).unwrap().bytes, 3);
    assert_eq!(f.store.delete(&reference("hf:org/name")).unwrap().bytes, 6);
    // What is coming will be put here.
    assert!(f.repo().join("blobs").is_dir() && f.repo().join("snapshots").is_dir());
    drop(hold);
    f.hub("hf:org/name", &commit('c'), &[("deep/model", "two")], None, 0);
    f.store.delete(&reference("hf:org/name")).unwrap();
    assert!(!f.repo().exists() && elsewhere.exists());
}

#[test]
fn damaged_content_goes_with_every_link_to_it() {
    let f = Fixture::new();
    let (a, b) = (commit('a'), commit('b'));
    f.hub("hf:org/name", &a, &[("model", "one"), ("config.json", "{}")], Some("main"), 0);
    f.publish(&manifest("hf:org/name", &b, &[("other", "one")]), &["one"], None);
    fs::write(f.hub_blob("one"), "eno").unwrap();
    fs::remove_file(f.hub_blob("{}")).unwrap();
    let found = f.store.verify(None, &CancellationToken::new()).unwrap();
    assert_eq!(found[1].outcome, Outcome::Missing);
    let removed = f.store.remove_damaged(&found).unwrap();
    assert_eq!((removed.files, removed.bytes), (1, 3));
    assert!(f.dangling().is_empty(), "{:?}", f.cache());
    assert!(!f.hub_blob("one").exists());
    assert_eq!(f.store.list().unwrap().artifacts[0].damaged, ["model", "config.json"]);
}

const CONTENTS: [&str; 4] = ["w", "xx", "yyy", "zzzz"];

/// An artifact: its commit, its fragment, whether it is recorded, and the contents of its files.
type Published = (usize, usize, bool, Vec<usize>);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_goes_leaves_no_dangling_link_and_all_others_whole(
        published in proptest::collection::vec(
            (0..3_usize, 0..2_usize, any::<bool>(), proptest::collection::vec(0..4_usize, 1..4)), 1..6),
        order in proptest::collection::vec((0..3_usize, 0..2_usize), 6),
        room in proptest::option::of(0..20_u64),
    ) {
        let f = Fixture::new();
        let name = |fragment: usize| if fragment == 0 { "hf:org/name".to_owned() } else { "hf:org/name#part".to_owned() };
        let mut foreign = Vec::new();
        for (commit_number, fragment, is_ours, contents) in &published as &[Published] {
            let revision = commit(['a', 'b', 'c'][*commit_number]);
            // A path always has the same content in one commit.
            let mut contents = contents.clone();
            contents.sort();
            contents.dedup();
            let paths: Vec<_> = contents.iter().map(|c| format!("{}{c}", if *is_ours { "ours" } else { "theirs" })).collect();
            let files: Vec<_> = paths.iter().zip(&contents).map(|(p, c)| (p.as_str(), CONTENTS[*c])).collect();
            if *is_ours {
                f.hub(&name(*fragment), &revision, &files, Some("main"), 0);
            } else {
                let made = manifest("hf:org/name", &revision, &files);
                let texts: Vec<_> = files.iter().map(|(_, text)| *text).collect();
                foreign.push((f.publish(&made, &texts, None), texts.iter().map(|t| t.to_string()).collect::<Vec<_>>()));
            }
        }
        if let Some(room) = room {
            let _ = f.store.evict(room, 0);
            prop_assert!(f.dangling().is_empty());
        }
        for (commit_number, fragment) in order {
            let which = reference(&name(fragment)).with_revision(commit(['a', 'b', 'c'][commit_number])).unwrap();
            match f.store.delete(&which) {
                Ok(_) => {}
                Err(e) => prop_assert_eq!(e.code(), "not_found"),
            }
            prop_assert!(f.dangling().is_empty());
            prop_assert!(f.listed().iter().all(|(_, _, is_whole)| *is_whole), "{:?}", f.listed());
            for (placement, texts) in &foreign {
                for (placed, text) in placement.files.iter().zip(texts) {
                    prop_assert_eq!(&fs::read_to_string(&placed.link).unwrap(), text);
                }
            }
        }
        for name in [name(0), name(1)] {
            let _ = f.store.delete(&reference(&name));
        }
        prop_assert!(f.listed().is_empty());
        let theirs: u64 = CONTENTS.iter().filter(|c| foreign.iter().any(|(_, t)| t.iter().any(|t| t == *c))).map(|c| c.len() as u64).sum();
        let left: u64 = crate::store::tree::files(&f.repo().join("blobs")).unwrap().iter().map(|p| fs::metadata(p).unwrap().len()).sum();
        prop_assert_eq!(left, theirs, "only what other tools use is left: {:?}", f.cache());
        prop_assert_eq!(f.repo().exists(), !foreign.is_empty());
    }
}
