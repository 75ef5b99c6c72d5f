use super::*;
use crate::store::{HoldKind, Kept};

impl Fixture {
    /// An adapter of the release `version`, pinned at `revision`, as it was asked for by `text` and fetched at second
    /// `now`.
    fn release(&self, text: &str, revision: &str, version: &str, now: u64) -> Manifest {
        let files = [("config.json", "{}"), ("adapter.safetensors", version)];
        let mut made = manifest(text, revision, &files).with_version(version).with_license("mit");
        made.want = Want::Adapter;
        let place = |(file, (path, content)): (&ManifestFile, &(&str, &str))| {
            let blob = self.store.blob(&FileKey::new(&made, file));
            write(&blob, content);
            ((*path).to_owned(), blob)
        };
        let paths = made.files.iter().zip(&files).map(place).collect();
        self.store.record(&made, &paths, &BTreeMap::new(), None, true, at(now)).unwrap();
        made
    }

    /// The versions that are kept of what `text` names, as people name them.
    fn kept(&self, text: &str) -> Vec<String> {
        let title = |kept: Kept| kept.manifest.version.unwrap_or(kept.manifest.revision);
        self.store.kept(&reference(text), Want::Adapter).unwrap().into_iter().map(title).collect()
    }

    fn select(&self, made: &Manifest, hold: Option<HoldKind>) {
        self.store.select(&made.reference, Want::Adapter, made, hold).unwrap();
    }

    /// What was selected of `gh:o/r`, and what holds it.
    fn selected(&self) -> (Vec<String>, Option<HoldKind>) {
        let selection = self.store.selection(&reference("gh:o/r"), Want::Adapter).unwrap();
        (selection.history.iter().map(|selected| selected.title().to_owned()).collect(), selection.hold)
    }

    fn selections(&self) -> usize {
        self.tree().iter().filter(|path| path.starts_with("store/selected/") && path.ends_with(".json")).count()
    }
}

/// Goes back to the version before, as whoever looked at it does.
fn back(store: &Store, reference: &ArtifactRef) -> llm_local_core::Result<Kept> {
    let before = store.version_before(reference, Want::Adapter)?.manifest.revision;
    Ok(store.roll_back(reference, Want::Adapter, &before)?.expect("nobody else selects"))
}

#[test]
fn versions_are_kept_side_by_side_newest_first_and_each_once() {
    let f = Fixture::new();
    assert!(f.kept("gh:o/r").is_empty() && !f.store.root().exists());
    f.release("gh:o/r@v1", "7:1", "v1", 1);
    let latest = f.release("gh:o/r@latest", "8:1", "v2", 2);
    let named = f.release("gh:o/r@v2", "8:1", "v2", 5);
    f.release("gh:o/r@v3", "9:1", "v3", 4);
    // Others that are none of its versions.
    f.release("gh:o/r@v1#part.zip", "7:2", "v1", 9);
    f.release("gh:o/r@v1:sub", "7:3", "v1", 9);
    f.release("gh:o/other@v1", "7:1", "v1", 9);
    f.own("gh:o/r@v1", "7:1", &[("x", "a model")], 9);
    let kept = f.store.kept(&reference("gh:o/r@whatever"), Want::Adapter).unwrap();
    assert_eq!(f.kept("gh:o/r"), ["v3", "v2", "v1"]);
    let (v2, bytes) = (&kept[1], 2 + 2);
    assert_eq!(v2.manifest, named, "as it was resolved, by the ref that names it");
    assert_eq!((v2.created, v2.bytes, v2.whole, v2.pinned), (at(2), bytes, true, false));
    assert!(v2.last_used >= at(5));
    assert_eq!(f.kept("gh:o/r@main:sub"), ["v1"]);
    assert_eq!(f.kept("gh:o/r@latest#part.zip"), ["v1"]);
    assert_eq!(f.store.kept(&reference("gh:o/r"), Want::Model).unwrap().len(), 1);
    f.store.pin(&latest.reference).unwrap();
    fs::remove_file(f.blob("v2")).unwrap();
    let kept = f.store.kept(&reference("gh:o/r"), Want::Adapter).unwrap();
    assert!(kept[1].pinned && !kept[1].whole && kept[0].whole);
}

#[test]
fn a_manifest_is_kept_as_it_was_resolved() {
    let f = Fixture::new();
    let mut old = f.own("hf:a/b", "1", &[("a.gguf", "old"), ("config.json", "{}")], 0);
    old = old.with_license("mit").with_gated(false);
    assert_ne!(f.store.kept(&old.reference, Want::Model).unwrap()[0].manifest, old);
    // Other files of it are wanted now; those that were wanted before are there still.
    let new = f.own("hf:a/b", "1", &[("b.gguf", "new"), ("config.json", "{}")], 1);
    let kept = f.store.kept(&new.reference, Want::Model).unwrap().remove(0);
    assert_eq!((kept.manifest, kept.bytes), (new, 3 + 3 + 2));
    fs::remove_file(f.blob("old")).unwrap();
    assert!(f.store.kept(&old.reference, Want::Model).unwrap()[0].whole);
}

#[test]
fn records_of_version_2_are_kept_versions_too() {
    let f = Fixture::new();
    let made = f.own("hf:a/b@main", "c1", &[("x", "content")], 3);
    let path = f.store.record_path(&f.store.ledger().unwrap().records[0]);
    let text = fs::read_to_string(&path).unwrap().replace("\"version\": 3", "\"version\": 2");
    fs::write(&path, text).unwrap();
    let kept = f.store.kept(&made.reference, Want::Model).unwrap();
    assert_eq!((kept.len(), &kept[0].manifest, kept[0].created), (1, &made, at(3)));
}

#[test]
fn one_version_is_deleted_alone_whichever_way_it_was_asked_for() {
    let f = Fixture::new();
    let first = f.release("gh:o/r@v1", "7:1", "v1", 1);
    f.release("gh:o/r@latest", "8:1", "v2", 2);
    let named = f.release("gh:o/r@v2", "8:1", "v2", 3);
    let delete = |revision: &str| f.store.delete_kept(&reference("gh:o/r"), Want::Adapter, revision);
    let hold = f.store.hold(&named, None).unwrap();
    assert!(delete("v2").unwrap_err().to_string().contains("is loaded or being fetched"));
    drop(hold);
    let deleted = delete("v2").unwrap();
    assert_eq!((deleted.artifacts, deleted.files, deleted.bytes), (2, 1, 2), "what v1 has stays");
    assert_eq!(f.kept("gh:o/r"), ["v1"]);
    assert!(f.store.kept(&first.reference, Want::Adapter).unwrap()[0].whole);
    let error = delete("v2").unwrap_err();
    assert_eq!(error.code(), "not_found");
    assert!(error.to_string().contains("kept here are `v1`"), "{error}");
    assert_eq!(delete("7:1").unwrap().artifacts, 1);
    assert!(delete("v1").unwrap_err().to_string().contains("no version of it is kept here"));
    assert!(f.store.delete_kept(&reference("gh:o/r"), Want::Model, "v1").is_err());
}

#[test]
fn a_ref_with_a_version_names_what_was_asked_for_by_another() {
    let f = Fixture::new();
    f.release("gh:o/r@latest", "8:1", "v2", 2);
    f.release("gh:o/r@v1", "7:1", "v1", 1);
    f.store.pin(&reference("gh:o/r@v2")).unwrap();
    assert!(f.store.list().unwrap().artifacts.iter().all(|a| a.pinned == (a.revision == "8:1")));
    assert_eq!(f.store.delete(&reference("gh:o/r@v2")).unwrap().artifacts, 1);
    assert_eq!(f.kept("gh:o/r"), ["v1"]);
}

#[test]
fn selections_follow_each_other_and_are_bounded() {
    let f = Fixture::new();
    assert_eq!(f.selected(), (vec![], None));
    f.store.release(&reference("gh:o/r"), Want::Adapter).unwrap();
    assert!(!f.store.root().exists());
    let versions: Vec<_> = (0..40).map(|i| (format!("{i}:1"), format!("v{i}"))).collect();
    for (revision, version) in &versions {
        let files = [("x", version.as_str())];
        let made = manifest("gh:o/r@latest", revision, &files).with_version(version);
        f.select(&made, None);
        f.select(&made, None);
    }
    let (history, hold) = f.selected();
    assert_eq!((history.len(), history[0].as_str(), history[31].as_str(), hold), (32, "v8", "v39", None));
    let one = manifest("gh:o/r", "39:1", &[]).with_version("v39");
    f.select(&one, Some(HoldKind::Pinned));
    assert_eq!((f.selected().0.len(), f.selected().1), (32, Some(HoldKind::Pinned)));
    f.store.release(&reference("gh:o/r@v1"), Want::Adapter).unwrap();
    assert_eq!(f.selected().1, None);
    // Of another want or part nothing was selected.
    assert!(f.store.selection(&reference("gh:o/r"), Want::Model).unwrap().history.is_empty());
    assert!(f.store.selection(&reference("gh:o/r#x"), Want::Adapter).unwrap().current().is_none());
    let selection = f.store.selection(&reference("gh:o/r"), Want::Adapter).unwrap();
    assert_eq!(selection.current().unwrap().revision, "39:1");
    assert!(selection.history.is_sorted_by_key(|selected| selected.at));
}

#[test]
fn a_roll_back_leads_to_the_newest_earlier_version_that_is_whole() {
    let f = Fixture::new();
    let roll_back = || back(&f.store, &reference("gh:o/r@latest"));
    let error = roll_back().unwrap_err();
    assert!(error.code() == "not_found" && error.to_string().contains("none was selected"), "{error}");
    assert!(!f.store.root().exists());
    let made: Vec<_> = (1..=4).map(|i| f.release("gh:o/r@latest", &format!("{i}:1"), &format!("v{i}"), i)).collect();
    made.iter().for_each(|made| f.select(made, None));
    fs::remove_file(f.blob("v3")).unwrap();
    let kept = roll_back().unwrap();
    assert_eq!((&kept.manifest, kept.whole), (&made[1], true));
    assert_eq!(f.selected(), (vec!["v1".to_owned(), "v2".to_owned()], Some(HoldKind::RolledBack)));
    assert_eq!(roll_back().unwrap().manifest, made[0]);
    assert_eq!(f.selected().0, ["v1"]);
    let error = roll_back().unwrap_err().to_string();
    assert!(error.contains("`v1` is selected") && error.contains("`v1`, `v2`, `v3`, `v4`"), "{error}");
    assert_eq!(f.selected(), (vec!["v1".to_owned()], Some(HoldKind::RolledBack)));
    // What is selected again after it stands behind it, and is held no more.
    f.select(&made[3], None);
    assert_eq!(f.selected(), (vec!["v1".to_owned(), "v4".to_owned()], None));
    // One that came back stands there twice, and is not its own earlier version.
    f.select(&made[0], None);
    assert_eq!(roll_back().unwrap().manifest, made[3]);
}

#[test]
fn what_is_deleted_is_selected_no_more_and_what_is_held_is_not_deleted() {
    let f = Fixture::new();
    let made: Vec<_> =
        (1..=3).map(|i| f.release(&format!("gh:o/r@v{i}"), &format!("{i}:1"), &format!("v{i}"), i)).collect();
    made.iter().for_each(|made| f.select(made, None));
    f.select(&made[1], None);
    // A record of the same revision by another ref keeps it selected.
    f.release("gh:o/r@latest", "3:1", "v3", 9);
    f.store.delete(&reference("gh:o/r@latest")).unwrap();
    assert_eq!(f.selected().0, ["v1", "v2", "v3", "v2"]);
    f.store.delete(&reference("gh:o/r@v3")).unwrap();
    assert_eq!(f.selected().0, ["v1", "v2"]);
    f.select(&made[1], Some(HoldKind::Pinned));
    let delete = |revision: &str| f.store.delete_kept(&reference("gh:o/r"), Want::Adapter, revision);
    for error in [delete("v2").unwrap_err(), f.store.delete(&reference("gh:o/r@v2")).unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("`v2`") && text.contains("pinned") && text.contains("release it"), "{text}");
    }
    assert_eq!(f.kept("gh:o/r"), ["v2", "v1"]);
    delete("v1").unwrap();
    assert_eq!(f.selected(), (vec!["v2".to_owned()], Some(HoldKind::Pinned)));
    // All go, and with them the selection.
    assert_eq!(f.selections(), 1);
    f.store.delete(&reference("gh:o/r")).unwrap();
    assert_eq!((f.selected(), f.selections()), ((vec![], None), 0));
}

#[test]
fn a_broken_selection_is_named_and_does_no_other_harm() {
    let f = Fixture::new();
    let one = f.release("gh:o/r@v1", "1:1", "v1", 1);
    f.release("gh:o/r@v2", "2:1", "v2", 2);
    f.select(&one, Some(HoldKind::Pinned));
    let path = fs::read_dir(f.store.root().join("selected")).unwrap().next().unwrap().unwrap().path();
    let good = fs::read_to_string(&path).unwrap();
    for (text, part) in [
        (good[..good.len() - 3].to_owned(), "remove the file"),
        ("[]".into(), "remove the file"),
        (good.replace("\"version\": 1", "\"version\": 2"), "update the program"),
    ] {
        fs::write(&path, &text).unwrap();
        let store = &f.store;
        let errors = [
            store.selection(&one.reference, Want::Adapter).unwrap_err(),
            store.select(&one.reference, Want::Adapter, &one, None).unwrap_err(),
            back(store, &one.reference).unwrap_err(),
            store.release(&one.reference, Want::Adapter).unwrap_err(),
            store.delete(&one.reference).unwrap_err(),
        ];
        for error in errors {
            let shown = error.to_string();
            assert!(shown.contains(part) && shown.contains(&path.display().to_string()), "{shown}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(f.kept("gh:o/r").len(), 2);
    }
    // All can go still.
    f.store.delete(&reference("gh:o/r")).unwrap();
    assert!(!path.exists());
}

#[test]
fn eviction_spares_the_version_that_is_held_and_not_the_one_before() {
    let f = Fixture::new();
    let made: Vec<_> =
        (1..=3).map(|i| f.release(&format!("gh:o/r@v{i}"), &format!("{i}:1"), &format!("v{i}"), i)).collect();
    f.select(&made[2], None);
    f.select(&made[0], Some(HoldKind::Pinned));
    // Three of two bytes, and two that all have: v1 was used least of all.
    f.store.evict(6, 0).unwrap();
    assert_eq!(f.kept("gh:o/r"), ["v3", "v1"]);
    f.store.evict(4, 0).unwrap();
    assert_eq!(f.kept("gh:o/r"), ["v1"]);
    assert_eq!(f.store.evict(4, 1).unwrap_err().code(), "insufficient_storage");
    // Where nobody can read what is selected, what it names stays.
    let path = fs::read_dir(f.store.root().join("selected")).unwrap().next().unwrap().unwrap().path();
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, &good[..good.len() - 3]).unwrap();
    assert!(f.store.evict(4, 1).is_err());
    fs::write(&path, good).unwrap();
    f.store.release(&made[0].reference, Want::Adapter).unwrap();
    f.store.evict(4, 1).unwrap();
    assert!(f.kept("gh:o/r").is_empty());
    assert_eq!(f.selected().0, ["v3", "v1"], "it is selected still, and comes again");
}

#[test]
fn what_is_about_to_be_recorded_of_an_archive_is_held() {
    use crate::store::Output;
    let f = Fixture::new();
    let made = manifest("gh:o/r@v1", "7:1", &[("a.zip", "archive")]);
    let steps = vec![llm_local_core::Unpack::Archive { file: "a.zip".into() }];
    let made = made.with_unpack(steps).unwrap();
    let outputs = [("x".to_owned(), Output::Content(6, sha256("output")))].into();
    let result = f.store.make(&made, &outputs, &BTreeMap::new()).unwrap();
    let hold = f.store.hold_made(&result).unwrap();
    write(&f.blob("output"), "output");
    let later = || SystemTime::now() + Duration::from_secs(7200);
    assert_eq!(f.store.clean(Duration::ZERO, later()).unwrap().files, 0);
    assert!(f.store.evict(6, 1).is_err() && f.blob("output").exists());
    f.store.record_made(&made, result, true, at(1)).unwrap();
    drop(hold);
    assert_eq!(f.store.clean(Duration::ZERO, later()).unwrap().bytes, 0);
    // Held by another ref of the same revision, before that is recorded.
    let mut latest = made.clone();
    latest.reference = reference("gh:o/r@latest");
    let hold = f.store.hold(&latest, None).unwrap();
    f.store.delete(&made.reference).unwrap();
    assert!(f.blob("output").exists());
    drop(hold);
    assert_eq!(f.store.clean(Duration::ZERO, later()).unwrap().files, 1);
}

#[test]
fn what_was_selected_since_is_not_overruled() {
    let f = Fixture::new();
    let made: Vec<_> = (1..=3).map(|i| f.release("gh:o/r@latest", &format!("{i}:1"), &format!("v{i}"), i)).collect();
    let seen = || f.store.selection(&reference("gh:o/r"), Want::Adapter).unwrap();
    let select = |made: &Manifest, seen: &crate::store::Selection| {
        f.store.select_if(&made.reference, Want::Adapter, made, None, seen).unwrap()
    };
    let none = seen();
    assert!(select(&made[0], &none));
    let first = seen();
    assert!(!select(&made[1], &none) && select(&made[0], &none), "what it would do is done");
    f.select(&made[1], None);
    assert!(!select(&made[0], &first));
    assert_eq!(f.selected(), (vec!["v1".to_owned(), "v2".to_owned()], None));
    // Neither is a hold of the same version, nor that it was let go.
    let free = seen();
    f.select(&made[1], Some(HoldKind::Pinned));
    assert!(!select(&made[1], &free) && !select(&made[2], &free));
    let pinned = seen();
    f.store.release(&reference("gh:o/r"), Want::Adapter).unwrap();
    assert!(!select(&made[2], &pinned) && select(&made[2], &free));
    assert_eq!(f.selected().0, ["v1", "v2", "v3"]);
}

#[test]
fn a_deletion_that_was_cut_off_leaves_nothing_selected_of_what_goes() {
    let f = Fixture::new();
    let made: Vec<_> =
        (1..=2).map(|i| f.release(&format!("gh:o/r@v{i}"), &format!("{i}:1"), &format!("v{i}"), i)).collect();
    made.iter().for_each(|made| f.select(made, None));
    // A folder that is not empty is no file to remove: it ends there.
    let blob = f.blob("v2");
    fs::remove_file(&blob).unwrap();
    write(&blob.join("x"), "in the way");
    f.store.delete(&reference("gh:o/r@v2")).unwrap_err();
    assert_eq!((f.kept("gh:o/r"), f.selected().0), (vec!["v2".to_owned(), "v1".to_owned()], vec!["v1".to_owned()]));
    fs::remove_dir_all(&blob).unwrap();
    f.store.delete(&reference("gh:o/r@v2")).unwrap();
    assert_eq!((f.kept("gh:o/r"), f.selected().0), (vec!["v1".to_owned()], vec!["v1".to_owned()]));
}

#[test]
fn a_part_is_one_artifact_whether_it_is_named_behind_the_locator_or_the_revision() {
    let f = Fixture::new();
    let behind_revision = f.release("gh:o/r@v1:sub", "7:1", "v1", 1);
    let behind_locator = f.release("gh:o/r:sub@v2", "8:1", "v2", 2);
    f.release("gh:o/r@v1", "7:1", "v1", 3);
    let spellings = ["gh:o/r:sub", "gh:o/r@main:sub", "gh:o/r:sub@main"];
    let selection = |text: &str| f.store.selection(&reference(text), Want::Adapter).unwrap();
    f.select(&behind_revision, None);
    f.select(&behind_locator, None);
    for text in spellings {
        assert_eq!(f.kept(text), ["v2", "v1"], "{text}");
        assert_eq!(selection(text).history.len(), 2, "{text}");
        let remembered = f.store.remembered(&reference(text), Want::Adapter).unwrap();
        assert_eq!(remembered.len(), 2, "{text}");
        let mut other = behind_locator.clone();
        (other.reference, other.files[1].digest) = (reference(text), None);
        assert_eq!(f.store.digests(&other).unwrap()["adapter.safetensors"], sha256("v2"), "{text}");
    }
    assert_eq!((f.kept("gh:o/r"), selection("gh:o/r").history.len()), (vec!["v1".to_owned()], 0));
    // By the other spelling than it was recorded under.
    assert_eq!(back(&f.store, &reference("gh:o/r:sub")).unwrap().manifest, behind_revision);
    let delete = |text: &str| f.store.delete(&reference(text));
    assert!(delete("gh:o/r:sub@v1").unwrap_err().to_string().contains("rolled back to"));
    f.store.release(&reference("gh:o/r:sub@v1"), Want::Adapter).unwrap();
    f.store.pin(&reference("gh:o/r:sub@v1")).unwrap();
    let pinned: Vec<_> = f.store.list().unwrap().artifacts.into_iter().filter(|a| a.pinned).collect();
    assert_eq!((pinned.len(), &pinned[0].reference), (1, &behind_revision.reference));
    assert_eq!(delete("gh:o/r:sub@v1").unwrap().artifacts, 1);
    assert_eq!(f.store.delete_kept(&reference("gh:o/r@main:sub"), Want::Adapter, "v2").unwrap().artifacts, 1);
    assert!(f.kept("gh:o/r:sub").is_empty() && f.kept("gh:o/r") == ["v1"]);
    // What is there is named by whatever spelling.
    f.release("gh:o/r@v3:sub", "9:1", "v3", 4);
    let error = delete("gh:o/r:sub@v9").unwrap_err().to_string();
    assert!(error.contains("`gh:o/r@v3:sub` at 9:1"), "{error}");
    assert_eq!(delete("gh:o/r:sub").unwrap().artifacts, 1);
    assert_eq!(f.kept("gh:o/r"), ["v1"]);
}

#[test]
fn what_a_part_was_is_remembered_for_both_spellings_and_for_no_other_part() {
    let f = Fixture::new();
    f.release("gh:o/r@v1:sub", "7:1", "v1", 1);
    let told = |text: &str, content: &str| {
        let files = [("config.json", "{}"), ("adapter.safetensors", content)];
        let mut made = manifest(text, "7:2", &files).with_version("v1");
        made.want = Want::Adapter;
        f.store.check_trust(&made)
    };
    for text in ["gh:o/r:sub@v1", "gh:o/r@v1:sub"] {
        told(text, "v1").unwrap();
        let error = told(text, "v2").unwrap_err().to_string();
        assert!(error.contains("`gh:o/r@v1:sub`"), "{error}");
    }
    // Its files have the same names, and are others.
    for text in ["gh:o/r@v1", "gh:o/r:other@v1", "gh:o/r@v1:other"] {
        told(text, "v2").unwrap();
    }
    f.store.delete(&reference("gh:o/r:sub@v1")).unwrap();
    told("gh:o/r@v1:sub", "v2").unwrap();
}

#[test]
fn what_was_unpacked_of_a_part_is_found_by_both_spellings_and_by_no_other_part() {
    use crate::store::{Output, made_key};
    let f = Fixture::new();
    let archive = |text: &str| {
        let mut made = manifest(text, "7:1", &[("a.zip", "archive")]);
        made.files[0].digest = None;
        made.with_unpack(vec![llm_local_core::Unpack::Archive { file: "a.zip".into() }]).unwrap()
    };
    let (one, other) = (archive("gh:o/r@v1:sub"), archive("gh:o/r:sub@v1"));
    let outputs = [("x".to_owned(), Output::Content(6, sha256("output")))].into();
    let made = f.store.make(&one, &outputs, &BTreeMap::new()).unwrap();
    write(&f.blob("output"), "output");
    f.store.record_made(&one, made, true, at(1)).unwrap();
    assert!(f.store.made(&one).unwrap().is_some() && f.store.made(&other).unwrap().is_some());
    assert_eq!(made_key(&one).unwrap(), made_key(&other).unwrap());
    for text in ["gh:o/r@v1", "gh:o/r@v1:other", "gh:o/r:other@v1"] {
        assert!(f.store.made(&archive(text)).unwrap().is_none(), "{text}");
        assert_ne!(made_key(&one).unwrap(), made_key(&archive(text)).unwrap(), "{text}");
    }
}

#[test]
fn a_pinned_revision_with_a_colon_is_no_part_of_what_was_asked_for_by_it() {
    let f = Fixture::new();
    let made = f.release("gh:o/r@7:1", "7:1", "v1", 1);
    assert_eq!((f.kept("gh:o/r"), f.kept("gh:o/r@7:1")), (vec!["v1".to_owned()], vec!["v1".to_owned()]));
    f.store.select(&reference("gh:o/r"), Want::Adapter, &made, None).unwrap();
    let files = [("config.json", "{}"), ("adapter.safetensors", "v2")];
    let mut other = manifest("gh:o/r@v1", "8:1", &files).with_version("v1");
    other.want = Want::Adapter;
    let error = f.store.check_trust(&other).unwrap_err().to_string();
    assert!(error.contains("`gh:o/r@v1`"), "{error}");
    assert_eq!(f.store.delete(&reference("gh:o/r@v1")).unwrap().artifacts, 1);
    assert_eq!(f.selections(), 0);
    f.store.check_trust(&other).unwrap();
}
