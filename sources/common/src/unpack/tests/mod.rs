//! Archives made here, good and bad.

mod corrupt;
mod good;
mod streams;
mod tars;
mod zips;

use std::{
    collections::BTreeMap,
    fs,
    io::{Cursor, Write},
    path::Path,
};

use sha2::{Digest as _, Sha256};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::*;

const CONFIG: &[u8] = br#"{"peft_type":"LORA","r":8}"#;
const WEIGHTS: &[u8] = b"\x08\0\0\0\0\0\0\0{}      weights weights weights weights";
const ADAPTER: [(&str, &[u8]); 2] = [("adapter_config.json", CONFIG), ("adapter_model.safetensors", WEIGHTS)];

/// Small limits, so that a bomb is one at few bytes.
fn limits() -> Limits {
    Limits::default().with_entries(20).with_file_bytes(1 << 20).with_total_bytes(3 << 20)
}

/// Unpacks `bytes` as an archive of that name. Asserts that nothing was written outside of the folder; what is in it is
/// what was reported, within the limits, or after an error nothing.
fn unpacked(name: &str, bytes: &[u8]) -> Result<Vec<Unpacked>> {
    unpacked_within(name, bytes, &limits())
}

fn unpacked_within(name: &str, bytes: &[u8], limits: &Limits) -> Result<Vec<Unpacked>> {
    let outside = tempfile::tempdir().unwrap();
    let (archive, into) = (outside.path().join("blob"), outside.path().join("into"));
    fs::write(&archive, bytes).unwrap();
    fs::create_dir(&into).unwrap();
    let result = unpack(&archive, name, &into, limits, &CancellationToken::new());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2, "{name} wrote outside");
    assert_eq!(fs::read(&archive).unwrap(), bytes);
    let there = files(&into);
    match &result {
        Ok(unpacked) => {
            let reported = |file: &Unpacked| (file.path.clone(), (file.size, file.digest));
            let found = |(path, bytes): (&String, &Vec<u8>)| {
                (path.clone(), (bytes.len() as u64, Digest::Sha256(Sha256::digest(bytes).into())))
            };
            let found: BTreeMap<_, _> = there.iter().map(found).collect();
            assert_eq!(unpacked.iter().map(reported).collect::<BTreeMap<_, _>>(), found);
            assert!(unpacked.len() <= limits.entries && unpacked.iter().all(|file| file.size <= limits.file_bytes));
            assert!(unpacked.iter().map(|file| file.size).sum::<u64>() <= limits.total_bytes);
        }
        Err(_) => assert_eq!(fs::read_dir(&into).unwrap().count(), 0, "{name} left {there:?}"),
    }
    result
}

/// Every file below `folder`, by path, and its bytes. Panics on anything that is neither file nor folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if kind.is_dir() {
            found.extend(files(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else {
            assert!(kind.is_file(), "{}", path.display());
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

/// The paths that come out.
fn paths(name: &str, bytes: &[u8]) -> Vec<String> {
    unpacked(name, bytes).unwrap_or_else(|e| panic!("{name}: {e}")).into_iter().map(|file| file.path).collect()
}

/// Asserts that it is refused for a reason that says all of `says`, with the name of the archive.
fn assert_refused(name: &str, bytes: &[u8], says: &[&str]) {
    let error = unpacked(name, bytes).expect_err(&format!("{name} {says:?}")).to_string();
    for text in says.iter().chain([&name]) {
        assert!(error.contains(text), "{name}: {error:?} does not say {text:?}");
    }
}

/// The header of a tar's entry, its checksum right.
fn header(name: &[u8], kind: u8, size: u64) -> [u8; 512] {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o777);
    header.set_size(size);
    header.set_cksum();
    *header.as_bytes()
}

/// One entry of a tar, with a name that no library would write.
fn entry(name: &[u8], kind: u8, body: &[u8]) -> Vec<u8> {
    let padding = vec![0; body.len().next_multiple_of(512) - body.len()];
    [&header(name, kind, body.len() as u64)[..], body, &padding].concat()
}

/// A tar of `entries`, with its end mark.
fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    tar(&files.iter().map(|(name, bytes)| entry(name.as_bytes(), b'0', bytes)).collect::<Vec<_>>())
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn zip_by(files: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        writer.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    zip_by(files, CompressionMethod::Deflated)
}

/// `bytes` with every `from` become `to`, of the same length.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let found: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert!(!found.is_empty());
    for at in found {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

/// The same files in every format.
fn archives(files: &[(&str, &[u8])]) -> Vec<(&'static str, Vec<u8>)> {
    let tar = tar_of(files);
    vec![
        ("a.zip", zip_of(files)),
        ("b.zip", zip_by(files, CompressionMethod::Stored)),
        ("a.tar.gz", gz(&tar)),
        ("a.tgz", gz(&tar)),
        ("a.tar.zst", zst(&tar)),
        ("a.tar", tar),
    ]
}
