use std::io;

use crate::server::Content;

#[test]
fn generated_content_reads_the_same_in_any_ranges() {
    let size = (2 << 20) + 5000;
    let content = Content::generated(size, 7);
    let whole = content.read(0..size).unwrap();
    assert_eq!(whole.len() as u64, size);
    for range in [0..1, 4090..4100, 4098..4110, 4096..8192, 1_048_570..1_048_590, 2_000_001..size, size..size] {
        let expected = &whole[range.start as usize..range.end as usize];
        assert_eq!(content.read(range.clone()).unwrap(), expected, "{range:?}");
    }
    assert_ne!(whole[..4096], whole[1 << 20..][..4096], "a repetition is told by its page numbers");
    assert_eq!(whole[8..4096], whole[(1 << 20) + 8..][..4088]);
    assert_ne!(whole, Content::generated(size, 8).read(0..size).unwrap(), "another seed");
    assert_eq!(content.read(size - 1..size + 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn digests_are_those_of_the_bytes() {
    let content = Content::from("hello world");
    assert_eq!(content.sha256(), "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9");
    assert_eq!(Content::from("{}").git_blob(), "9e26dfeeb6e641a33dae4961196235bdb965b21b", "as git hash-object says");
    let size = (1 << 20) + 1;
    let generated = Content::generated(size, 1);
    assert_eq!(generated.sha256(), Content::from(generated.read(0..size).unwrap()).sha256());
}

#[test]
fn a_file_on_the_disk_is_served_as_it_lies() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let bytes = std::fs::read(path).unwrap();
    let content = Content::file(path).unwrap();
    assert_eq!(content.size(), bytes.len() as u64);
    assert_eq!(content.read(10..20).unwrap(), bytes[10..20]);
    assert_eq!(content.sha256(), Content::from(bytes).sha256());
    assert!(Content::file("no such file").is_err());
}
