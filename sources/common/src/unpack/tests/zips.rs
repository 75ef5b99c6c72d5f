//! Zips that are no plain collection of files.

use super::*;

/// A zip with a good file before the one called `name`.
fn with(name: &str) -> Vec<u8> {
    let stand_in = "x".repeat(name.len());
    let bytes = zip_of(&[("adapter_config.json", CONFIG), (&stand_in, CONFIG)]);
    replaced(&bytes, stand_in.as_bytes(), name.as_bytes())
}

/// Where the record at the end is.
fn end(zip: &[u8]) -> usize {
    zip.windows(4).rposition(|bytes| bytes == b"PK\x05\x06").unwrap()
}

/// Where the headers in the directory are.
fn central(zip: &[u8]) -> Vec<usize> {
    (0..zip.len()).filter(|at| zip[*at..].starts_with(b"PK\x01\x02")).collect()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    for name in [
        "../evil.json",
        "a/../../evil.json",
        "/tmp/evil.json",
        "C:evil.json",
        "C:\\evil.json",
        "..\\evil.json",
        "a\\evil.json",
        "a//b.json",
        "nul.json",
        "evil.json.",
        "a\0b.json",
        "..",
        "../README.md",
        "__MACOSX/../../evil.json",
        "dir\\",
    ] {
        assert_refused("a.zip", &with(name), &["file name", "`"]);
    }
    for folder in ["../", "/etc/", "a/../../b/", "nul/"] {
        let mut zip = with(folder);
        let at = central(&zip)[1];
        put(&mut zip, at + 38, &(0o040_755u32 << 16).to_le_bytes());
        assert_refused("a.zip", &zip, &["file name"]);
    }
}

#[test]
fn links_and_devices_are_refused() {
    for (mode, says) in [
        (0o120_777u32, "symbolic link"),
        (0o060_666, "mode"),
        (0o010_666, "mode"),
        (0o140_666, "mode"),
        (0o040_755, "mode"),
    ] {
        for system in [0, 3, 19] {
            let mut zip = with("adapter_model.safetensors");
            let at = central(&zip)[1];
            zip[at + 5] = system;
            put(&mut zip, at + 38, &(mode << 16).to_le_bytes());
            assert_refused("a.zip", &zip, &["`adapter_model.safetensors`", says]);
        }
    }
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.add_symlink("a.json", "/etc/passwd", SimpleFileOptions::default()).unwrap();
    assert_refused("a.zip", &writer.finish().unwrap().into_inner(), &["symbolic link"]);
}

#[test]
fn names_that_meet_are_refused() {
    for (names, says) in [
        (["a.json", "A.JSON"], "capital letters"),
        (["d/a.json", "D/b.json"], "capital letters"),
        (["a.json", "a.json/b.json"], "folder"),
        (["a.json/b.json", "a.json"], "folder"),
    ] {
        assert_refused("a.zip", &zip_of(&names.map(|name| (name, CONFIG))), &[says]);
    }
    let twice = replaced(&zip_of(&[("a.json", CONFIG), ("b.json", WEIGHTS)]), b"b.json", b"a.json");
    assert_refused("a.zip", &twice, &["duplicate"]);
}

#[test]
fn entries_that_share_bytes_are_refused() {
    // One body for two entries, the directory of which is right in itself.
    let zip = zip_of(&[("a.json", CONFIG), ("b.json", CONFIG)]);
    let [first, second] = central(&zip)[..] else { panic!() };
    let mut same = zip.clone();
    let offset = zip[first + 42..first + 46].to_vec();
    put(&mut same, second + 42, &offset);
    assert_refused("a.zip", &same, &["contradict"]);
    // The same with one name, so that the local header fits: a quoted body.
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("a.json", SimpleFileOptions::default()).unwrap();
    writer.write_all(&vec![b'0'; 100_000]).unwrap();
    writer.shallow_copy_file("a.json", "b.json").unwrap();
    assert_refused("a.zip", &writer.finish().unwrap().into_inner(), &["contradict"]);
    // A body that goes on into the next entry.
    let stored = zip_by(&[("a.json", CONFIG), ("b.json", CONFIG)], CompressionMethod::Stored);
    let [first, _] = central(&stored)[..] else { panic!() };
    let mut longer = stored;
    let size = (CONFIG.len() as u32 + 40).to_le_bytes();
    for at in [first + 20, first + 24, 18, 22] {
        put(&mut longer, at, &size);
    }
    assert_refused("a.zip", &longer, &["overlapping"]);
}

#[test]
fn headers_that_contradict_each_other_are_refused() {
    let zip = zip_of(&ADAPTER);
    // Another name, method or size at the file than in the directory.
    let name = zip.windows(19).position(|bytes| bytes == b"adapter_config.json").unwrap();
    for (at, value) in [(name, &b"X"[..]), (8, &[0]), (22, &[9, 0, 0, 0])] {
        let mut bad = zip.clone();
        put(&mut bad, at, value);
        assert_refused("a.zip", &bad, &["contradict"]);
    }
    // A file that the directory does not list.
    let mut hidden = zip.clone();
    let end = end(&zip);
    let [first, second] = central(&zip)[..] else { panic!() };
    let first_size = second - first;
    hidden.drain(first..second);
    let end = end - first_size;
    for at in [end + 8, end + 10] {
        put(&mut hidden, at, &1u16.to_le_bytes());
    }
    let size = u32::from_le_bytes(hidden[end + 12..end + 16].try_into().unwrap()) - first_size as u32;
    put(&mut hidden, end + 12, &size.to_le_bytes());
    assert_refused("a.zip", &hidden, &["missing from central directory"]);
}

#[test]
fn sizes_that_are_claimed_are_not_believed() {
    let bomb = vec![0; 3 << 20];
    let zip = zip_of(&[("a.json", CONFIG), ("b.txt", &bomb)]);
    assert!(zip.len() < 20_000);
    assert_refused("a.zip", &zip, &["1048576 bytes allowed for a file", "`b.txt`"]);
    // The same, with a size that is allowed in both headers.
    let mut lying = zip.clone();
    let local = zip.windows(4).rposition(|bytes| bytes == b"PK\x03\x04").unwrap();
    for at in [local + 22, central(&zip)[1] + 24] {
        put(&mut lying, at, &1000u32.to_le_bytes());
    }
    assert_refused("a.zip", &lying, &["`b.txt`", "larger than its declared"]);
    // A size that is larger than the content.
    let small = zip_of(&[("a.json", CONFIG)]);
    let mut lying = small.clone();
    for at in [22, central(&small)[0] + 24] {
        put(&mut lying, at, &1000u32.to_le_bytes());
    }
    assert_refused("a.zip", &lying, &["should have 1000 bytes"]);
    // A compressed size beyond the file.
    for size in [u32::MAX - 1, 100_000] {
        let mut lying = small.clone();
        for at in [18, central(&small)[0] + 20] {
            put(&mut lying, at, &size.to_le_bytes());
        }
        assert_refused("a.zip", &lying, &["overlapping"]);
    }
    // Content that is not what the checksum says.
    let stored = zip_by(&[("a.json", CONFIG)], CompressionMethod::Stored);
    assert_refused("a.zip", &replaced(&stored, b"LORA", b"lora"), &["`a.json`", "checksum"]);
}

#[test]
fn the_limits_on_all_files_hold_for_what_comes_out() {
    let large = vec![b'x'; 1 << 20];
    let names = ["0.txt", "1.txt", "2.txt", "3.txt"];
    let files: Vec<_> = names.iter().map(|name| (*name, &large[..])).collect();
    assert_refused("a.zip", &zip_of(&files), &["3145728 bytes allowed in all", "`3.txt`"]);
    assert_eq!(paths("a.zip", &zip_of(&files[..3])).len(), 3);
    let many: Vec<_> = (0..21).map(|i| (format!("{i}.json"), CONFIG)).collect();
    let many: Vec<_> = many.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    assert_refused("a.zip", &zip_of(&many), &["21 entries, and 20 are allowed", "`Limits::with_entries`"]);
    assert_eq!(paths("a.zip", &zip_of(&many[..20])).len(), 20);
    assert_refused(
        "a.zip",
        &zip_of(&[("a/b/c/d/e/f/g/h/i.json", CONFIG)]),
        &["more than 8 parts", "`Limits::with_depth`"],
    );
    assert_refused(
        "a.zip",
        &zip_of(&[("x".repeat(600).as_str(), CONFIG)]),
        &["more than 512 bytes", "`Limits::with_path_bytes`"],
    );
}

/// A zip that says `entries` and `size` of its directory in records of zip64.
fn zip64(entries: u64, size: u64, start: u64) -> Vec<u8> {
    let zip = zip_of(&ADAPTER);
    let end = end(&zip);
    let mut bytes = zip[..end].to_vec();
    bytes.extend(b"PK\x06\x06");
    bytes.extend(44u64.to_le_bytes());
    bytes.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for value in [entries, entries, size, start] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(b"PK\x06\x07\0\0\0\0");
    bytes.extend((end as u64).to_le_bytes());
    bytes.extend([1, 0, 0, 0]);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([0xff; 12]);
    bytes.extend([0, 0]);
    bytes
}

#[test]
fn zip64_is_read_and_its_absurd_numbers_are_not_believed() {
    let zip = zip_of(&ADAPTER);
    let (end, start) = (end(&zip) as u64, central(&zip)[0] as u64);
    assert_eq!(paths("a.zip", &zip64(2, end - start, start)).len(), 2);
    assert_refused("a.zip", &zip64(u64::MAX, end - start, start), &["18446744073709551615 entries"]);
    assert_refused("a.zip", &zip64(1 << 40, end - start, start), &["1099511627776 entries"]);
    assert_refused("a.zip", &zip64(2, u64::MAX, start), &["its directory has"]);
    assert_refused("a.zip", &zip64(2, end - start, u64::MAX), &["not where it says"]);
    assert_refused("a.zip", &zip64(3, end - start, start), &["no whole zip"]);
    // A record that is not there.
    let mut none = zip.clone();
    let at = end as usize + 10;
    put(&mut none, at, &[0xff, 0xff]);
    assert_refused("a.zip", &none, &["zip64"]);
    let mut elsewhere = zip64(2, end - start, start);
    let at = end as usize + 56 + 8;
    put(&mut elsewhere, at, &u64::MAX.to_le_bytes());
    assert_refused("a.zip", &elsewhere, &["zip64"]);
}

#[test]
fn a_zip_ends_with_its_record_and_begins_with_an_entry() {
    let zip = zip_of(&ADAPTER);
    assert_refused("a.zip", &[zip.clone(), b"more".to_vec()].concat(), &["follow its end"]);
    assert_refused("a.zip", &[zip.clone(), zip.clone()].concat(), &["exactly one time"]);
    assert_refused("a.zip", &[b"MZ\x90\0".to_vec(), zip.clone()].concat(), &["no archive"]);
    // Bytes in front that look like an entry: what a program at the end of another file would be.
    let first = &zip[..central(&zip)[0]];
    assert_refused("a.zip", &[first, &zip].concat(), &["not where it says"]);
    // A comment is fine.
    let mut comment = zip.clone();
    let at = end(&zip) + 20;
    put(&mut comment, at, &3u16.to_le_bytes());
    comment.extend(b"abc");
    assert_eq!(paths("a.zip", &comment).len(), 2);
    let empty = ZipWriter::new(Cursor::new(Vec::new())).finish().unwrap().into_inner();
    assert_refused("a.zip", &empty, &["no file of a model"]);
}

#[test]
fn encryption_other_compressions_and_volumes_are_named() {
    let zip = zip_of(&[("a.json", CONFIG)]);
    let at = central(&zip)[0];
    let mut encrypted = zip.clone();
    encrypted[6] |= 1;
    encrypted[at + 8] |= 1;
    assert_refused("a.zip", &encrypted, &["`a.json`", "encrypted"]);
    for (method, says) in [(12u16, "12"), (14, "14"), (93, "93"), (9, "9"), (99, "99"), (6, "6")] {
        let mut other = zip.clone();
        put(&mut other, 8, &method.to_le_bytes());
        put(&mut other, at + 10, &method.to_le_bytes());
        let error = unpacked("a.zip", &other).unwrap_err();
        assert_eq!(error.code(), "unsupported_model_format", "{says}: {error}");
        assert!(error.to_string().contains("compressed by"), "{error}");
    }
    let end = end(&zip);
    for at in [4, 8] {
        let mut volume = zip.clone();
        volume[end + at] = 2;
        assert_refused("a.zip", &volume, &["one volume"]);
    }
}

#[test]
fn files_of_no_known_kind_are_refused_by_name() {
    assert_refused("a.zip", &with("train.py"), &["`train.py`", "no file of a model"]);
    assert_refused("a.zip", &with("x/adapter_model.bin"), &["`x/adapter_model.bin`", "pickle"]);
}
