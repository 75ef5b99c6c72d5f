//! What sources may answer besides requests, and where they want files.

use std::{
    fs,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{StreamExt as _, stream};
use llm_local_core::{
    ArtifactRef, ArtifactSource, Bytes, CancellationToken, Digest, Error, FetchContext, Manifest, ManifestFile, Opened,
    PlacedFile, Placement, Result, Want, async_trait,
};
use llm_local_source_common::transfer::{Files, Job};
use llm_local_testkit::hub::Content;

use super::support::*;

/// Brings bytes itself.
struct Own {
    bytes: Vec<u8>,
    /// What it brings of a range.
    bring: fn(&[u8], Range<usize>) -> Result<Opened>,
    local: Option<PathBuf>,
    /// Cancelled with the last byte that it brings.
    cancel: Option<CancellationToken>,
    opened: AtomicUsize,
}

#[async_trait]
impl ArtifactSource for Own {
    fn scheme(&self) -> &str {
        "own"
    }

    async fn resolve(&self, reference: &ArtifactRef, _: Want, _: &FetchContext) -> Result<Manifest> {
        Err(Error::not_found(reference, "these tests make their manifests themselves"))
    }

    async fn open(&self, _: &Manifest, file: &ManifestFile, range: Range<u64>, cx: &FetchContext) -> Result<Opened> {
        if let Some(path) = &self.local {
            return Ok(Opened::Local(path.clone()));
        }
        if cx.offline {
            return Err(Error::Offline { what: file.path.clone() });
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
        let opened = (self.bring)(&self.bytes, range.start as usize..range.end as usize)?;
        Ok(match (opened, self.cancel.clone()) {
            (Opened::Stream(stream), Some(cancel)) => {
                Opened::Stream(Box::pin(stream.inspect(move |_| cancel.cancel())))
            }
            (opened, _) => opened,
        })
    }
}

fn fetch(setup: &Setup, digest: Option<Digest>, source: Own) -> (Result<Files>, usize) {
    let mut file = ManifestFile::new("a.bin", source.bytes.len() as u64);
    file.digest = digest;
    let manifest = Manifest::new("own:x".parse().unwrap(), Want::Model, "1", vec![file]).unwrap();
    let source = Arc::new(source);
    let job = Job::new(source.clone(), manifest);
    let result = pollster::block_on(setup.transfer().fetch(vec![job], &setup.cx()));
    (result.map(|mut files| files.remove(0)), source.opened.load(Ordering::Relaxed))
}

fn own(bring: fn(&[u8], Range<usize>) -> Result<Opened>) -> (Own, Digest) {
    own_of(SIZE, bring)
}

fn own_of(size: u64, bring: fn(&[u8], Range<usize>) -> Result<Opened>) -> (Own, Digest) {
    let content = Content::generated(size, 3);
    let bytes = content.read(0..size).unwrap();
    (Own { bytes, bring, local: None, cancel: None, opened: AtomicUsize::new(0) }, sha256(&content))
}

#[test]
fn a_stream_is_verified_and_published() {
    let setup = Setup::new();
    let (source, digest) = own(|bytes, range| Ok(Opened::bytes(bytes[range].to_vec())));
    let bytes = source.bytes.clone();
    let (result, opened) = fetch(&setup, Some(digest), source);
    assert_eq!((fs::read(&result.unwrap()["a.bin"]).unwrap() == bytes, opened), (true, 4));
}

#[test]
fn a_stream_without_a_digest_comes_in_one_and_its_digest_is_recorded() {
    let setup = Setup::new();
    let (source, digest) = own(|bytes, range| Ok(Opened::bytes(bytes[range].to_vec())));
    let (result, opened) = fetch(&setup, None, source);
    assert!(result.is_ok());
    assert_eq!(opened, 2, "one to find out, one for all");
    let records = setup.root.path().join("artifacts").read_dir().unwrap();
    let record = records.map(|e| fs::read_to_string(e.unwrap().path()).unwrap()).collect::<String>();
    assert!(record.contains(&digest.to_string()), "{record}");
}

#[test]
fn a_stream_that_is_too_long_is_refused() {
    let (source, digest) = own(|bytes, range| Ok(Opened::bytes(bytes[range.start..].to_vec())));
    let setup = Setup::new();
    let (result, opened) = fetch(&setup, Some(digest), source);
    assert_eq!((result.unwrap_err().code(), opened), ("integrity_failed", 1));
    assert!(setup.published().is_empty());
}

#[test]
fn a_small_stream_has_the_size_it_should_whatever_tells_of_its_bytes() {
    for has_digest in [true, false] {
        // In one chunk and in several.
        for bring in [
            |bytes: &[u8], _: Range<usize>| Ok(Opened::bytes([bytes, b"more"].concat())),
            |bytes: &[u8], _: Range<usize>| {
                let chunks = [bytes, b"more", b"still"].map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
                Ok(Opened::Stream(Box::pin(stream::iter(chunks))))
            },
        ] {
            let (setup, (source, digest)) = (Setup::new(), own_of(SEGMENT / 2, bring));
            let (result, opened) = fetch(&setup, has_digest.then_some(digest), source);
            let error = result.unwrap_err();
            assert!(error.to_string().contains("131072 bytes") && error.to_string().contains("more"), "{error}");
            assert_eq!((error.code(), opened, setup.published().len()), ("integrity_failed", 1, 0));
        }
        let bring = |bytes: &[u8], range: Range<usize>| Ok(Opened::bytes(bytes[range.start..range.end - 1].to_vec()));
        let (setup, (source, digest)) = (Setup::new(), own_of(SEGMENT / 2, bring));
        let (result, opened) = fetch(&setup, has_digest.then_some(digest), source);
        let error = result.unwrap_err();
        // The last byte alone is asked for, where a digest tells; else all of them again.
        let came = if has_digest { "0 of 1 bytes" } else { "131071 of 131072 bytes" };
        assert!(error.is_retryable() && error.to_string().contains(came), "{error}");
        assert_eq!((opened, setup.waits().len(), setup.published().len()), (5, 4, 0));
    }
}

#[test]
fn a_cancel_with_the_last_byte_publishes_nothing() {
    for size in [1000, SIZE] {
        let setup = Setup::new();
        let (mut source, digest) = own_of(size, |bytes, range| Ok(Opened::bytes(bytes[range].to_vec())));
        source.cancel = Some(setup.cancel.clone());
        let (result, opened) = fetch(&setup, Some(digest), source);
        assert_eq!((result.unwrap_err().code(), opened, setup.published().len()), ("cancelled", 1, 0));
    }
}

#[test]
fn a_stream_that_ends_early_or_fails_is_asked_to_go_on() {
    let (source, digest) = own(|bytes, range| {
        let end = range.end.min(range.start + 200_000);
        let lost = Error::DownloadFailed { what: "a.bin".into(), reason: "lost".into(), retryable: true, source: None };
        let chunks = [Ok(Bytes::copy_from_slice(&bytes[range.start..end])), Err(lost)];
        let count = if end == range.end { 1 } else { 1 + range.start / 200_000 % 2 };
        Ok(Opened::Stream(Box::pin(stream::iter(chunks.into_iter().take(count)))))
    });
    let setup = Setup::new();
    let (result, opened) = fetch(&setup, Some(digest), source);
    assert!(result.is_ok(), "{result:?}");
    assert_eq!((opened, setup.waits().len()), (8, 4));
}

#[test]
fn an_error_of_the_source_that_stays_is_not_tried_again() {
    let (source, digest) = own(|_, _| Err(Error::unsupported("that", "it cannot")));
    let (result, opened) = fetch(&Setup::new(), Some(digest), source);
    assert_eq!((result.unwrap_err().code(), opened), ("unsupported", 1));
}

#[test]
fn a_file_of_this_machine_is_used_where_it_lies() {
    let setup = Setup::new();
    let path = setup.root.path().join("mine.bin");
    let (mut source, _) = own(|_, _| Err(Error::Cancelled));
    fs::write(&path, &source.bytes).unwrap();
    source.local = Some(path.clone());
    let (result, opened) = fetch(&setup, None, source);
    assert_eq!((&result.unwrap()["a.bin"], opened), (&path, 0));
    let kept: Vec<_> = fs::read_dir(setup.root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(kept, ["mine.bin"], "nothing is kept of it");
    // And nothing is wrong with it but its size.
    let (mut source, _) = own(|_, _| Err(Error::Cancelled));
    fs::write(&path, b"short").unwrap();
    source.local = Some(path);
    let error = fetch(&setup, None, source).0.unwrap_err().to_string();
    assert!(error.contains("1048576 bytes") && error.contains("5 bytes"), "{error}");
}

/// Has the source want its files in a cache of its own, whose root this gives.
pub(crate) fn placed(setup: &mut Setup) -> PathBuf {
    let root = setup.root.path().join("cache/models--org--tiny");
    let place = |f: &ManifestFile| {
        let name = f.digest.unwrap().to_string();
        PlacedFile::new(
            root.join("blobs").join(name.split_once(':').unwrap().1),
            root.join("snapshots/1").join(&f.path),
        )
    };
    let files = setup.files.iter().map(place).collect();
    let placement = Placement::new(&root, root.join("snapshots"), files).with_ref(root.join("refs/main"), "1");
    setup.source.placement = Some(placement);
    root
}

#[test]
fn files_are_published_where_the_source_wants_them_and_refs_last() {
    let mut setup = Setup::new();
    let root = placed(&mut setup);
    let files = setup.fetch().unwrap();
    assert_eq!(files[MODEL], root.join("snapshots/1/model.bin"));
    #[cfg(unix)]
    assert!(fs::read_link(&files[MODEL]).unwrap().starts_with("../../blobs"));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), "1");
    let mut names: Vec<_> =
        fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["blobs", "refs", "snapshots"], "nothing else is left there");
    // Content that is there without its link needs no request.
    setup.hub.clear();
    fs::remove_file(&files[MODEL]).unwrap();
    assert_eq!(setup.fetch().unwrap(), files);
    assert!(setup.hub.requests().is_empty());
}

#[test]
fn no_ref_is_written_for_an_artifact_that_is_not_whole() {
    let mut setup = Setup::new();
    let root = placed(&mut setup);
    setup.hub.fault(llm_local_testkit::hub::Fault::wrong_bytes().path(MODEL));
    setup.fetch().unwrap_err();
    assert!(!root.join("refs").exists() && !root.join("snapshots/1/model.bin").exists());
    assert!(root.join("snapshots/1/config.json").exists(), "what is whole stays");
}

#[test]
fn a_placement_outside_of_its_root_is_refused() {
    let mut setup = Setup::new();
    let root = placed(&mut setup);
    for bad in [root.join("../elsewhere"), PathBuf::from("relative"), setup.root.path().join("x")] {
        if let Some(placement) = &mut setup.source.placement {
            placement.files[0].blob = bad;
        }
        assert_eq!(setup.fetch().unwrap_err().code(), "invalid_spec");
    }
    if let Some(placement) = &mut setup.source.placement {
        placement.files.pop();
    }
    assert_eq!(setup.fetch().unwrap_err().code(), "invalid_spec");
    assert!(setup.hub.requests().is_empty());
}

#[test]
fn a_small_range_is_read_without_keeping_it() {
    let setup = Setup::new();
    let model = setup.contents[MODEL].read(0..SIZE).unwrap();
    let (transfer, job) = (setup.transfer(), setup.job());
    let read = |range: Range<u64>| pollster::block_on(transfer.read(&job, MODEL, range, &setup.cx()));
    assert_eq!(read(8..1000).unwrap(), &model[8..1000]);
    assert_eq!((setup.served(), setup.asked(MODEL).len()), (992, 1));
    assert!(setup.published().is_empty() && !setup.root.path().join("partials").exists());
    // A host that knows no ranges is left as soon as there is enough.
    setup
        .hub
        .fault(llm_local_testkit::hub::Fault::ignore_range().and(llm_local_testkit::hub::Fault::cut(5000)).path(MODEL));
    assert_eq!(read(8..1000).unwrap(), &model[8..1000]);
    setup.hub.clear_faults();
    setup.hub.fault(llm_local_testkit::hub::Fault::status(503).path(MODEL).times(2));
    assert_eq!(read(0..10).unwrap(), &model[..10]);
    assert_eq!(setup.waits().len(), 2);
    assert!(read(5..5).unwrap().is_empty());
    assert_eq!(read(0..SIZE + 1).unwrap_err().code(), "invalid_spec");
    let missing = pollster::block_on(transfer.read(&job, "other", 0..1, &setup.cx()));
    assert_eq!(missing.unwrap_err().code(), "not_found");
    setup.fetch().unwrap();
    setup.hub.clear();
    assert_eq!(read(SIZE - 3..SIZE).unwrap(), &model[model.len() - 3..]);
    assert!(setup.hub.requests().is_empty());
}

#[test]
fn what_is_present_is_known_without_a_request() {
    let setup = Setup::new();
    let present = || pollster::block_on(setup.transfer().present(&setup.job(), &setup.cx())).unwrap();
    assert!(present().is_none());
    assert!(fs::read_dir(setup.root.path()).unwrap().next().is_none(), "nothing was made");
    let files = setup.fetch().unwrap();
    setup.hub.clear();
    assert_eq!(present().as_ref(), Some(&files));
    fs::write(&files[MODEL], b"cut").unwrap();
    assert!(present().is_none());
    assert!(setup.hub.requests().is_empty());
}
