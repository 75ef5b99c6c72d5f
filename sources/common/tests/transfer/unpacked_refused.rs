//! What is not unpacked or joined, by what is wrong with it, by limits and by policies; and that nothing of it is left.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use llm_local_core::{Error, Manifest, Unpack, Want};
use llm_local_source_common::unpack::Limits;

use super::{assets::*, unpacked::*};

#[test]
fn a_bad_archive_leaves_nothing() {
    let outside = zip_of(&[("adapter_config.json", JSON), ("../evil.json", b"{}")]);
    let mut cut = good();
    cut.truncate(cut.len() / 2);
    let large = zip_of(&[("adapter_model.safetensors", &weights())]);
    for (bytes, want, part) in [
        (outside.clone(), Want::Adapter, "evil.json"),
        (outside, Want::Model, "evil.json"),
        (cut, Want::Adapter, ARCHIVE),
        (b"<html>not found</html>".to_vec(), Want::Adapter, "no archive"),
        (large, Want::Adapter, "adapter_model.safetensors"),
    ] {
        let mut assets = Assets::new(&[(ARCHIVE, bytes)]);
        assets.want = want;
        assets.config = assets.config.with_unpack(Limits::default().with_file_bytes(100_000));
        let error = assets.fetch(&assets.archive(V1, ARCHIVE)).unwrap_err();
        let code = if want == Want::Adapter { "adapter_merge_failed" } else { "load_failed" };
        assert_eq!(error.code(), code, "{error}");
        for part in [part, ARCHIVE, V1] {
            assert!(error.to_string().contains(part), "{part} is not in: {error}");
        }
        assert!(!error.is_retryable());
        assets.assert_has(&[]);
        assert_eq!(assets.recorded(), Vec::<String>::new());
        assert_eq!(assets.below("trust"), Vec::<PathBuf>::new(), "nobody trusts what was never taken");
    }
}

#[test]
fn what_allows_more_is_named_where_an_archive_or_parts_have_too_much() {
    let (archive, parts) = (good(), ["w.gguf.001", "w.gguf.002"]);
    let assets = || Assets::new(&[(ARCHIVE, archive.clone()), (parts[0], b"GG".to_vec()), (parts[1], b"UF".to_vec())]);
    let join = Unpack::Join { parts: parts.map(str::to_owned).into(), into: "w.gguf".into() };
    let limits = Limits::default;
    for (limits, want, code, joined, says) in [
        (limits().with_file_bytes(600_000), Want::Model, "load_failed", false, "`Limits::with_file_bytes`"),
        (limits().with_total_bytes(600_000), Want::Model, "load_failed", false, "`TransferConfig::with_unpack`"),
        (
            limits().with_policy("`max_model_bytes`", 600_000, 1 << 30),
            Want::Model,
            "not_allowed",
            false,
            "by `max_model_",
        ),
        (
            limits().with_policy("`max_model_bytes`", 1 << 30, 600_000),
            Want::Model,
            "not_allowed",
            false,
            "by `max_model_",
        ),
        (
            limits().with_policy("`max_it`", 600_000, 1 << 30),
            Want::Adapter,
            "adapter_merge_failed",
            false,
            "by `max_it`",
        ),
        (limits().with_policy("`max_model_bytes`", 3, 9), Want::Model, "not_allowed", true, "by `max_model_bytes`"),
        (limits().with_policy("`max_model_bytes`", 9, 3), Want::Model, "not_allowed", true, "by `max_model_bytes`"),
    ] {
        let mut assets = assets();
        (assets.want, assets.config) = (want, assets.config.with_unpack(limits));
        let manifest = match joined {
            true => assets.manifest(V1, "7:1,2", &parts, true).with_unpack(vec![join.clone()]).unwrap(),
            false => assets.archive(V1, ARCHIVE),
        };
        let error = assets.fetch(&manifest).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        for says in [says, V1, if joined { "w.gguf" } else { WEIGHTS }] {
            assert!(error.to_string().contains(says), "{error}");
        }
        if let Error::AdapterMergeFailed { source: Some(cause), .. } = &error {
            assert_eq!(cause.downcast_ref::<Error>().unwrap().code(), "not_allowed");
        }
        assets.assert_has(&[]);
        assert_eq!(assets.asked() == 0, joined, "how large parts are is known before they come");
    }
}

#[test]
fn parts_are_bounded_by_their_own_sizes_and_by_a_policy_and_not_as_an_archive_is() {
    let parts = ["w.gguf.001", "w.gguf.002"];
    let archive = good();
    let (one, two) = archive.split_at(300_001);
    let contents = [(parts[0], b"GG".to_vec()), (parts[1], b"UF".to_vec()), ("a.zip.001", one.to_vec())];
    let mut assets = Assets::new(&contents);
    assets.put("a.zip.002", two.to_vec());
    let join = |parts: &[&str], into: &str| Unpack::Join {
        parts: parts.iter().map(|part| (*part).to_owned()).collect(),
        into: into.into(),
    };
    let plain = assets.manifest(V1, "7:1,2", &parts, true).with_unpack(vec![join(&parts, "w.gguf")]).unwrap();
    assets.config = assets.config.clone().with_unpack(Limits::default().with_file_bytes(3).with_total_bytes(3));
    let files = assets.fetch(&plain).unwrap();
    assert_eq!(fs::read(&files["w.gguf"]).unwrap(), b"GGUF");
    assets.asked();
    // What is in a joined archive is bounded once it is unpacked; all of its parts by what a policy allows in all.
    let names = ["a.zip.001", "a.zip.002"];
    let steps = vec![join(&names, "a.zip"), Unpack::Archive { file: "a.zip".into() }];
    let zip = assets.manifest("test:org/zip@v1", "7:3,4", &names, true).with_unpack(steps).unwrap();
    let size = archive.len() as u64;
    for (file, total, refused) in [(700_000, size, false), (1 << 30, size - 1, true)] {
        assets.config = assets.config.clone().with_unpack(Limits::default().with_policy("`max_it`", file, total));
        let fetched = assets.fetch(&zip).map_err(|error| (error.to_string(), assets.asked()));
        match refused {
            true => {
                let (error, asked) = fetched.unwrap_err();
                assert!(error.contains("by `max_it`") && error.contains("a.zip") && asked == 0, "{error} {asked}");
            }
            false => assert_eq!(fetched.unwrap().len(), 2),
        }
        assets.store().delete(&zip.reference).ok();
        assets.asked();
    }
}

#[test]
fn what_comes_out_of_an_archive_is_bounded_by_what_it_is_wanted_as() {
    let mut assets = Assets::new(&[(ARCHIVE, good())]);
    let small = Limits::default().with_policy("`max_adapter_bytes`", 10, 20);
    assets.config = assets.config.with_unpack_of(Want::Adapter, small);
    let adapter = assets.archive(V1, ARCHIVE);
    assets.want = Want::Model;
    let model = assets.archive("test:org/model@v1", ARCHIVE);
    // In one call each has its own bound.
    let error = assets.fetch_all(&[&model, &adapter]).unwrap_err().to_string();
    assert!(error.contains(V1) && error.contains("by `max_adapter_bytes`"), "{error}");
    assert_eq!(assets.recorded(), ["test:org/model@v1"]);
    assets.assert_has(&[JSON, &weights()]);
}

#[test]
fn what_is_refused_once_it_is_unpacked_is_never_kept() {
    let (assets, manifest) = setup();
    let (rule, seen) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
    let fetch = |manifest: &Manifest| {
        let (rule, seen) = (rule.clone(), seen.clone());
        let transfer = assets.transfer().with_check(move |manifest, files| {
            seen.lock().unwrap().push((manifest.reference.to_string(), files.clone()));
            match rule.load(Ordering::SeqCst) {
                true => Err(Error::not_allowed(&manifest.reference, "it is `safetensors`")),
                false => Ok(()),
            }
        });
        pollster::block_on(transfer.fetch(vec![assets.job(manifest)], &assets.cx()))
    };
    let error = fetch(&manifest).unwrap_err();
    assert!(error.code() == "adapter_merge_failed" && error.to_string().contains("it is `safetensors`"), "{error}");
    let sizes = [(CONFIG.to_owned(), JSON.len() as u64), (WEIGHTS.to_owned(), 700_000)];
    assert_eq!(*seen.lock().unwrap(), [(V1.to_owned(), sizes.into())]);
    assets.assert_has(&[]);
    assert_eq!((assets.recorded().len(), assets.below("trust").len()), (0, 0));
    // What another artifact needs of it stays.
    assets.put(CONFIG, JSON.to_vec());
    let files = assets.manifest("test:org/files", "1", &[ARCHIVE, CONFIG], true);
    fetch(&files).unwrap();
    fetch(&manifest).unwrap_err();
    assets.assert_has(&[JSON, &good()]);
    rule.store(false, Ordering::SeqCst);
    fetch(&manifest).unwrap();
    assets.assert_has(&[JSON, &weights(), &good()]);
    // What was kept is not asked about again, and neither is what was not unpacked.
    rule.store(true, Ordering::SeqCst);
    fetch(&manifest).unwrap();
    fetch(&files).unwrap();
    assert_eq!(seen.lock().unwrap().len(), 3);
}

#[test]
fn what_was_made_and_cannot_be_kept_goes_again() {
    let blob = |assets: &Assets, bytes: &[u8]| {
        assets.root.path().join("blobs").join(sha256_of(bytes).to_string().replace(':', "-"))
    };
    let (known, manifest) = setup();
    known.fetch(&manifest).unwrap();
    let record = known.below("artifacts").remove(0);
    // Neither the content of the second file nor the record can be written where a folder is.
    for at_record in [false, true] {
        for shared in [false, true] {
            let (assets, manifest) = setup();
            if shared {
                assets.put(CONFIG, JSON.to_vec());
                assets.fetch(&assets.manifest("test:org/files", "1", &[CONFIG], true)).unwrap();
            }
            let path = match at_record {
                true => assets.root.path().join("artifacts").join(record.file_name().unwrap()),
                false => blob(&assets, &weights()),
            };
            fs::create_dir_all(&path).unwrap();
            let error = assets.fetch(&manifest).unwrap_err();
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            assert!(blob(&assets, &good()).exists(), "what came is there for the next time");
            assert_eq!(blob(&assets, JSON).exists(), shared, "at the record: {at_record}");
            assert!(!blob(&assets, &weights()).is_file());
            fs::remove_dir(path).unwrap();
            assets.assert_nothing_left();
            assets.asked();
            assets.fetch(&manifest).unwrap();
            assert_eq!(assets.asked(), 0);
            assets.assert_has(&[JSON, &weights()]);
        }
    }
}

#[test]
fn of_a_bad_archive_that_another_artifact_is_the_bytes_stay() {
    let bad = b"no archive at all".to_vec();
    let assets = Assets::new(&[(ARCHIVE, bad.clone())]);
    let plain = assets.manifest("test:org/files", "1", &[ARCHIVE], true);
    assets.fetch(&plain).unwrap();
    assets.fetch(&assets.archive(V1, ARCHIVE)).unwrap_err();
    assets.assert_has(&[&bad]);
    assert_eq!(assets.recorded(), ["test:org/files"]);
    assert!(assets.present(&plain).is_some());
}
