//! Formats that are not what they are called, and compressed streams that are broken or without end.

use super::*;

#[test]
fn name_and_bytes_have_to_agree() {
    let zip = zip_of(&ADAPTER);
    let tar = tar_of(&ADAPTER);
    let (gz, zst) = (gz(&tar), zst(&tar));
    for (name, bytes, says) in [
        ("a.zip", &gz, ["that of a zip", "those of a gzip file"]),
        ("a.zip", &tar, ["that of a zip", "those of a tar"]),
        ("a.tar.gz", &zip, ["that of a gzip file", "those of a zip"]),
        ("a.tar.gz", &zst, ["that of a gzip file", "those of a zstd file"]),
        ("a.tar.gz", &tar, ["that of a gzip file", "those of a tar"]),
        ("a.tar.zst", &gz, ["that of a zstd file", "those of a gzip file"]),
        ("a.tar", &gz, ["that of a tar", "those of a gzip file"]),
        ("a.zip", &b"<!DOCTYPE html>".to_vec(), ["that of a zip", "[3c, 21, 44"]),
        ("a.tar", &Vec::new(), ["that of a tar", "an empty file"]),
    ] {
        assert_refused(name, bytes, &says);
    }
    for name in ["a.rar", "a.7z", "a.tar.xz", "a.tar.bz2", "a.gz", "a.zst", "zip", "a"] {
        assert_refused(name, &zip, &["`.tar.gz`"]);
    }
}

#[test]
fn a_stream_without_end_is_refused() {
    let zeros = vec![0; 64 << 20];
    let bomb = [&header(b"a.txt", b'0', 64 << 20)[..], &zeros].concat();
    // Skipped, and not written: as a header would claim it, it is refused before.
    let hidden = [&header(b"README", b'0', 64 << 20)[..], &zeros].concat();
    // After the end.
    let padding = [tar_of(&ADAPTER), zeros].concat();
    for bytes in [&bomb, &hidden, &padding] {
        for (name, packed) in [("a.tar.gz", gz(bytes)), ("a.tar.zst", zst(bytes))] {
            assert!(packed.len() < 1 << 20);
            let error = unpacked(name, &packed).unwrap_err().to_string();
            assert!(error.contains("1048576 bytes") || error.contains("follows its end mark"), "{error}");
        }
    }
}

#[test]
fn limits_hold_where_a_header_claims_less_than_comes() {
    // The sum over files, each of which is as large as it says.
    let large = vec![0; 1 << 20];
    let names = ["0.txt", "1.txt", "2.txt", "3.txt", "4.txt"];
    let files: Vec<_> = names.iter().map(|name| (*name, &large[..])).collect();
    let tar = tar_of(&files);
    for (name, packed) in [("a.tar.gz", gz(&tar)), ("a.tar.zst", zst(&tar))] {
        assert!(packed.len() < 100_000);
        assert_refused(name, &packed, &["3145728 bytes allowed in all", "`3.txt`"]);
        let limits = limits().with_total_bytes(5 << 20);
        assert_eq!(unpacked_within(name, &packed, &limits).unwrap().len(), 5);
        assert!(unpacked_within(name, &packed, &limits.with_total_bytes((5 << 20) - 1)).is_err());
    }
}

#[test]
fn what_follows_a_compressed_stream_is_refused() {
    let tar = tar_of(&ADAPTER);
    for (name, packed) in [("a.tar.gz", gz(&tar)), ("a.tar.zst", zst(&tar))] {
        for garbage in [&b"garbage"[..], b"x", &[0; 512]] {
            assert_refused(name, &[&packed[..], garbage].concat(), &["does not end as it should"]);
        }
    }
}

#[test]
fn a_checksum_that_does_not_fit_is_found() {
    let tar = tar_of(&ADAPTER);
    let mut packed = gz(&tar);
    let at = packed.len() - 8;
    packed[at] ^= 1;
    assert_refused("a.tar.gz", &packed, &["does not end as it should"]);
    let mut packed = zst(&tar);
    // The encoder writes one, over all that was read.
    let at = packed.len() - 1;
    packed[at] ^= 1;
    assert_refused("a.tar.zst", &packed, &["checksum"]);
}

#[test]
fn a_window_that_is_claimed_is_not_reserved() {
    // Windows of 2 TiB and of 256 MiB, and a content of 2^62 bytes in one segment.
    let claims = [&[0x00, 31 << 3][..], &[0x00, 18 << 3], &[0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40]];
    for claim in claims {
        let packed = [&[0x28, 0xb5, 0x2f, 0xfd][..], claim, &[1, 0, 0]].concat();
        let error = unpacked("a.tar.zst", &packed).unwrap_err().to_string();
        assert!(error.to_lowercase().contains("window"), "{error}");
    }
    // A dictionary that nobody has.
    let packed = [&[0x28, 0xb5, 0x2f, 0xfd, 0x01, 0x50, 7][..], &[1, 0, 0]].concat();
    assert_refused("a.tar.zst", &packed, &["dict"]);
}

#[test]
fn a_zstd_frame_holds_what_it_claims_and_a_skipped_one_is_whole() {
    // A raw block of the whole tar, in one segment that claims a byte more than there is.
    let tar = tar_of(&ADAPTER);
    let frame = |claimed: u16| {
        let block = (u32::try_from(tar.len()).unwrap() << 3 | 1).to_le_bytes();
        [&[0x28, 0xb5, 0x2f, 0xfd, 0x60][..], &(claimed - 256).to_le_bytes(), &block[..3], &tar].concat()
    };
    let size = u16::try_from(tar.len()).unwrap();
    assert_eq!(paths("a.tar.zst", &frame(size)).len(), 2);
    assert_refused("a.tar.zst", &frame(size + 1), &["claims"]);
    let cut_off = [&frame(size)[..], &[0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0], b"abc"].concat();
    assert_refused("a.tar.zst", &cut_off, &["does not end as it should"]);
}
