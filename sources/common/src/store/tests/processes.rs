//! Several at once: threads, each of which opens the files itself as a process does, and processes.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::*;

#[test]
fn many_at_once_list_record_use_and_delete_without_error() {
    let f = Fixture::new();
    let kept = f.own("hf:x/kept", "1", &[("a", "shared"), ("b", "kept")], 0);
    thread::scope(|scope| {
        for i in 0..4 {
            let f = &f;
            scope.spawn(move || {
                let name = format!("hf:x/{}", i % 2);
                for round in 0..15 {
                    let made = manifest(&name, "1", &[("a", "shared"), ("b", &name)]);
                    // As a fetch does it: what is found or brought under the hold stays until it is recorded.
                    let hold = f.store.hold(&made, None).unwrap();
                    f.own(&name, "1", &[("a", "shared"), ("b", &name)], round);
                    f.store.touch(&reference(&name), "1", at(round)).unwrap();
                    assert!(f.blob(&name).exists(), "what is held stays");
                    drop(hold);
                    f.store.list().unwrap();
                    f.store.size().unwrap();
                    match f.store.delete(&reference(&name)) {
                        Ok(_) => {}
                        Err(e) if e.code() == "not_found" => {}
                        Err(e) => assert!(e.to_string().contains("is loaded or being fetched"), "{e}"),
                    }
                    assert!(f.blob("shared").exists(), "`kept` uses it");
                }
            });
        }
    });
    for name in ["hf:x/0", "hf:x/1"] {
        let _ = f.store.delete(&reference(name));
    }
    assert_eq!(f.listed(), [("hf:x/kept".into(), "1".into(), true)]);
    let hold = f.store.hold(&kept, None).unwrap();
    assert!(f.store.delete(&reference("hf:x/kept")).is_err());
    drop(hold);
}

#[test]
fn what_a_hold_finds_stays_even_if_a_deletion_has_begun() {
    let f = Fixture::new();
    let files = [("a", "content"), ("b", "more")];
    let made = f.own("hf:x/y", "1", &files, 0);
    let deletions = AtomicUsize::new(0);
    thread::scope(|scope| {
        let holding = scope.spawn(|| {
            let mut rounds = 0;
            while rounds < 200 || deletions.load(Ordering::Relaxed) == 0 {
                rounds += 1;
                let hold = f.store.hold(&made, None).unwrap();
                let found: Vec<_> = files.iter().filter(|(_, text)| f.blob(text).exists()).collect();
                f.store.list().unwrap();
                assert!(found.iter().all(|(_, text)| f.blob(text).exists()), "{found:?}");
                drop(hold);
            }
        });
        while !holding.is_finished() {
            if f.store.delete(&reference("hf:x/y")).is_ok() {
                deletions.fetch_add(1, Ordering::Relaxed);
                f.own("hf:x/y", "1", &files, 0);
            }
        }
    });
}

#[test]
fn pins_and_uses_at_once_are_both_kept() {
    let f = Fixture::new();
    f.own("hf:x/y", "1", &[("a", "content")], 0);
    for _ in 0..10 {
        f.store.unpin(&reference("hf:x/y")).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| f.store.pin(&reference("hf:x/y")).unwrap());
            scope.spawn(|| f.store.touch(&reference("hf:x/y"), "1", at(1)).unwrap());
        });
        assert!(f.store.list().unwrap().artifacts[0].pinned);
    }
}

/// Where the process below finds its store.
const ROOT: &str = "LLM_LOCAL_TEST_STORE";

/// Another process's part of the next test: it holds until its standard input ends.
#[test]
#[ignore = "a process that another test starts"]
fn holds_for_another_test() {
    let Ok(root) = std::env::var(ROOT) else { return };
    let _hold = Store::new(root).hold(&manifest("hf:x/y", "1", &[("a", "content")]), None).unwrap();
    let mut out = std::io::stdout();
    writeln!(out, "\nheld").unwrap();
    out.flush().unwrap();
    let _ = std::io::stdin().lines().next();
}

#[test]
fn a_hold_of_a_process_ends_with_it_however_it_ends() {
    let f = Fixture::new();
    f.own("hf:x/y", "1", &[("a", "content")], 0);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "store::tests::processes::holds_for_another_test"])
        .env(ROOT, f.store.root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let held = out.lines().any(|line| line.unwrap() == "held");
    let error = f.store.delete(&reference("hf:x/y"));
    let evicted = f.store.evict(7, 1);
    // No destructor runs.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(held);
    assert!(error.unwrap_err().to_string().contains("is loaded or being fetched"));
    assert!(evicted.is_err());
    f.store.delete(&reference("hf:x/y")).unwrap();
    assert!(!f.blob("content").exists());
}
