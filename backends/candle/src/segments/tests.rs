//! Reads across the whole run of bytes, and what happens when one fails.

use llm_local_core::{Encoding, LoadOptions, TensorEntry};

use super::*;

struct Three(Vec<TensorEntry>);

impl Three {
    fn new() -> Self {
        let entry = |name, n| TensorEntry::new(name, vec![n], Encoding::Float(FloatType::F32));
        Self(vec![entry("a", 2), entry("b", 3), entry("broken", 1)])
    }
}

impl TensorSource for Three {
    fn entries(&self) -> &[TensorEntry] {
        &self.0
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        match (name, want) {
            ("a", Some(_)) => Ok(TensorData::F32(vec![1.0, 2.0])),
            ("b", None) => Ok(TensorData::Borrowed(&[7, 8, 9])),
            _ => Err(Error::load(name, "it is broken")),
        }
    }
}

fn segments<'a>(source: &'a Three, options: &LoadOptions) -> Segments<'a> {
    let mut segments = Segments::new(source, Loading::new(options, 2));
    assert_eq!(segments.push("a", 8, Some(FloatType::F32)), 0);
    assert_eq!(segments.push("b", 3, None), 8);
    segments
}

#[test]
fn bytes_are_the_same_in_reads_of_any_size() {
    let mut expected: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    expected.extend([7, 8, 9]);
    for step in 1..=12 {
        let source = Three::new();
        let mut segments = segments(&source, &LoadOptions::new(1));
        let mut found: Vec<u8> = Vec::new();
        let mut buffer = vec![0; step];
        loop {
            let n = segments.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            found.extend(&buffer[..n]);
        }
        assert_eq!(found, expected, "in steps of {step}");
    }
}

#[test]
fn seeking_finds_any_tensor() {
    let source = Three::new();
    let mut segments = segments(&source, &LoadOptions::new(1));
    assert_eq!(segments.seek(SeekFrom::End(0)).unwrap(), 11);
    assert_eq!(segments.read(&mut [0; 4]).unwrap(), 0);
    let mut buffer = [0; 2];
    segments.seek(SeekFrom::Start(9)).unwrap();
    segments.read_exact(&mut buffer).unwrap();
    assert_eq!(buffer, [8, 9]);
    segments.seek(SeekFrom::Current(-11)).unwrap();
    segments.read_exact(&mut buffer).unwrap();
    assert_eq!(buffer, 1.0f32.to_le_bytes()[..2]);
    assert!(segments.seek(SeekFrom::Current(-3)).is_err());
}

#[test]
fn after_a_failure_everything_fails_and_the_first_cause_is_kept() {
    let source = Three::new();
    let mut segments = Segments::new(&source, Loading::new(&LoadOptions::new(1), 3));
    segments.push("broken", 4, Some(FloatType::F32));
    segments.push("a", 8, Some(FloatType::F32));
    assert!(segments.read(&mut [0; 4]).is_err());
    segments.seek(SeekFrom::Start(4)).unwrap();
    assert!(segments.read(&mut [0; 8]).is_err());
    assert!(segments.failure().unwrap().to_string().contains("broken"));
}

#[test]
fn a_wrong_size_is_an_error_and_a_cancel_ends_the_load() {
    let source = Three::new();
    let mut wrong = Segments::new(&source, Loading::new(&LoadOptions::new(1), 1));
    wrong.push("b", 4, None);
    assert!(wrong.read(&mut [0; 4]).is_err());
    assert!(wrong.failure().unwrap().to_string().contains("3 bytes; 4 were expected"));

    let options = LoadOptions::new(1);
    let mut cancelled = segments(&source, &options);
    options.cancel.cancel();
    assert!(cancelled.read(&mut [0; 4]).is_err());
    assert_eq!(cancelled.failure().unwrap().code(), "cancelled");
}
