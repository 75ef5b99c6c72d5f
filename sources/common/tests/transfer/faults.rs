//! Each thing that can go wrong, once and for good: what comes of it, how many requests it costs, and that nothing wrong
//! is published. A stall needs a clock: see `connections`.

use llm_local_testkit::hub::{Content, Fault, Host};

use super::support::*;

/// What is to come of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The file is here and right.
    Whole,
    /// This error, which may go away by itself or not. Nothing is published.
    Error(&'static str, Passing),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    Yes,
    No,
}

/// What a fault costs.
#[derive(Debug, PartialEq, Eq)]
struct Costs {
    end: End,
    /// Requests to the Hub, each of which is redirected unless it is refused.
    hub: usize,
    /// Requests to the second host.
    cdn: usize,
    /// Waits before another attempt.
    waits: usize,
    /// Bytes of the file that were sent, where that does not depend on how soon an answer is left.
    served: Option<u64>,
}

use End::*;
use Passing::*;

/// Fetches the file in four segments, one at a time, and compares what that costs.
#[track_caller]
fn costs(fault: Fault, end: End, [hub, cdn, waits]: [usize; 3], served: impl Into<Option<u64>>) -> Setup {
    check(Setup::new().only(MODEL).with_fault(fault), end, [hub, cdn, waits], served)
}

#[track_caller]
pub(super) fn check(setup: Setup, end: End, [hub, cdn, waits]: [usize; 3], served: impl Into<Option<u64>>) -> Setup {
    let served = served.into();
    let ended = match setup.fetch() {
        Ok(_) => Whole,
        Err(error) => Error(error.code(), if error.is_retryable() { Yes } else { No }),
    };
    let requests = setup.hub.wait_until_idle();
    let of = |host| requests.iter().filter(|r| r.host == host).count();
    let found = Costs {
        end: ended,
        hub: of(Host::Hub),
        cdn: of(Host::Cdn),
        waits: setup.waits().len(),
        served: served.map(|_| setup.served()),
    };
    assert_eq!(found, Costs { end, hub, cdn, waits, served }, "{requests:#?}");
    let published = if end == Whole { 1 } else { 0 };
    assert_eq!(setup.published().len(), published);
    let records = setup.root.path().join("artifacts").read_dir().map_or(0, |entries| {
        entries.filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "json")).count()
    });
    assert_eq!(records, published, "a record says that the artifact is whole");
    setup
}

/// The midst of the file: the third answer of the second host.
fn midway(fault: Fault) -> Fault {
    fault.path(MODEL).on(Host::Cdn).skip(2)
}

fn of_the_hub(fault: Fault) -> Fault {
    fault.path(MODEL).on(Host::Hub)
}

#[test]
fn a_connection_that_is_cut() {
    let cut = |bytes| Fault::cut(bytes).path(MODEL);
    costs(cut(100_000).once(), Whole, [5, 5, 1], SIZE);
    costs(midway(Fault::cut(0)).times(4), Whole, [8, 8, 4], SIZE);
    costs(cut(0), Error("download_failed", Yes), [5, 5, 4], 0);
    costs(midway(Fault::cut(0)), Error("download_failed", Yes), [7, 7, 4], 2 * SEGMENT);
    costs(midway(Fault::hang_up()).times(4), Whole, [8, 8, 4], SIZE);
    costs(of_the_hub(Fault::hang_up()), Error("download_failed", Yes), [5, 0, 4], 0);
}

#[test]
fn a_range_that_is_answered_with_200() {
    let ignored = || Fault::ignore_range().path(MODEL);
    costs(ignored(), Whole, [1, 1, 0], SIZE);
    costs(midway(Fault::ignore_range()), Whole, [3, 3, 0], 2 * SEGMENT + SIZE);
    costs(midway(Fault::ignore_range()).once(), Whole, [3, 3, 0], 2 * SEGMENT + SIZE);
    // Each answer begins from the start, and none comes further than the first.
    costs(ignored().and(Fault::cut(300_000)), Error("download_failed", Yes), [5, 5, 4], 5 * 300_000);
}

#[test]
fn an_etag_that_changes_midway() {
    // The one that tells of it, and then all of the file.
    costs(midway(Fault::etag("second")), Whole, [7, 7, 0], None);
    // With other bytes, all of them are the new ones, which are not what was promised; that is tried twice.
    let other = Content::generated(SIZE, 8);
    costs(midway(Fault::changed(other)), Error("integrity_failed", No), [11, 11, 0], None);
    // Others for one answer, under another ETag: neither of the two is mixed with the other.
    let other = Content::generated(SIZE, 8);
    costs(midway(Fault::changed(other)).once(), Whole, [8, 8, 0], None);
    let setup = Setup::new().only(MODEL);
    for turn in 0..8 {
        setup.hub.fault(Fault::etag(format!("etag-{turn}")).on(Host::Cdn).times(2));
    }
    // Two under each ETag, the second of which tells the next one; the third change is one too many.
    check(setup, Error("download_failed", Yes), [7, 7, 0], None);
}

#[test]
fn wrong_bytes() {
    costs(Fault::wrong_bytes().path(MODEL), Error("integrity_failed", No), [8, 8, 0], 2 * SIZE);
    costs(midway(Fault::wrong_bytes()).once(), Whole, [8, 8, 0], 2 * SIZE);
    costs(Fault::wrong_byte(SIZE - 1).path(MODEL).skip(3).once(), Whole, [8, 8, 0], 2 * SIZE);
    costs(Fault::wrong_byte(0).path(MODEL), Error("integrity_failed", No), [8, 8, 0], 2 * SIZE);
}

#[test]
fn a_wrong_length() {
    for fault in [Fault::longer(5), Fault::shorter(5)] {
        costs(fault.clone().path(MODEL), Error("integrity_failed", No), [1, 1, 0], None);
        // The ETag is the old one, and the size tells.
        costs(midway(fault), Error("integrity_failed", No), [3, 3, 0], None);
    }
    // More is promised than comes: the range is here all the same.
    costs(Fault::content_length(1000).path(MODEL), Whole, [4, 4, 0], SIZE);
    // Less is promised: the rest of the segment is asked for, of which the answer promises nothing, and asked for again.
    costs(Fault::content_length(-1000).path(MODEL).times(2), Whole, [6, 6, 2], None);
}

#[test]
fn a_web_page() {
    costs(of_the_hub(Fault::html()), Error("download_failed", No), [1, 0, 0], 0);
    costs(Fault::html().path(MODEL).on(Host::Cdn), Error("download_failed", No), [1, 1, 0], None);
    costs(midway(Fault::html()), Error("download_failed", No), [3, 3, 0], None);
}

#[test]
fn refusals_401_403_and_404() {
    for (status, code) in [(401, "unauthorized"), (403, "unauthorized"), (404, "not_found")] {
        costs(of_the_hub(Fault::status(status)), Error(code, No), [1, 0, 0], 0);
        costs(of_the_hub(Fault::status(status)).skip(2), Error(code, No), [3, 2, 0], 2 * SEGMENT);
    }
    costs(Fault::status(404).path(MODEL).on(Host::Cdn), Error("not_found", No), [1, 1, 0], 0);
    costs(midway(Fault::status(404)), Error("not_found", No), [3, 3, 0], 2 * SEGMENT);
}

#[test]
fn a_range_that_is_not_satisfiable() {
    costs(midway(Fault::status(416)).once(), Whole, [7, 7, 0], 2 * SEGMENT + SIZE);
    let beyond = Fault::status(416).path(MODEL).on(Host::Cdn);
    costs(beyond.clone(), Error("download_failed", No), [2, 2, 0], 0);
    let another_size = beyond.with_header("Content-Range", "bytes */4711");
    costs(another_size, Error("integrity_failed", No), [1, 1, 0], 0);
}

#[test]
fn too_many_requests() {
    for host in [Host::Hub, Host::Cdn] {
        let refused = |after| Fault::too_many_requests(after).path(MODEL).on(host);
        let cdn = |requests| if host == Host::Hub { 0 } else { requests };
        let setup = costs(refused("7").times(2), Whole, [6, 4 + cdn(2), 2], SIZE);
        assert!(setup.waits().iter().all(|wait| wait.as_secs() == 7), "{:?}", setup.waits());
        let setup = costs(refused("1"), Error("rate_limited", Yes), [5, cdn(5), 4], 0);
        assert!(setup.waits().iter().all(|wait| wait.as_secs() == 1), "{:?}", setup.waits());
        costs(refused("121"), Error("rate_limited", Yes), [1, cdn(1), 0], 0);
    }
}

#[test]
fn errors_of_a_server() {
    for status in [500, 502, 503, 504] {
        costs(midway(Fault::status(status)).times(4), Whole, [8, 8, 4], SIZE);
        costs(midway(Fault::status(status)), Error("download_failed", Yes), [7, 7, 4], 2 * SEGMENT);
        costs(of_the_hub(Fault::status(status)), Error("download_failed", Yes), [5, 0, 4], 0);
    }
}

#[test]
fn a_signed_url_that_has_expired() {
    // A request to the source gives a new one, at once.
    costs(midway(Fault::status(403)).once(), Whole, [5, 5, 0], SIZE);
    costs(midway(Fault::status(403)), Error("download_failed", Yes), [7, 7, 3], 2 * SEGMENT);
    // Good for one request each, which is all that is asked of one: also where a connection is cut.
    let setup = Setup::new().only(MODEL).with_fault(Fault::cut(100_000).path(MODEL));
    setup.hub.set_url_uses(Some(1));
    check(setup, Whole, [12, 12, 8], SIZE);
    let setup = Setup::new().only(MODEL);
    setup.hub.set_url_uses(Some(0));
    check(setup, Error("download_failed", Yes), [5, 5, 3], 0);
}
