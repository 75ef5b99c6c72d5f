//! The suite for sources of models and adapters.

use std::{future::poll_fn, ops::Range};

use llm_local_core::{
    AdapterSource, ArtifactRef, ArtifactSource, CancellationToken, Digest, Error, FetchContext, Manifest, ManifestFile,
    ModelSource, Opened, Want, manifest::check_relative_path,
};
use sha2::{Digest as _, Sha256};

/// Checks a source of models with an artifact that it has. It reads every file of it, some ranges twice.
///
/// - the manifest is of what was asked, pinned, and the same when asked again; its files have plain relative names,
///   each once;
/// - `open` gives exactly the range: a stream its bytes and no more, a local path a file of the promised size, a
///   request an http(s) URL (which this suite does not fetch);
/// - bytes have the promised SHA-256;
/// - what is not there is [`Error::NotFound`], or [`Error::Unauthorized`] where a source cannot tell;
/// - a cancelled context gives [`Error::Cancelled`], and an offline one the same manifest or [`Error::Offline`].
///
/// # Panics
/// With what is wrong.
pub async fn model_source(source: &dyn ModelSource, reference: &ArtifactRef) {
    artifact_source(source, reference, Want::Model).await;
}

/// Checks a source of adapters with an artifact that it has, as [`model_source`] does with one of models. Errors may
/// be [`Error::AdapterMergeFailed`] already.
///
/// # Panics
/// With what is wrong.
pub async fn adapter_source(source: &dyn AdapterSource, reference: &ArtifactRef) {
    artifact_source(source, reference, Want::Adapter).await;
}

async fn artifact_source(source: &dyn ArtifactSource, reference: &ArtifactRef, want: Want) {
    let cx = FetchContext::new();
    assert_eq!(source.scheme(), reference.scheme(), "the source's scheme differs from that of {reference}");
    let resolve = async |cx: &FetchContext| source.resolve(reference, want, cx).await;
    let manifest = resolve(&cx).await.unwrap_or_else(|e| panic!("{reference} cannot be resolved: {e}"));
    listing(&manifest, reference, want);
    let again = resolve(&cx).await.unwrap_or_else(|e| panic!("{reference} cannot be resolved twice: {e}"));
    assert_eq!(manifest, again, "{reference} gives another manifest when it is resolved again");
    for file in &manifest.files {
        content(source, &manifest, file, &cx).await;
    }
    missing(source, reference, want, &cx).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    match resolve(&FetchContext::new().with_cancel(cancel)).await {
        Err(Error::Cancelled) => {}
        other => panic!("resolve with a cancelled context gave {other:?}; expected Err(Cancelled)"),
    }
    match resolve(&FetchContext::new().with_offline(true)).await {
        Ok(offline) => assert_eq!(manifest, offline, "{reference} gives another manifest offline"),
        Err(Error::Offline { .. }) => {}
        Err(error) => panic!("resolve offline failed with another error than Offline: {error}"),
    }
}

fn listing(manifest: &Manifest, reference: &ArtifactRef, want: Want) {
    assert_eq!(&manifest.reference, reference, "the manifest is of another ref than the one asked for");
    assert_eq!(manifest.want, want, "the manifest of {reference} is of another kind of artifact");
    assert!(!manifest.revision.is_empty(), "the manifest of {reference} has no revision");
    // A model without files is one that an engine elsewhere has.
    let complete = want == Want::Model || !manifest.files.is_empty();
    assert!(complete, "the manifest of {reference} has no files");
    for (i, file) in manifest.files.iter().enumerate() {
        if let Err(reason) = check_relative_path(&file.path) {
            panic!("the manifest of {reference}: {reason}");
        }
        let twice = manifest.files[..i].iter().any(|f| f.path == file.path);
        assert!(!twice, "the manifest of {reference} lists `{}` twice", file.path);
    }
}

async fn content(source: &dyn ArtifactSource, manifest: &Manifest, file: &ManifestFile, cx: &FetchContext) {
    let Some(whole) = bytes(source, manifest, file, 0..file.size, cx).await else { return };
    if let Some(Digest::Sha256(promised)) = file.digest {
        let found: [u8; 32] = Sha256::digest(&whole).into();
        let (promised, found) = (Digest::Sha256(promised), Digest::Sha256(found));
        assert_eq!(promised, found, "the bytes of `{}` are not what its digest says", file.path);
    }
    let size = file.size;
    for range in [0..size.min(1), size / 3..size / 3 * 2, size.saturating_sub(1)..size] {
        let Some(part) = bytes(source, manifest, file, range.clone(), cx).await else { continue };
        let expected = &whole[range.start as usize..range.end as usize];
        assert!(part == expected, "the bytes {range:?} of `{}` differ from those of the whole file", file.path);
    }
}

/// The bytes of a range, or `None` where only an HTTP client could get them.
async fn bytes(
    source: &dyn ArtifactSource,
    manifest: &Manifest,
    file: &ManifestFile,
    range: Range<u64>,
    cx: &FetchContext,
) -> Option<Vec<u8>> {
    let path = &file.path;
    let opened = source.open(manifest, file, range.clone(), cx).await;
    match opened.unwrap_or_else(|e| panic!("{range:?} of `{path}` cannot be opened: {e}")) {
        Opened::Request(request) => {
            let http = ["http://", "https://"].iter().any(|s| request.url.starts_with(s));
            assert!(http, "the request for `{path}` is neither http nor https: {request:?}");
            None
        }
        Opened::Local(at) => {
            let all = std::fs::read(&at).unwrap_or_else(|e| panic!("`{path}` is at {}: {e}", at.display()));
            let found = all.len();
            assert_eq!(found as u64, file.size, "{} has {found} bytes; {} were promised", at.display(), file.size);
            Some(all[range.start as usize..range.end as usize].to_vec())
        }
        Opened::Stream(mut stream) => {
            let mut all = Vec::new();
            while let Some(chunk) = poll_fn(|cx| stream.as_mut().poll_next(cx)).await {
                all.extend(chunk.unwrap_or_else(|e| panic!("the stream of {range:?} of `{path}` broke: {e}")));
            }
            let (found, asked) = (all.len(), range.end - range.start);
            assert_eq!(found as u64, asked, "the stream of {range:?} of `{path}` has {found} bytes, not {asked}");
            Some(all)
        }
        other => panic!("`{path}` was opened as {other:?}, which this suite does not know"),
    }
}

async fn missing(source: &dyn ArtifactSource, reference: &ArtifactRef, want: Want, cx: &FetchContext) {
    let locator = format!("{}-llm-local-testkit-has-no-such-artifact", reference.locator());
    let missing = ArtifactRef::new(reference.scheme(), locator).expect("made from a good ref");
    match source.resolve(&missing, want, cx).await {
        Ok(manifest) => panic!("{missing} does not exist, but was resolved to {manifest:?}"),
        Err(error) => {
            let code = error.code();
            let expected = matches!(code, "not_found" | "unauthorized")
                || (want == Want::Adapter && code == "adapter_merge_failed");
            assert!(expected, "{missing} does not exist, which gave the error {code} ({error}), not not_found");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{conformance::failure, fakes::MemorySource};
    use llm_local_core::{Result, async_trait};
    use std::sync::atomic::{AtomicUsize, Ordering};

    const HELLO: &str = "hello, hello";

    fn good() -> MemorySource {
        MemorySource::new("mem")
            .with_file("tiny", "config.json", "{}")
            .with_file("tiny", "weights/a.bin", HELLO)
            .with_file("tiny", "empty", "")
            .with_chunk(5)
    }

    fn reference() -> ArtifactRef {
        "mem:tiny".parse().unwrap()
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Wrong {
        Ref,
        Kind,
        NoRevision,
        NoFiles,
        Leaves,
        Twice,
        Unstable,
        Digest,
        WholeFile,
        OtherBytes,
        LocalSize,
        Ftp,
        FindsAnything,
        OtherError,
        IgnoresCancel,
        OfflineFails,
    }

    struct Bad {
        inner: MemorySource,
        wrong: Wrong,
        resolves: AtomicUsize,
    }

    #[async_trait]
    impl ArtifactSource for Bad {
        fn scheme(&self) -> &str {
            self.inner.scheme()
        }

        async fn resolve(&self, r: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest> {
            let n = self.resolves.fetch_add(1, Ordering::SeqCst);
            let plain = FetchContext::new();
            let cx = if self.wrong == Wrong::IgnoresCancel { &plain } else { cx };
            let mut manifest = match (self.inner.resolve(r, want, cx).await, self.wrong) {
                (Err(Error::NotFound { .. }), Wrong::FindsAnything) => {
                    return self.inner.resolve(&reference(), want, cx).await;
                }
                (Err(Error::NotFound { .. }), Wrong::OtherError) => return Err(Error::load(r, "no")),
                (result, _) => result?,
            };
            match self.wrong {
                Wrong::Ref => manifest.reference = "mem:other".parse()?,
                Wrong::Kind => manifest.want = Want::Adapter,
                Wrong::NoRevision => manifest.revision.clear(),
                Wrong::NoFiles => manifest.files.clear(),
                Wrong::Leaves => manifest.files[0].path = "../config.json".into(),
                Wrong::Twice => manifest.files.push(manifest.files[0].clone()),
                Wrong::Unstable => manifest.revision = n.to_string(),
                Wrong::Digest => manifest.files[0].digest = Some(Digest::Sha256([7; 32])),
                Wrong::OfflineFails if cx.offline => return Err(Error::not_found(r, "offline")),
                _ => {}
            }
            Ok(manifest)
        }

        async fn open(&self, m: &Manifest, f: &ManifestFile, range: Range<u64>, cx: &FetchContext) -> Result<Opened> {
            match self.wrong {
                Wrong::WholeFile => self.inner.open(m, f, 0..f.size, cx).await,
                Wrong::OtherBytes if range.start > 0 => Ok(Opened::bytes(vec![0; (range.end - range.start) as usize])),
                Wrong::LocalSize => Ok(Opened::Local(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into())),
                Wrong::Ftp => Ok(Opened::Request(llm_local_core::source::Request::new("ftp://host/file"))),
                _ => self.inner.open(m, f, range, cx).await,
            }
        }
    }
    impl ModelSource for Bad {}
    impl AdapterSource for Bad {}

    #[test]
    fn a_good_source_passes_online_offline_and_for_both_kinds() {
        pollster::block_on(async {
            model_source(&good(), &reference()).await;
            adapter_source(&good(), &reference()).await;
            model_source(&good().with_remote(true), &reference()).await;
        });
    }

    #[test]
    fn each_thing_that_is_wrong_is_found() {
        for (wrong, message) in [
            (Wrong::Ref, "another ref"),
            (Wrong::Kind, "another kind"),
            (Wrong::NoRevision, "no revision"),
            (Wrong::Leaves, "`..` part"),
            (Wrong::Twice, "twice"),
            (Wrong::Unstable, "when it is resolved again"),
            (Wrong::Digest, "not what its digest says"),
            (Wrong::WholeFile, "has 2 bytes, not 1"),
            (Wrong::OtherBytes, "differ from those of the whole file"),
            (Wrong::LocalSize, "were promised"),
            (Wrong::Ftp, "neither http nor https"),
            (Wrong::FindsAnything, "does not exist, but was resolved"),
            (Wrong::OtherError, "not not_found"),
            (Wrong::IgnoresCancel, "expected Err(Cancelled)"),
            (Wrong::OfflineFails, "another error than Offline"),
        ] {
            let bad = Bad { inner: good(), wrong, resolves: AtomicUsize::new(0) };
            let said = failure(|| pollster::block_on(model_source(&bad, &reference())));
            assert!(said.contains(message), "{message}: {said}");
        }
        let bad = Bad { inner: good(), wrong: Wrong::NoFiles, resolves: AtomicUsize::new(0) };
        let said = failure(|| pollster::block_on(adapter_source(&bad, &reference())));
        assert!(said.contains("no files"), "{said}");
        let said = failure(|| pollster::block_on(model_source(&good(), &"hf:tiny".parse().unwrap())));
        assert!(said.contains("scheme"), "{said}");
    }

    #[test]
    fn a_local_file_and_a_request_pass() {
        struct Path(bool);
        const AT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        #[async_trait]
        impl ArtifactSource for Path {
            fn scheme(&self) -> &str {
                "disk"
            }
            async fn resolve(&self, r: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest> {
                if cx.cancel.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                let size = std::fs::metadata(r.locator()).map_err(|e| Error::not_found(r, e.to_string()))?.len();
                Manifest::new(r.clone(), want, "1", vec![ManifestFile::new("f", size)])
            }
            async fn open(&self, m: &Manifest, _: &ManifestFile, _: Range<u64>, _: &FetchContext) -> Result<Opened> {
                Ok(match self.0 {
                    true => Opened::Local(m.reference.locator().into()),
                    false => Opened::Request(llm_local_core::source::Request::new("https://host/f")),
                })
            }
        }
        impl ModelSource for Path {}
        let reference = ArtifactRef::new("disk", AT).unwrap();
        pollster::block_on(model_source(&Path(true), &reference));
        pollster::block_on(model_source(&Path(false), &reference));
    }
}
