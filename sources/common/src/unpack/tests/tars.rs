//! Tars that are no plain collection of files.

use super::*;

/// A tar with a good file before the bad entry, which must be gone too, and one after it.
fn with(bad: Vec<u8>) -> Vec<u8> {
    tar(&[entry(b"adapter_config.json", b'0', CONFIG), bad, entry(b"tokenizer.json", b'0', CONFIG)])
}

/// `key=value` as pax writes it.
fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes()))).unwrap();
    let bytes = builder.into_inner().unwrap();
    bytes[..bytes.len() - 1024].to_vec()
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    for name in [
        "../evil.json",
        "a/../../evil.json",
        "a/../b.json",
        "/tmp/evil.json",
        "//evil.json",
        "./../evil.json",
        ".//evil.json",
        "C:evil.json",
        "C:\\evil.json",
        "..\\evil.json",
        "a\\evil.json",
        "a//b.json",
        "nul.json",
        "a/com1.json",
        "evil.json.",
        "e\tvil.json",
        "..",
        "../README.md",
        "__MACOSX/../../evil.json",
    ] {
        assert_refused("a.tar", &with(entry(name.as_bytes(), b'0', CONFIG)), &["file name", "`"]);
        assert_refused("a.tar.gz", &gz(&with(entry(name.as_bytes(), b'0', CONFIG))), &["file name"]);
        let by_pax = [pax(&[("path", name)]), entry(b"good.json", b'0', CONFIG)].concat();
        assert_refused("a.tar", &with(by_pax), &["file name"]);
        let gnu = [name.as_bytes(), b"\0"].concat();
        let by_gnu = [entry(b"././@LongLink", b'L', &gnu), entry(b"good.json", b'0', CONFIG)].concat();
        assert_refused("a.tar", &with(by_gnu), &["file name"]);
    }
    for folder in ["../", "/", "/etc/", "a/../../b/", "..", "nul/"] {
        assert_refused("a.tar", &with(entry(folder.as_bytes(), b'5', b"")), &["file name"]);
    }
    let nul = [pax(&[("path", "a\0b.json")]), entry(b"good.json", b'0', CONFIG)].concat();
    assert_refused("a.tar", &with(nul), &["control character"]);
    assert_refused("a.tar", &with(entry(b"\xff\xfe.json", b'0', CONFIG)), &["is no text"]);
}

#[test]
fn links_and_devices_are_refused() {
    for (kind, says) in [
        (b'1', "hard link"),
        (b'2', "symbolic link"),
        (b'3', "device"),
        (b'4', "device"),
        (b'6', "pipe"),
        (b'7', "kind 0x37"),
        (b'V', "kind 0x56"),
    ] {
        let mut bad = entry(b"adapter_model.safetensors", kind, b"");
        bad[157..168].copy_from_slice(b"/etc/passwd");
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes().copy_from_slice(&bad[..512]);
        header.set_cksum();
        bad[..512].copy_from_slice(header.as_bytes());
        assert_refused("a.tar", &with(bad.clone()), &["`adapter_model.safetensors`", says]);
        // A file below what would be the link.
        let below = entry(b"adapter_model.safetensors/x.json", b'0', CONFIG);
        assert_refused("a.tar", &with([bad, below].concat()), &[says]);
    }
}

#[test]
fn sparse_files_are_refused() {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..6].copy_from_slice(b"a.json");
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(0);
    // A terabyte of nothing.
    header.as_gnu_mut().unwrap().realsize.copy_from_slice(b"20000000000\0");
    let sparse = &mut header.as_gnu_mut().unwrap().sparse[0];
    sparse.offset.copy_from_slice(b"20000000000\0");
    sparse.numbytes.copy_from_slice(b"00000000000\0");
    header.set_cksum();
    assert_refused("a.tar", &with(header.as_bytes().to_vec()), &["sparse"]);
    let by_pax =
        [pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9999999")]), entry(b"a.json", b'0', CONFIG)];
    assert_refused("a.tar", &with(by_pax.concat()), &["sparse"]);
}

#[test]
fn names_that_meet_are_refused() {
    for (names, says) in [
        (&["a.json", "a.json"][..], "twice"),
        (&["a.json", "A.JSON"], "capital letters"),
        (&["d/a.json", "D/b.json"], "capital letters"),
        (&["a.json", "a.json/b.json"], "folder"),
        (&["a.json/b.json", "a.json"], "folder"),
        (&["./a.json", "a.json"], "twice"),
    ] {
        let files: Vec<_> = names.iter().map(|name| (*name, CONFIG)).collect();
        assert_refused("a.tar", &tar_of(&files), &[says]);
    }
    let two_names = [pax(&[("path", "a.json"), ("path", "b.json")]), entry(b"c.json", b'0', CONFIG)].concat();
    assert_refused("a.tar", &with(two_names), &["two names"]);
}

#[test]
fn sizes_that_are_claimed_are_not_believed() {
    // More than is allowed: refused before a byte is read.
    for size in [u64::MAX, u64::MAX / 2, 1 << 40, (1 << 20) + 1] {
        let bad = [&header(b"a.safetensors", b'0', size)[..], WEIGHTS].concat();
        let error = unpacked("a.tar", &with(bad)).unwrap_err();
        assert_eq!(error.code(), "load_failed", "{error}");
    }
    assert_refused("a.tar", &with(header(b"a.json", b'0', 1 << 40).to_vec()), &["1048576 bytes", "`a.json`"]);
    // More than there is.
    assert_refused("a.tar", &header(b"a.json", b'0', 5000), &["should have 5000 bytes and ends after 0"]);
    let folder = [&header(b"d", b'5', 1 << 40)[..], &tar_of(&ADAPTER)].concat();
    assert_refused("a.tar", &folder, &["1048576 bytes"]);
    // A size in a pax header goes before the other.
    let by_pax = [pax(&[("size", "99999999999")]), entry(b"a.json", b'0', CONFIG)].concat();
    assert_refused("a.tar", &with(by_pax), &["1048576 bytes"]);
}

#[test]
fn more_than_is_allowed_is_refused() {
    let many: Vec<_> = (0..21).map(|i| (format!("{i}.json"), CONFIG)).collect();
    let many: Vec<_> = many.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    assert_refused("a.tar", &tar_of(&many), &["more than 20 entries"]);
    assert_eq!(paths("a.tar", &tar_of(&many[..20])).len(), 20);
    let folders: Vec<_> = (0..21).map(|i| entry(format!("{i}").as_bytes(), b'5', b"")).collect();
    assert_refused("a.tar", &tar(&folders), &["more than 20 entries"]);
    // Four files that are each small enough, the last of which is too much.
    let large = vec![b'x'; 1 << 20];
    let names = ["0.txt", "1.txt", "2.txt", "3.txt"];
    let files: Vec<_> = names.iter().map(|name| (*name, &large[..])).collect();
    assert_refused("a.tar", &tar_of(&files), &["3145728 bytes allowed in all", "`3.txt`"]);
    assert_eq!(paths("a.tar", &tar_of(&files[..3])).len(), 3);
    // What is skipped counts as well.
    let names = ["0.md", "1.md", "2.md", "3.md"];
    let files: Vec<_> = names.iter().map(|name| (*name, &large[..])).collect();
    assert_refused("a.tar", &tar_of(&files), &["3145728 bytes allowed in all"]);
    assert_refused("a.tar", &tar_of(&[("a/b/c/d/e/f/g/h/i.json", CONFIG)]), &["more than 8 parts"]);
    let long = "a/".repeat(4) + &"x".repeat(600);
    let bad = [pax(&[("path", &long)]), entry(b"c.json", b'0', CONFIG)].concat();
    assert_refused("a.tar", &with(bad), &["more than 512 bytes"]);
}

#[test]
fn headers_do_not_fill_the_memory() {
    let huge = vec![b'x'; 300 << 10];
    for kind in [b'L', b'K', b'x'] {
        let bad = [entry(b"././@LongLink", kind, &huge), entry(b"a.json", b'0', CONFIG)].concat();
        assert_refused("a.tar", &with(bad.clone()), &["more than 262144 bytes"]);
        assert_refused("a.tar.gz", &gz(&with(bad)), &["more than 262144 bytes"]);
    }
}

#[test]
fn files_of_no_known_kind_are_refused_by_name() {
    for name in ["train.py", "run.sh", "lib.so", "a.exe", "inner.zip"] {
        assert_refused("a.tar", &with(entry(name.as_bytes(), b'0', b"x")), &[name, "no file of a model"]);
    }
    for name in ["adapter_model.bin", "a.pt", "x/y.pkl"] {
        assert_refused("a.tar", &with(entry(name.as_bytes(), b'0', b"x")), &[name, "pickle"]);
    }
    assert_refused("a.tar", &tar_of(&[("README.md", b"nothing else")]), &["no file of a model"]);
    assert_refused("a.tar", &tar(&[]), &["no archive"]);
    assert_refused("a.tar.gz", &gz(&tar(&[])), &["no file of a model"]);
}

#[test]
fn a_tar_ends_with_its_end_mark_and_zeros() {
    let whole = tar_of(&ADAPTER);
    // Cut between two entries, where the tar program sees nothing wrong.
    assert_refused("a.tar", &whole[..whole.len() - 1024], &["no end mark"]);
    assert_refused("a.tar", &entry(b"a.json", b'0', CONFIG), &["no end mark"]);
    assert_refused("a.tar.gz", &gz(&whole[..whole.len() - 1024]), &["no end mark"]);
    // One block of zeros says that nothing follows; what pads to a whole record may.
    assert_eq!(paths("a.tar", &whole[..whole.len() - 512]).len(), 2);
    assert_eq!(paths("a.tar", &[whole.clone(), vec![0; 9000]].concat()).len(), 2);
    assert_refused("a.tar", &[whole.clone(), b"more".to_vec()].concat(), &["follows its end mark"]);
    assert_refused("a.tar", &[whole.clone(), whole.clone()].concat(), &["follows its end mark"]);
    assert_refused("a.tar", &[whole, vec![0; 2 << 20]].concat(), &["follows its end mark"]);
}
