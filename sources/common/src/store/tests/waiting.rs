//! Changes wait for each other.

use std::sync::{Arc, Mutex};

use llm_local_core::Error;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    disk::FileLock,
    network::{Wait, testing::FakeTimer},
};

impl Fixture {
    fn with_timer(mut self, timer: &FakeTimer) -> Self {
        self.store.waiting.timer = Arc::new(timer.clone());
        self
    }

    fn lock(&self) -> FileLock {
        FileLock::try_acquire(&self.store.locks().join("store.lock")).unwrap().unwrap()
    }
}

#[test]
fn a_change_says_whom_it_waits_for_and_goes_on_when_that_is_done() {
    let timer = FakeTimer::new();
    let f = Fixture::new().with_timer(&timer);
    f.own("hf:x/y", "1", &[("a", "content")], 0);
    let (lock, told) = (Mutex::new(Some(f.lock())), Arc::new(Mutex::new(Vec::new())));
    let heard = told.clone();
    let store = f.store.clone().with_on_wait(move |reason| {
        heard.lock().unwrap().push(reason.to_owned());
        lock.lock().unwrap().take();
    });
    store.pin(&reference("hf:x/y")).unwrap();
    let expected = format!(
        "another task of this process ({}) holds {}",
        std::process::id(),
        f.store.locks().join("store.lock").display()
    );
    assert_eq!(*told.lock().unwrap(), [expected]);
    // Short ones first, which nobody is told of.
    let sleeps: Vec<_> = timer.sleeps(Wait::Lock).into_iter().map(|sleep| sleep.as_millis()).collect();
    assert_eq!(sleeps, [[1; 8], [4; 8], [16; 8]].concat().into_iter().chain([50]).collect::<Vec<_>>());
    assert!(f.store.list().unwrap().artifacts[0].pinned);
}

#[test]
fn a_cancel_ends_the_wait_and_changes_nothing() {
    let f = Fixture::new().with_timer(&FakeTimer::new());
    let made = f.own("hf:x/y", "1", &[("a", "content")], 0);
    let _lock = f.lock();
    let cancel = CancellationToken::new();
    let on_wait = cancel.clone();
    let store = f.store.clone().with_cancel(cancel).with_on_wait(move |_| on_wait.cancel());
    for result in [
        store.delete(&reference("hf:x/y")).map(|_| ()),
        store.touch(&reference("hf:x/y"), "1", at(1)),
        store.hold(&made, None).map(|_| ()),
        store.evict(0, 0).map(|_| ()),
    ] {
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    }
    assert_eq!(f.store.list().unwrap().artifacts[0].last_used, at(0));
}

#[test]
fn a_cancel_ends_a_wait_on_the_clock_too() {
    let f = Fixture::new();
    f.own("hf:x/y", "1", &[("a", "content")], 0);
    let _lock = f.lock();
    let cancel = CancellationToken::new();
    let on_wait = cancel.clone();
    let store = f.store.clone().with_cancel(cancel).with_on_wait(move |_| on_wait.cancel());
    assert!(matches!(store.pin(&reference("hf:x/y")), Err(Error::Cancelled)));
}

#[cfg(unix)]
#[test]
fn a_lock_on_a_file_that_was_deleted_holds_nobody_up() {
    let f = Fixture::new().with_timer(&FakeTimer::new());
    f.own("hf:x/y", "1", &[("a", "content")], 0);
    let _lock = f.lock();
    fs::remove_file(f.store.locks().join("store.lock")).unwrap();
    f.store.pin(&reference("hf:x/y")).unwrap();
    let changing = f.store.change().unwrap();
    assert!(FileLock::try_acquire(&f.store.locks().join("store.lock")).unwrap().is_none(), "it is at its path");
    drop(changing);
}

#[test]
fn to_read_takes_no_lock() {
    let f = Fixture::new();
    f.own("hf:x/y", "1", &[("a", "content")], 0);
    let _lock = f.lock();
    let told = f.store.clone().with_on_wait(|reason| panic!("waits: {reason}"));
    assert_eq!((told.list().unwrap().artifacts.len(), told.size().unwrap().fetched), (1, 7));
    assert_eq!(told.delete(&reference("hf:x/z")).unwrap_err().code(), "not_found");
}
