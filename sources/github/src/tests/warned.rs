//! What was warned of, by all tests of this process: requests run on threads of their own.

use std::{
    io,
    sync::{Mutex, Once},
};

use tracing_subscriber::filter::LevelFilter;

static HEARD: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Ear;

impl io::Write for Ear {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        HEARD.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hears from now on.
pub(super) fn hear() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(|| Ear).init());
}

/// The lines that have all of `parts`, of which one should be in no other test.
pub(super) fn lines(parts: &[&str]) -> usize {
    let text = String::from_utf8(HEARD.lock().unwrap().clone()).unwrap();
    text.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}
