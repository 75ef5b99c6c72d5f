use llm_local_core::{Manifest, ManifestFile, Want};
use proptest::prelude::*;

use super::*;
use crate::disk::{FileKey, FileLock};

const SHA: Digest = Digest::Sha256([0; 32]);
const GIT: Digest = Digest::GitSha1([0; 20]);

fn open(root: &Path, size: usize, segment: u64) -> Partial {
    let file = ManifestFile::new("x", size as u64).with_digest(SHA);
    let manifest = Manifest::new("hf:a/b".parse().unwrap(), Want::Model, "1", vec![file]).unwrap();
    let key = FileKey::new(&manifest, &manifest.files[0]);
    let lock = FileLock::try_acquire(&key.lock(root)).unwrap().expect("the lock is free");
    Partial::open(root, &key, size as u64, lock, Some(segment)).unwrap()
}

/// By the crates, in one go.
fn one_shot(bytes: &[u8], kind: &Digest) -> Digest {
    match kind {
        Digest::GitSha1(_) => {
            let blob = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
            Digest::GitSha1(Sha1::digest(blob).into())
        }
        _ => Digest::Sha256(Sha256::digest(bytes).into()),
    }
}

fn finish(mut hasher: Hasher) -> Result<Digest> {
    pollster::block_on(hasher.digest())
}

fn whole(root: &Path, bytes: &[u8], kind: Option<&Digest>) -> String {
    let partial = open(root, bytes.len(), 5);
    let hasher = Hasher::start(&partial, kind).unwrap();
    partial.writer().write(0, bytes).unwrap();
    let digest = finish(hasher).unwrap();
    assert_eq!(digest_file(partial.path(), kind).unwrap(), digest);
    assert_eq!(digest_bytes(bytes, kind).unwrap(), digest);
    partial.remove().unwrap();
    digest.to_string()
}

#[test]
fn digests_are_those_of_git_and_sha256sum() {
    let root = tempfile::tempdir().unwrap();
    // printf 'hello world\n' | git hash-object --stdin; the same for nothing; then by sha256sum.
    assert_eq!(whole(root.path(), b"hello world\n", Some(&GIT)), "git-sha1:3b18e512dba79e4c8300dd08aeb37f8e728b8dad");
    assert_eq!(whole(root.path(), b"", Some(&GIT)), "git-sha1:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    let sha = "sha256:a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447";
    assert_eq!(whole(root.path(), b"hello world\n", Some(&SHA)), sha);
    assert_eq!(whole(root.path(), b"hello world\n", None), sha);
}

#[test]
fn files_of_many_buffers_are_hashed_as_they_come() {
    let root = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..3 * BUFFER + 12_345).map(|i| ((i * i) >> 7) as u8).collect();
    for kind in [SHA, GIT] {
        let partial = open(root.path(), bytes.len(), 300_000);
        let hasher = Hasher::start(&partial, Some(&kind)).unwrap();
        let writer = partial.writer();
        // The last segment first.
        for gap in writer.missing().into_iter().rev() {
            for at in gap.clone().step_by(70_000) {
                let end = (at + 70_000).min(gap.end);
                writer.write(at, &bytes[at as usize..end as usize]).unwrap();
            }
        }
        assert_eq!(finish(hasher).unwrap(), one_shot(&bytes, &kind));
        assert_eq!(digest_file(partial.path(), Some(&kind)).unwrap(), one_shot(&bytes, &kind));
        drop(writer);
        partial.remove().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_order_of_writes_gives_the_digest_of_the_file(
        bytes in prop::collection::vec(any::<u8>(), 1..600),
        segment in 1..200u64,
        git: bool,
        picks in prop::collection::vec((any::<usize>(), 1..90usize), 0..40),
        start in 0..40usize,
        reopen in 0..40usize,
        restart in 0..80usize,
    ) {
        let (root, kind) = (tempfile::tempdir().unwrap(), if git { GIT } else { SHA });
        let mut partial = open(root.path(), bytes.len(), segment);
        let mut hasher = None;
        // Whatever the picks leave out comes in the end, in order.
        let rest = std::iter::repeat((0, 90));
        for (step, (pick, length)) in picks.into_iter().chain(rest).enumerate() {
            if step == reopen {
                hasher = None;
                drop(partial);
                partial = open(root.path(), bytes.len(), segment);
            }
            if step == start {
                hasher = Some(Hasher::start(&partial, Some(&kind)).unwrap());
            }
            if step == restart {
                // What was there so far is of another version.
                partial.restart(None).unwrap();
            }
            let writer = partial.writer();
            let gaps = writer.missing();
            if gaps.is_empty() && step > restart {
                break;
            }
            let Some(gap) = gaps.get(pick % gaps.len().max(1)) else { continue };
            let at = gap.start as usize;
            let mut piece = bytes[at..(at + length).min(bytes.len())].to_vec();
            if step < restart {
                piece.iter_mut().for_each(|b| *b = !*b);
            }
            writer.write(gap.start, &piece).unwrap();
        }
        let hasher = hasher.map_or_else(|| Hasher::start(&partial, Some(&kind)), Ok).unwrap();
        prop_assert_eq!(finish(hasher).unwrap(), one_shot(&bytes, &kind));
    }
}

#[test]
fn a_gap_at_the_end_is_an_error_that_names_the_file() {
    let root = tempfile::tempdir().unwrap();
    let partial = open(root.path(), 20, 5);
    partial.writer().write(5, &[1; 15]).unwrap();
    let error = finish(Hasher::start(&partial, None).unwrap()).unwrap_err().to_string();
    assert!(error.contains("bytes are missing: 0 of 20"), "{error}");
    assert!(error.contains(&partial.path().display().to_string()), "{error}");
}

#[test]
fn a_file_that_somebody_cut_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let partial = open(root.path(), 20, 5);
    partial.writer().write(0, &[1; 20]).unwrap();
    File::options().write(true).open(partial.path()).unwrap().set_len(7).unwrap();
    let error = finish(Hasher::start(&partial, None).unwrap()).unwrap_err().to_string();
    assert!(error.contains("the file was cut: 7 of 20"), "{error}");
}

#[test]
fn dropping_a_hasher_ends_its_thread_whatever_it_is_at() {
    let root = tempfile::tempdir().unwrap();
    let partial = open(root.path(), 20, 5);
    let before = Arc::strong_count(partial.disk());
    for round in 0..200 {
        // It holds on until it is asked, so that a restart is not missed.
        if round == 100 {
            partial.writer().write(0, &[1; 20]).unwrap();
        }
        let hasher = Hasher::start(&partial, None).unwrap();
        for _ in 0..round % 100 {
            std::thread::yield_now();
        }
        assert!(Arc::strong_count(partial.disk()) > before);
        drop(hasher);
        // Runs for ever if the thread does.
        while Arc::strong_count(partial.disk()) > before {
            std::thread::yield_now();
        }
    }
}

#[test]
fn once_it_has_ended_nobody_reads_the_file_any_more() {
    const SIZE: usize = 4 << 20;
    let folder = tempfile::tempdir().unwrap();
    let partial = open(folder.path(), SIZE, SIZE as u64);
    partial.writer().write(0, &vec![7; SIZE]).unwrap();
    let network = crate::network::Network::new(Default::default());
    for _ in 0..20 {
        // It has begun to read, and has long to go.
        let hasher = Hasher::start(&partial, Some(&SHA)).unwrap();
        std::thread::yield_now();
        pollster::block_on(network.run(async move {
            hasher.end().await;
            Ok(())
        }))
        .unwrap();
        assert_eq!(Arc::strong_count(partial.disk()), 1);
    }
}
