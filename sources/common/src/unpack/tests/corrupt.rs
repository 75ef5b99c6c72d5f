//! Archives that were cut off or changed anywhere.

use proptest::prelude::*;

use super::*;

/// Small, so that every byte can be tried.
fn small() -> Vec<(&'static str, Vec<u8>)> {
    archives(&[("d/a.json", b"{}"), ("d/b.txt", b"text text text text text")])
}

#[test]
fn an_archive_that_is_cut_off_anywhere_is_refused() {
    for (name, bytes) in small() {
        for length in 0..bytes.len() {
            let result = unpacked(name, &bytes[..length]);
            // The second block of a tar's end mark says nothing that the first has not said.
            let is_whole = name == "a.tar" && length >= bytes.len() - 512;
            // Half a block is no block of zeros, but zeros after the end mark are fine.
            assert_eq!(result.is_ok(), is_whole, "{name} of {length} bytes: {result:?}");
        }
    }
}

#[test]
fn a_byte_that_is_changed_anywhere_never_leads_outside() {
    for (name, bytes) in small() {
        for at in 0..bytes.len() {
            // A tar is mostly zeros.
            let changes = if name == "a.tar" { &[0x41][..] } else { &[0x01, 0x80, 0xff] };
            for change in changes {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                // What it checks is in there.
                let _ = unpacked(name, &changed);
            }
        }
    }
}

#[test]
fn content_that_a_checksum_covers_is_never_wrong() {
    let expected = BTreeMap::from([("a.json".to_owned(), 2), ("b.txt".to_owned(), 24)]);
    let whole = small();
    let digests = |name: &str, bytes: &[u8]| {
        unpacked(name, bytes).map(|files| files.into_iter().map(|f| (f.path, f.digest)).collect::<BTreeMap<_, _>>())
    };
    for (name, bytes) in whole.iter().filter(|(name, _)| *name != "a.tar") {
        let right = digests(name, bytes).unwrap();
        assert_eq!(right.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            if let Ok(found) = digests(name, &changed) {
                assert_eq!(found.values().collect::<Vec<_>>(), right.values().collect::<Vec<_>>(), "{name} at {at}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn bytes_that_are_changed_cut_moved_or_doubled_never_lead_outside(
        which in 0..6usize,
        edits in prop::collection::vec((0..4u8, any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (name, mut bytes) = archives(&ADAPTER).swap_remove(which);
        for (edit, one, other, byte) in edits {
            if bytes.is_empty() {
                break;
            }
            let (one, other) = (one.index(bytes.len()), other.index(bytes.len()));
            let (from, to) = (one.min(other), one.max(other));
            match edit {
                0 => bytes[one] = byte,
                1 => drop(bytes.drain(from..to.min(from + 64))),
                2 => bytes.copy_within(from..to.min(from + 64), 0),
                _ => {
                    let copy = bytes[from..to.min(from + 600)].to_vec();
                    bytes.splice(one..one, copy);
                }
            }
        }
        let _ = unpacked(name, &bytes);
    }

    #[test]
    fn any_bytes_behind_a_magic_number_never_panic(
        which in 0..3usize,
        rest in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let (name, magic) = [
            ("a.zip", &b"PK\x03\x04"[..]),
            ("a.tar.gz", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0]),
            ("a.tar.zst", &[0x28, 0xb5, 0x2f, 0xfd]),
        ][which];
        let _ = unpacked(name, &[magic, &rest].concat());
    }

    #[test]
    fn any_files_come_out_as_they_went_in(
        files in prop::collection::btree_map("[a-z]{1,8}(/[a-z]{1,8}){0,2}\\.(json|txt|safetensors)", prop::collection::vec(any::<u8>(), 0..3000), 1..6),
    ) {
        let folders_meet = files.keys().any(|a| files.keys().any(|b| b.starts_with(&format!("{a}/"))));
        prop_assume!(!folders_meet && !files.keys().any(|path| kind::kind(path) != kind::Kind::Kept));
        let list: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
        for (name, bytes) in archives(&list) {
            let unpacked = unpacked(name, &bytes);
            // Names that no system takes for a file's are refused.
            let reserved = files.keys().any(|path| llm_local_core::manifest::check_relative_path(path).is_err());
            prop_assert_eq!(unpacked.is_err(), reserved);
            if let Ok(unpacked) = unpacked {
                let digests: Vec<_> = unpacked.iter().map(|file| file.digest).collect();
                let expected: Vec<_> = files.values().map(|b| Digest::Sha256(Sha256::digest(b).into())).collect();
                prop_assert_eq!(digests, expected);
            }
        }
    }
}
