use llm_local_core::{Manifest, ManifestFile, Want};
use proptest::prelude::*;

use super::*;

/// A file of `size` bytes, with a digest or without.
fn key(size: u64, digest: bool) -> FileKey {
    let mut file = ManifestFile::new("model.safetensors", size);
    if digest {
        file = file.with_digest(format!("sha256:{}", "5a".repeat(32)).parse().unwrap());
    }
    let manifest = Manifest::new("hf:a/b".parse().unwrap(), Want::Model, "1", vec![file]).unwrap();
    FileKey::new(&manifest, &manifest.files[0])
}

fn open(root: &Path, key: &FileKey, size: u64, segment: u64) -> Partial {
    let lock = FileLock::try_acquire(&key.lock(root)).unwrap().expect("the lock is free");
    Partial::open(root, key, size, lock, Some(segment)).unwrap()
}

/// The byte at `offset` of the version `epoch`.
fn byte(epoch: u8, offset: u64) -> u8 {
    (offset as u8).wrapping_mul(31).wrapping_add(epoch.wrapping_mul(97)).wrapping_add(1)
}

fn bytes(epoch: u8, range: Range<u64>) -> Vec<u8> {
    range.map(|offset| byte(epoch, offset)).collect()
}

/// Asserts that the file has the bytes of `epoch` wherever none is missing, and returns what is missing.
fn missing(partial: &Partial, epoch: u8) -> Vec<Range<u64>> {
    let data = fs::read(partial.path()).unwrap();
    assert_eq!(data.len() as u64, partial.size());
    let gaps = partial.writer().missing();
    for (offset, &found) in data.iter().enumerate() {
        let offset = offset as u64;
        if !gaps.iter().any(|gap| gap.contains(&offset)) {
            assert_eq!(found, byte(epoch, offset), "byte {offset} is said to be there");
        }
    }
    assert_eq!(partial.done_bytes(), partial.size() - gaps.iter().map(|g| g.end - g.start).sum::<u64>());
    gaps
}

#[derive(Debug, Clone)]
enum Step {
    /// Writes so many bytes where the range begins that is missing there, so many bytes back.
    Write(prop::sample::Index, u64, u64),
    Reopen,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (any::<prop::sample::Index>(), 0..60u64, 0..9u64).prop_map(|(at, length, back)| Step::Write(at, length, back)),
        2 => Just(Step::Reopen),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_missing_and_what_was_written_are_the_file(
        size in 0..200u64, segment in 1..60u64, digest: bool, steps in steps(),
    ) {
        let root = tempfile::tempdir().unwrap();
        let key = key(size, digest);
        let mut partial = open(root.path(), &key, size, segment);
        // What was written, byte by byte, as an observer who never reads a state.
        let (mut written, mut epoch) = (vec![false; size as usize], 0);
        for step in steps {
            match step {
                Step::Write(at, length, back) => {
                    let writer = partial.writer();
                    let gaps = writer.missing();
                    if gaps.is_empty() {
                        continue;
                    }
                    let start = gaps[at.index(gaps.len())].start;
                    let range = start.saturating_sub(back.min(start % segment))..(start + length).min(size);
                    let fresh = range.clone().filter(|&o| !written[o as usize]).count() as u64;
                    prop_assert_eq!(writer.write(range.start, &bytes(epoch, range.clone())).unwrap(), fresh);
                    range.for_each(|offset| written[offset as usize] = true);
                }
                Step::Reopen => {
                    drop(partial);
                    partial = open(root.path(), &key, size, 7);
                }
                Step::Restart => {
                    partial.restart(None).unwrap();
                    epoch += 1;
                    written.fill(false);
                }
            }
            let gaps = missing(&partial, epoch);
            let expected: Vec<_> = (0..size).filter(|&o| !written[o as usize]).collect();
            let found: Vec<_> = gaps.iter().cloned().flatten().collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(Partial::peek(root.path(), &key, size), partial.done_bytes());
            let prefix = written.iter().take_while(|&&w| w).count() as u64;
            prop_assert_eq!(partial.disk().progress().prefix, prefix);
            prop_assert_eq!(partial.is_complete(), prefix == size);
        }
    }
}

#[test]
fn at_any_moment_the_files_say_no_more_than_is_there() {
    let (root, size) = (tempfile::tempdir().unwrap(), 600_000);
    let key = key(size, true);
    let partial = open(root.path(), &key, size, 150_000);
    let folder = key.partial(root.path());
    std::thread::scope(|scope| {
        let writer = partial.writer();
        let threads: Vec<_> = writer
            .missing()
            .into_iter()
            .map(|gap| {
                let writer = writer.clone();
                scope.spawn(move || {
                    for at in gap.clone().step_by(500) {
                        writer.write(at, &bytes(0, at..at + 500)).unwrap();
                    }
                })
            })
            .collect();
        // What a kill at this moment would leave: never less of the data than of the state.
        while !threads.iter().all(|t| t.is_finished()) {
            let state = fs::read(folder.join("state")).unwrap();
            let data = fs::read(folder.join("data")).unwrap();
            let (state, _) = State::decode(&state, size).expect("the state is whole");
            for (index, done) in state.done.iter().enumerate() {
                let start = state.segments.range(index).start;
                let range = start..start + done;
                assert!(data[range.start as usize..range.end as usize] == bytes(0, range));
            }
        }
    });
    assert!(partial.is_complete() && missing(&partial, 0).is_empty());
}

#[test]
fn what_is_not_a_state_of_this_file_starts_over() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 9] = [
        ("state is garbage", |f| fs::write(f.join("state"), "garbage\n").unwrap()),
        ("state is empty", |f| fs::write(f.join("state"), "").unwrap()),
        ("state is huge", |f| {
            let whole = fs::read(f.join("state")).unwrap();
            fs::write(f.join("state"), [whole, vec![0; MOST_BYTES as usize]].concat()).unwrap();
        }),
        ("state is cut", |f| {
            let whole = fs::read(f.join("state")).unwrap();
            fs::write(f.join("state"), &whole[..whole.len() - 1]).unwrap();
        }),
        ("state is gone", |f| fs::remove_file(f.join("state")).unwrap()),
        ("data is gone", |f| fs::remove_file(f.join("data")).unwrap()),
        ("data is cut", |f| File::options().write(true).open(f.join("data")).unwrap().set_len(99).unwrap()),
        ("data is longer", |f| File::options().write(true).open(f.join("data")).unwrap().set_len(101).unwrap()),
        ("all is gone", |f| fs::remove_dir_all(f).unwrap()),
    ];
    for (name, damage) in damages {
        let root = tempfile::tempdir().unwrap();
        let key = key(100, true);
        let partial = open(root.path(), &key, 100, 30);
        partial.restart(Some("\"old\"")).unwrap();
        partial.writer().write(30, &bytes(0, 30..100)).unwrap();
        drop(partial);
        assert_eq!(open(root.path(), &key, 100, 30).validator().as_deref(), Some("\"old\""));
        damage(&key.partial(root.path()));
        assert_eq!(Partial::peek(root.path(), &key, 100), 0, "{name}");
        let partial = open(root.path(), &key, 100, 40);
        assert_eq!(partial.writer().missing(), [0..40, 40..80, 80..100], "{name}");
        assert_eq!((partial.validator(), partial.done_bytes()), (None, 0), "{name}");
        assert_eq!(fs::read(partial.path()).unwrap(), [0; 100], "{name}");
    }
}

#[test]
fn another_size_starts_over() {
    let root = tempfile::tempdir().unwrap();
    let key = key(10, true);
    open(root.path(), &key, 10, 5).writer().write(0, &bytes(0, 0..10)).unwrap();
    assert_eq!((Partial::peek(root.path(), &key, 10), Partial::peek(root.path(), &key, 11)), (10, 0));
    assert_eq!(open(root.path(), &key, 11, 5).done_bytes(), 0);
}

#[cfg(unix)]
#[test]
fn a_link_in_place_of_the_data_goes_and_what_it_leads_to_stays() {
    let root = tempfile::tempdir().unwrap();
    let (key, victim) = (key(6, true), root.path().join("victim"));
    fs::write(&victim, "victim").unwrap();
    fs::create_dir_all(key.partial(root.path())).unwrap();
    std::os::unix::fs::symlink(&victim, key.partial(root.path()).join("data")).unwrap();
    open(root.path(), &key, 6, 6).writer().write(0, b"abcdef").unwrap();
    assert_eq!(fs::read_to_string(victim).unwrap(), "victim");
}

#[test]
fn a_file_in_place_of_the_folder_is_named() {
    let root = tempfile::tempdir().unwrap();
    let key = key(6, true);
    fs::write(root.path().join("partials"), "").unwrap();
    let lock = FileLock::try_acquire(&key.lock(root.path())).unwrap().unwrap();
    let error = Partial::open(root.path(), &key, 6, lock, None).unwrap_err().to_string();
    assert!(error.contains(&format!("{}:", root.path().join("partials").display())), "{error}");
}

#[test]
fn bytes_that_cannot_be_placed_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let partial = open(root.path(), &key(20, true), 20, 10);
    let writer = partial.writer();
    assert_eq!(writer.write(0, b"ab").unwrap(), 2);
    for (offset, bytes, why) in
        [(3, &b"d"[..], "before them"), (11, b"d", "before them"), (19, b"de", "beyond"), (u64::MAX, b"d", "beyond")]
    {
        let error = writer.write(offset, bytes).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(&partial.path().display().to_string()), "{error}");
    }
    assert_eq!(partial.done_bytes(), 2);
    partial.restart(None).unwrap();
    let error = writer.write(0, b"x").unwrap_err().to_string();
    assert!(error.contains("began again"), "{error}");
    assert_eq!(fs::read(partial.path()).unwrap(), [0; 20]);
    assert_eq!((partial.done_bytes(), partial.writer().write(0, b"x").unwrap()), (0, 1));
}

#[test]
fn bytes_that_are_done_stay_as_they_are() {
    let root = tempfile::tempdir().unwrap();
    let partial = open(root.path(), &key(8, true), 8, 4);
    partial.writer().write(4, b"ef").unwrap();
    assert_eq!(partial.writer().write(0, b"abcdXXgh").unwrap(), 6);
    assert_eq!(fs::read(partial.path()).unwrap(), b"abcdefgh");
}

#[test]
fn a_validator_is_recorded_once_and_survives() {
    let root = tempfile::tempdir().unwrap();
    for digest in [true, false] {
        let key = key(8, digest);
        let partial = open(root.path(), &key, 8, 4);
        assert!(partial.adopt("\"a\"").unwrap() && partial.adopt("\"a\"").unwrap() && !partial.adopt("\"b\"").unwrap());
        partial.writer().write(0, b"abc").unwrap();
        drop(partial);
        let partial = open(root.path(), &key, 8, 4);
        assert_eq!((partial.validator().as_deref(), partial.done_bytes()), (Some("\"a\""), 3));
        // Bytes came without one: only a digest tells whether they go with others.
        partial.restart(None).unwrap();
        partial.writer().write(0, b"xyz").unwrap();
        assert_eq!(partial.adopt("\"b\"").unwrap(), digest);
        partial.writer().write(3, b"w").unwrap();
        drop(partial);
        let partial = open(root.path(), &key, 8, 4);
        assert_eq!((partial.validator().is_some(), partial.done_bytes()), (digest, 4));
    }
}

#[test]
fn the_lock_is_held_until_the_last_writer_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let key = key(8, true);
    let partial = open(root.path(), &key, 8, 4);
    let late = partial.writer();
    drop(partial);
    assert!(FileLock::try_acquire(&key.lock(root.path())).unwrap().is_none());
    drop(late);
    assert!(FileLock::try_acquire(&key.lock(root.path())).unwrap().is_some());
}

#[test]
fn offsets_beyond_four_gibibytes_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let size = (5 << 30) + 3;
    let key = key(size, true);
    let lock = FileLock::try_acquire(&key.lock(root.path())).unwrap().unwrap();
    let partial = Partial::open(root.path(), &key, size, lock, None).unwrap();
    let last = partial.writer().missing().last().cloned().unwrap();
    assert!(last.start > u64::from(u32::MAX) && last.end == size);
    partial.writer().write(last.start, b"abc").unwrap();
    drop(partial);
    let partial = open(root.path(), &key, size, 1);
    assert_eq!(partial.writer().missing().last(), Some(&(last.start + 3..size)));
    let mut read = [0; 3];
    assert_eq!(partial.disk().read(&mut read, last.start).unwrap(), 3);
    assert_eq!((&read, partial.done_bytes()), (b"abc", 3));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_what_is_done_stays() {
    let root = tempfile::tempdir().unwrap();
    let key = key(8, true);
    let mut partial = open(root.path(), &key, 8, 4);
    partial.writer().write(0, b"abc").unwrap();
    Arc::get_mut(&mut partial.disk).unwrap().data = File::options().write(true).open("/dev/full").unwrap();
    let error = partial.writer().write(3, b"d").unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull), "{error}");
    assert!(error.to_string().contains(&partial.path().display().to_string()), "{error}");
    assert_eq!(partial.done_bytes(), 3);
    drop(partial);
    let partial = open(root.path(), &key, 8, 4);
    assert_eq!((partial.done_bytes(), fs::read(partial.path()).unwrap()), (3, b"abc\0\0\0\0\0".to_vec()));
}

#[test]
fn a_removed_partial_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let key = key(8, true);
    let partial = open(root.path(), &key, 8, 4);
    fs::remove_dir_all(key.partial(root.path())).unwrap();
    // Somebody else was here already.
    partial.remove().unwrap();
    open(root.path(), &key, 8, 4).remove().unwrap();
    assert!(!key.partial(root.path()).exists() && root.path().join("CACHEDIR.TAG").exists());
}
