use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
};

use llm_local_core::{Error, Result};

use super::read;

fn broken(what: usize) -> Error {
    Error::load(format!("part {what}"), "it is broken")
}

#[test]
fn results_come_in_order_each_computed_once_on_any_number_of_threads() {
    for threads in [0, 1, 2, 3, 7] {
        for count in [0, 1, 2, 20] {
            let calls = AtomicUsize::new(0);
            let part = |i| {
                calls.fetch_add(1, Ordering::Relaxed);
                Ok(i * i)
            };
            let (first, parts) = read(threads, || Ok("first"), count, part).unwrap();
            assert_eq!((first, parts), ("first", (0..count).map(|i| i * i).collect()));
            assert_eq!(calls.into_inner(), count);
        }
    }
}

#[test]
fn as_many_threads_work_at_one_time_as_were_asked_for() {
    // None of the three gets past the barrier before all have come.
    let barrier = Barrier::new(3);
    let part = |_| {
        barrier.wait();
        Ok(())
    };
    let first = || {
        barrier.wait();
        Ok(())
    };
    assert_eq!(read(3, first, 2, part).unwrap().1.len(), 2);
}

#[test]
fn the_first_error_in_order_is_told_even_if_a_later_one_came_before_it() {
    let later_is_broken = Barrier::new(2);
    let part = |i: usize| -> Result<()> {
        match i {
            0 => {
                later_is_broken.wait();
                Err(broken(0))
            }
            1 => {
                later_is_broken.wait();
                Err(broken(1))
            }
            _ => Ok(()),
        }
    };
    for _ in 0..50 {
        let error = read(3, || Ok(()), 10, part).unwrap_err().to_string();
        assert!(error.contains("part 0"), "{error}");
    }
    let all_broken = |i| -> Result<()> { Err(broken(i)) };
    let error = read(3, || -> Result<()> { Err(Error::load("first", "it is broken")) }, 10, all_broken).unwrap_err();
    assert!(error.to_string().contains("first"), "{error}");
}

#[test]
fn no_part_is_begun_after_one_has_failed() {
    for threads in [1, 4] {
        let begun = AtomicUsize::new(0);
        let part = |i| -> Result<()> {
            begun.fetch_add(1, Ordering::Relaxed);
            Err(broken(i))
        };
        assert!(read(threads, || Ok(()), 1000, part).is_err());
        let begun = begun.into_inner();
        assert!(begun <= threads, "{begun} of 1000 parts were begun by {threads} threads");
    }
    let failed = || -> Result<()> { Err(broken(0)) };
    let begun = AtomicUsize::new(0);
    let part = |_| {
        begun.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    assert!(read(1, failed, 10, part).is_err());
    assert_eq!(begun.into_inner(), 0, "parts begun on the thread of what failed");
}

#[test]
fn a_panic_comes_through_with_what_it_says() {
    for threads in [1, 3] {
        let part = |i: usize| if i == 2 { panic!("part 2 is on fire") } else { Ok(()) };
        let panic = catch_unwind(AssertUnwindSafe(|| read(threads, || Ok(()), 5, part))).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"part 2 is on fire"));
        let first = || -> Result<()> { panic!("the first is on fire") };
        let panic = catch_unwind(AssertUnwindSafe(|| read(threads, first, 5, |_| Ok(())))).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"the first is on fire"));
    }
}
