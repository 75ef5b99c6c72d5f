//! Archives as people make them.

use super::*;

#[test]
fn every_format_gives_the_same_files_and_their_digests() {
    for (name, bytes) in archives(&ADAPTER) {
        let unpacked = unpacked(name, &bytes).unwrap();
        let found: Vec<_> = unpacked.iter().map(|file| (file.path.as_str(), file.size, file.digest)).collect();
        let sha256 = |bytes: &[u8]| Digest::Sha256(Sha256::digest(bytes).into());
        let expected: Vec<_> = ADAPTER.iter().map(|(path, b)| (*path, b.len() as u64, sha256(b))).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn names_are_known_in_capital_letters_and_with_what_is_before_them() {
    let zip = zip_of(&ADAPTER);
    assert_eq!(paths("github:a/b@v1#Pirate.ZIP", &zip).len(), 2);
    assert_eq!(paths("x.TAR.GZ", &gz(&tar_of(&ADAPTER))).len(), 2);
}

#[test]
fn large_files_come_out_whole() {
    let mut seed = 1u32;
    let mut noise = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    };
    let weights: Vec<u8> = (0..900_000).map(|i| if i % 3 == 0 { noise() } else { b'w' }).collect();
    for (name, bytes) in archives(&[("adapter_config.json", CONFIG), ("adapter_model.safetensors", &weights)]) {
        let unpacked = unpacked(name, &bytes).unwrap();
        assert_eq!(unpacked[1].digest, Digest::Sha256(Sha256::digest(&weights).into()), "{name}");
    }
}

#[test]
fn folders_around_everything_are_left_out() {
    for (files, expected) in [
        (&["my/adapter_config.json", "my/a.safetensors"][..], &["a.safetensors", "adapter_config.json"][..]),
        (&["x/y/adapter_config.json", "x/y/sub/a.safetensors"], &["adapter_config.json", "sub/a.safetensors"]),
        (&["x/y/a.safetensors"], &["a.safetensors"]),
        (&["x/a.json", "__MACOSX/x/._a.json", "README.md"], &["a.json"]),
        (&["x/x/a.json", "x/b.json"], &["b.json", "x/a.json"]),
        (&["one/a.json", "two/a.json"], &["one/a.json", "two/a.json"]),
        (&["./a.json", "./d/b.json"], &["a.json", "d/b.json"]),
    ] {
        let files: Vec<_> = files.iter().map(|path| (*path, CONFIG)).collect();
        for (name, bytes) in archives(&files) {
            // No program writes `./` into a zip.
            if files[0].0.starts_with("./") && name.ends_with("zip") {
                continue;
            }
            assert_eq!(paths(name, &bytes), expected, "{name} {files:?}");
        }
    }
}

#[test]
fn litter_and_files_for_people_are_not_written() {
    let files = [
        ("a/adapter_config.json", CONFIG),
        ("a/adapter_model.safetensors", WEIGHTS),
        ("a/training_args.bin", b"pickle"),
        ("a/README.md", b"# hello"),
        ("a/LICENSE", b"MIT"),
        ("a/.DS_Store", b"x"),
        ("a/._adapter_config.json", b"x"),
        ("__MACOSX/a/._adapter_config.json", b"x"),
    ];
    for (name, bytes) in archives(&files) {
        assert_eq!(paths(name, &bytes), ["adapter_config.json", "adapter_model.safetensors"], "{name}");
    }
}

#[test]
fn folders_may_be_listed_and_be_empty() {
    let file = entry(b"./d/a.json", b'0', CONFIG);
    let bytes = tar(&[entry(b"./", b'5', b""), entry(b"./d/", b'5', b""), entry(b"./e", b'5', b""), file]);
    assert_eq!(paths("a.tar", &bytes), ["a.json"]);
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.add_directory("d/", SimpleFileOptions::default()).unwrap();
    writer.add_directory("e/", SimpleFileOptions::default()).unwrap();
    writer.start_file("d/a.json", SimpleFileOptions::default().unix_permissions(0o755)).unwrap();
    writer.write_all(CONFIG).unwrap();
    assert_eq!(paths("a.zip", &writer.finish().unwrap().into_inner()), ["a.json"]);
}

#[test]
fn long_names_of_gnu_and_pax_and_the_comment_of_git_are_read() {
    let long = format!("{}/adapter_config.json", "d".repeat(120));
    let mut builder = tar::Builder::new(Vec::new());
    let mut gnu = tar::Header::new_gnu();
    gnu.set_size(CONFIG.len() as u64);
    builder.append_data(&mut gnu, &long, CONFIG).unwrap();
    builder.append_pax_extensions([("path", "x/tokenizer.json".as_bytes())]).unwrap();
    let mut plain = tar::Header::new_ustar();
    plain.set_size(2);
    builder.append_data(&mut plain, "short", &b"{}"[..]).unwrap();
    let bytes = builder.into_inner().unwrap();
    assert_eq!(paths("a.tar", &bytes), [long.as_str(), "x/tokenizer.json"]);
    let comment = entry(b"pax_global_header", b'g', b"52 comment=0123456789012345678901234567890123456789\n");
    assert_eq!(paths("a.tar", &tar(&[comment, entry(b"r-1/a.json", b'0', CONFIG)])), ["a.json"]);
}

#[test]
fn streams_in_several_pieces_are_read_to_their_end() {
    let tar = tar_of(&ADAPTER);
    let (one, two) = tar.split_at(700);
    let members = [gz(one), gz(two)].concat();
    assert_eq!(paths("a.tar.gz", &members).len(), 2);
    let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let frames = [skippable.clone(), zst(one), skippable, zst(two)].concat();
    assert_eq!(paths("a.tar.zst", &frames).len(), 2);
}

/// `printf '{"r": 8}' > adapter_config.json; tar c adapter_config.json | zstd -19 --check`, by GNU tar 1.34 and zstd 1.5.4.
const BY_ZSTD: &str = include_str!("by_zstd.hex");
/// The same file by Info-ZIP 3.0 (`zip - adapter_config.json`, with a data descriptor and extra fields).
const BY_INFO_ZIP: &str = include_str!("by_info_zip.hex");
/// The same file by Python's zipfile to a stream that cannot seek, with the fields of zip64.
const BY_PYTHON: &str = include_str!("by_python.hex");

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn archives_of_other_programs_are_read() {
    for (name, hex) in [("a.tar.zst", BY_ZSTD), ("a.zip", BY_INFO_ZIP), ("b.zip", BY_PYTHON)] {
        let unpacked = unpacked(name, &from_hex(hex)).unwrap();
        let [file] = &unpacked[..] else { panic!("{name}: {unpacked:?}") };
        assert_eq!(file.path, "adapter_config.json", "{name}");
        assert_eq!(file.digest, Digest::Sha256(Sha256::digest(br#"{"r": 8}"#).into()), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn modes_are_not_taken_over() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (archive, into) = (folder.path().join("a"), folder.path().join("into"));
    fs::create_dir(&into).unwrap();
    fs::write(&archive, tar_of(&[("a.json", CONFIG), ("d/b.json", CONFIG)])).unwrap();
    unpack(&archive, "a.tar", &into, &limits(), &CancellationToken::new()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&into.join("a.json")), mode(&archive));
    assert_eq!(mode(&into.join("d/b.json")), mode(&archive));
    assert_eq!(mode(&into.join("d")), mode(&into));
}

#[test]
fn a_folder_that_is_not_empty_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (archive, into) = (folder.path().join("a"), folder.path().join("into"));
    fs::create_dir(&into).unwrap();
    fs::write(into.join("mine"), "mine").unwrap();
    fs::write(&archive, tar_of(&ADAPTER)).unwrap();
    let error = unpack(&archive, "a.tar", &into, &limits(), &CancellationToken::new()).unwrap_err();
    assert_eq!(error.code(), "io");
    assert_eq!(files(&into), BTreeMap::from([("mine".to_owned(), b"mine".to_vec())]));
}

#[test]
fn a_cancelled_job_ends_and_leaves_nothing() {
    for (name, bytes) in archives(&ADAPTER) {
        let folder = tempfile::tempdir().unwrap();
        let (archive, into) = (folder.path().join("a"), folder.path().join("into"));
        fs::create_dir(&into).unwrap();
        fs::write(&archive, &bytes).unwrap();
        let cancel = CancellationToken::new();
        cancel.cancel();
        assert_eq!(unpack(&archive, name, &into, &limits(), &cancel).unwrap_err().code(), "cancelled", "{name}");
        assert_eq!(fs::read_dir(&into).unwrap().count(), 0);
    }
}

#[test]
fn an_archive_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let into = folder.path().join("into");
    fs::create_dir(&into).unwrap();
    let error = unpack(&missing, "a.zip", &into, &limits(), &CancellationToken::new()).unwrap_err();
    assert!(error.code() == "io" && error.to_string().contains("missing"), "{error}");
}
