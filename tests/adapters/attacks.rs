//! Archives that are no plain collection of files, as assets of a release.

use std::io::{Cursor, Write};

use llm_local::{ArtifactRef, core::Want};
use llm_local_testkit::github::{Host, Release};
use pollster::block_on;
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::world::*;

const NAMED: &str = "github:acme/lora@v1";
/// Of the same length as the config's name, so that it can be put in its place.
const STAND_IN: &str = "adapter_confih.json";

/// A good adapter with what `add` puts beside it.
fn zip_with(add: impl FnOnce(&mut ZipWriter<Cursor<Vec<u8>>>)) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in adapter_files("peft") {
        zip.start_file(name, SimpleFileOptions::default()).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    add(&mut zip);
    zip.finish().unwrap().into_inner()
}

/// A zip whose last file `stand_in` is called `name` instead, which no writer would call it.
fn zip_naming(stand_in: &str, name: &str) -> Vec<u8> {
    assert_eq!(stand_in.len(), name.len());
    let mut zip = zip_with(|zip| {
        zip.start_file(stand_in, SimpleFileOptions::default()).unwrap();
        zip.write_all(b"{}").unwrap();
    });
    let at: Vec<_> = (0..zip.len()).filter(|at| zip[*at..].starts_with(stand_in.as_bytes())).collect();
    assert_eq!(at.len(), 2, "once before the file and once in the directory");
    at.into_iter().for_each(|at| zip[at..at + name.len()].copy_from_slice(name.as_bytes()));
    zip
}

/// An entry of a tar: its header, as POSIX (pax, "ustar Interchange Format") has it, and the content in blocks of 512.
fn entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(124, format!("{:011o}", content.len()).as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend(content);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

/// A tar of a good adapter with `more` after it.
fn tar_with(more: Vec<u8>) -> Vec<u8> {
    let files = adapter_files("peft").into_iter().map(|(name, bytes)| entry(&name, b'0', "", &bytes));
    files.chain([more, vec![0; 1024]]).flatten().collect()
}

#[test]
fn an_archive_with_a_link_or_names_that_meet_or_leave_is_refused_and_nothing_is_left() {
    let link = |zip: &mut ZipWriter<_>| {
        zip.add_symlink("tokenizer.json", "../../../escaped.json", SimpleFileOptions::default()).unwrap();
    };
    let table: [(&str, Vec<u8>, &str); 7] = [
        ("a.zip", zip_with(link), "symbolic link"),
        ("a.tar", tar_with(entry("tokenizer.json", b'2', "../../../escaped.json", b"")), "symbolic link"),
        ("a.tar", tar_with(entry("tokenizer.json", b'1', "adapter_config.json", b"")), "hard link"),
        ("a.zip", zip_naming(STAND_IN, "adapter_config.json"), "duplicate"),
        ("a.tar", tar_with(entry("adapter_config.json", b'0', "", b"{}")), "adapter_config.json"),
        ("a.zip", zip_naming("xxxxxxxxxescaped.json", "../../../escaped.json"), "file name"),
        ("a.tar", tar_with(entry("../../../escaped.json", b'0', "", b"{}")), "file name"),
    ];
    for (asset, archive, says) in table {
        let world = World::new(Release::new("v1").with_file(asset, archive));
        let outside = || {
            let entries = std::fs::read_dir(world.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        let reference: ArtifactRef = NAMED.parse().unwrap();
        let engine = world.engine();
        for result in [
            block_on(engine.download_artifact(&reference, Want::Adapter, None)),
            block_on(engine.adapters().pin(&reference, None, None)).map(drop),
            block_on(engine.adapters().update(&reference, None)).map(drop),
        ] {
            assert_adapter_error(result, "load_failed", &[asset, says]);
            assert_eq!(world.stored(), Vec::<String>::new(), "of {asset} with {says}");
            // Beside the store there are the kept answers of the API, and nothing that came out of the archive.
            assert_eq!(outside(), ["answers", "store"]);
        }
        assert_adapter_error(block_on(engine.load(&spec(NAMED))), "load_failed", &[asset, says]);
        // Of the base something may have come meanwhile, and what came of that is not lost.
        assert_eq!(world.contents(), Vec::<Vec<u8>>::new(), "of {asset} with {says}");
        assert_eq!(block_on(engine.adapters().list()).unwrap(), []);
        assert!(world.github.wait_until_idle().iter().any(|r| r.host == Host::Cdn && r.is_for(asset)));
    }
}

#[test]
fn the_tar_of_these_tests_is_one_that_is_read() {
    let world = World::new(Release::new("v1").with_file("a.tar", tar_with(entry("tokenizer.json", b'0', "", b"{}"))));
    assert_reference(&answers(&world.engine(), &spec(NAMED)).unwrap(), "peft");
}
