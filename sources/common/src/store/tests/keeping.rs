use super::*;
use crate::store::{Size, record::Record};

#[test]
fn a_store_that_was_never_used_is_empty_and_makes_no_folder() {
    let f = Fixture::new();
    assert_eq!(f.store.list().unwrap(), Default::default());
    assert_eq!(f.store.size().unwrap(), Size::default());
    f.store.touch(&reference("hf:a/b"), "1", at(0)).unwrap();
    for error in [f.store.delete(&reference("hf:a/b")).unwrap_err(), f.store.pin(&reference("hf:a/b")).unwrap_err()] {
        assert_eq!(error.code(), "not_found");
    }
    assert!(!f.store.root().exists());
}

#[test]
fn an_artifact_is_listed_with_what_its_source_told() {
    let f = Fixture::new();
    let files = [("config.json", "{}"), ("model.safetensors", "weights")];
    let told = manifest("hf:org/name@main", "c1", &files).with_license("mit").with_gated(true);
    let paths = told.files.iter().map(|file| (file.path.clone(), f.store.blob(&FileKey::new(&told, file)))).collect();
    write(&f.blob("{}"), "{}");
    f.store.record(&told, &paths, &BTreeMap::new(), None, true, at(5)).unwrap();
    let listing = f.store.list().unwrap();
    let [artifact] = &listing.artifacts[..] else { panic!("{listing:?}") };
    assert_eq!((artifact.reference.to_string().as_str(), artifact.revision.as_str()), ("hf:org/name@main", "c1"));
    assert_eq!((artifact.license.as_deref(), artifact.gated, artifact.want), (Some("mit"), Some(true), Want::Model));
    assert_eq!((artifact.created, artifact.last_used), (at(5), at(5)));
    assert_eq!(artifact.files[0], ("config.json".into(), f.blob("{}")));
    assert_eq!((&artifact.damaged[..], artifact.bytes), (&["model.safetensors".to_owned()][..], 2));
    write(&f.blob("weights"), "weights");
    assert_eq!(f.store.list().unwrap().artifacts[0].damaged, Vec::<String>::new());
    assert_eq!(f.store.list().unwrap().artifacts[0].bytes, 9);
    assert!(f.store.root().join("CACHEDIR.TAG").exists());
}

#[test]
fn content_that_two_share_is_counted_once() {
    let f = Fixture::new();
    f.own("hf:a/b", "1", &[("x", "shared"), ("y", "one")], 0);
    f.own("hf:a/b", "2", &[("x", "shared"), ("y", "other")], 1);
    write(&f.store.root().join("blobs/sha256-0"), "nobody's");
    write(&f.store.root().join("partials/sha256-1/data"), "part");
    let size = f.store.size().unwrap();
    assert_eq!((size.fetched, size.found, size.unrecorded), (6 + 3 + 5, 0, 8));
    assert!(size.partials > 0);
    assert_eq!(f.store.list().unwrap().artifacts.iter().map(|a| a.bytes).collect::<Vec<_>>(), [9, 11]);
}

#[test]
fn recording_again_keeps_what_was_known() {
    let f = Fixture::new();
    let plain = Manifest::new(reference("hf:a/b"), Want::Model, "1", vec![ManifestFile::new("x", 1)]).unwrap();
    let blob = f.store.blob(&FileKey::new(&plain, &plain.files[0]));
    write(&blob, "x");
    let paths = BTreeMap::from([("x".to_owned(), blob)]);
    let computed = BTreeMap::from([("x".to_owned(), sha256("x"))]);
    f.store.record(&plain, &paths, &computed, None, true, at(1)).unwrap();
    f.store.pin(&reference("hf:a/b")).unwrap();
    f.store.record(&plain, &paths, &BTreeMap::new(), None, false, at(9)).unwrap();
    let artifact = f.store.list().unwrap().artifacts.remove(0);
    assert!(artifact.pinned && artifact.fetched);
    assert_eq!((artifact.created, artifact.last_used), (at(1), at(9)));
    assert_eq!(f.store.ledger().unwrap().records[0].files[0].computed, Some(sha256("x")));
    f.store.unpin(&reference("hf:a/b@1")).unwrap();
    assert!(!f.store.list().unwrap().artifacts[0].pinned);
}

#[test]
fn files_that_are_wanted_no_more_are_deleted_with_the_artifact() {
    let f = Fixture::new();
    f.own("hf:a/b", "1", &[("model.bin", "old"), ("gone", "nothing")], 0);
    fs::remove_file(f.blob("nothing")).unwrap();
    f.own("hf:a/b", "1", &[("model.safetensors", "new")], 1);
    let artifact = f.store.list().unwrap().artifacts.remove(0);
    assert_eq!((artifact.files.len(), artifact.bytes, artifact.damaged.len()), (2, 6, 0));
    f.store.delete(&reference("hf:a/b")).unwrap();
    assert!(!f.blob("old").exists() && !f.blob("new").exists());
}

#[test]
fn uses_stay_in_order_when_the_clock_goes_back() {
    let f = Fixture::new();
    f.own("hf:a/first", "1", &[("x", "1")], 1000);
    f.own("hf:a/second", "1", &[("x", "2")], 10);
    f.store.touch(&reference("hf:a/first"), "1", at(5)).unwrap();
    let used = |f: &Fixture| f.store.list().unwrap().artifacts.iter().map(|a| a.last_used).collect::<Vec<_>>();
    let ms = Duration::from_millis(1);
    assert_eq!(used(&f), [at(1000) + 2 * ms, at(1000) + ms]);
    f.store.touch(&reference("hf:a/second"), "1", at(2000)).unwrap();
    assert_eq!(used(&f), [at(1000) + 2 * ms, at(2000)]);
    // Of another revision nothing is known.
    f.store.touch(&reference("hf:a/second"), "2", at(3000)).unwrap();
    assert_eq!(used(&f)[1], at(2000));
    // Years before 1970 and after anything a file can say.
    f.store.touch(&reference("hf:a/first"), "1", SystemTime::UNIX_EPOCH - Duration::from_secs(1)).unwrap();
    assert_eq!(used(&f)[0], at(2000) + ms);
}

#[test]
fn a_record_of_another_version_or_a_broken_one_is_listed_and_left_alone() {
    let f = Fixture::new();
    f.own("hf:a/b", "1", &[("x", "content")], 0);
    let path = f.store.artifacts().join("0.json");
    let newer = format!("{{\"version\": 4, \"anything\": \"{}\"}}", sha256("content").to_string().replace(':', "-"));
    write(&path, &newer);
    write(&f.store.artifacts().join("1.json"), "{");
    write(&f.store.artifacts().join(".tmp123"), "{");
    let listing = f.store.list().unwrap();
    assert_eq!((listing.artifacts.len(), listing.unreadable.len()), (1, 2));
    assert_eq!(listing.unreadable[0].path, path);
    assert!(listing.unreadable[0].reason.contains("version 4"), "{listing:?}");
    // Nobody knows what the newer one needs, but it names this content.
    assert_eq!(f.store.delete(&reference("hf:a/b")).unwrap().bytes, 0);
    assert!(f.blob("content").exists() && f.listed().is_empty());
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
    assert_eq!(f.store.evict(100, 50).unwrap().bytes, 0);
    assert!(f.store.evict(100, 95).is_err());
    assert!(f.blob("content").exists());
}

#[test]
fn a_record_that_leads_out_of_its_folders_is_not_believed() {
    let f = Fixture::new();
    let made = f.own("hf:a/b", "1", &[("x", "content")], 0);
    let record = f.store.ledger().unwrap().records.remove(0);
    let text = record.to_text().unwrap();
    let blob = format!("blobs/{}", sha256("content").to_string().replace(':', "-"));
    assert!(text.contains(&blob), "{text}");
    assert!(Record::parse(&text).is_ok());
    for place in ["../outside", "/etc/passwd", "blobs/../../outside", "locks/store.lock", "blobs", "", "C:/x/../.."] {
        assert!(Record::parse(&text.replace(&blob, place)).is_err(), "{place}");
    }
    let placed = Record::new(&f.store, &made, None, &BTreeMap::new(), Some(&f.placement(&made, Some("main"))));
    let text = placed.unwrap().to_text().unwrap();
    assert!(Record::parse(&text).is_ok());
    let root = serde_json::to_string(&f.repo()).unwrap();
    let root = root.trim_matches('"');
    for (good, bad) in [
        (root, "/"),
        (root, "relative"),
        (root, "/a/../../etc"),
        ("snapshots/1/x", "snapshots/x"),
        ("snapshots/1/x", "blobs/1/x"),
        ("snapshots/1/x", "../1/x"),
        ("\"snapshots\"", "\"..\""),
        ("refs/main", "refs/../../main"),
        ("\"blob\": \"blobs/", "\"blob\": \"snapshots/2/"),
    ] {
        assert!(text.contains(good), "{good}: {text}");
        assert!(Record::parse(&text.replace(good, bad)).is_err(), "{good} -> {bad}");
    }
    // Under another name it might be a copy: two would claim one artifact.
    fs::rename(f.store.record_path(&record), f.store.artifacts().join("copy.json")).unwrap();
    let listing = f.store.list().unwrap();
    assert_eq!((listing.artifacts.len(), listing.unreadable.len()), (0, 1));
}

#[test]
fn files_elsewhere_are_recorded_and_never_touched() {
    let f = Fixture::new();
    let theirs = f.folder.path().join("mine.gguf");
    write(&theirs, "weights");
    let made = manifest("hf:a/b", "1", &[("mine.gguf", "weights")]);
    let paths = BTreeMap::from([("mine.gguf".to_owned(), theirs.clone())]);
    f.store.record(&made, &paths, &BTreeMap::new(), None, true, at(0)).unwrap();
    assert_eq!(f.listed(), [("hf:a/b".into(), "1".into(), true)]);
    assert_eq!(f.store.size().unwrap(), Size::default());
    assert_eq!(f.store.delete(&reference("hf:a/b")).unwrap().artifacts, 1);
    assert!(theirs.exists() && f.listed().is_empty());
    let error = f.store.record(&made, &BTreeMap::new(), &BTreeMap::new(), None, true, at(0)).unwrap_err();
    assert!(error.to_string().contains("mine.gguf"), "{error}");
}
