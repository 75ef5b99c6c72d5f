//! What `faults` holds of a large file, held of a small one, which comes in one request: the same outcomes, by other
//! counts.

use llm_local_testkit::hub::{Content, Fault, Host};

use super::{
    faults::{
        End::{self, *},
        Passing::*,
        check,
    },
    small::of,
    support::*,
};

const SMALL: u64 = 100_000;
/// Of the first answer, where it is cut.
const FIRST: u64 = 30_000;

/// Fetches the file, and compares what that costs.
#[track_caller]
fn costs(fault: Fault, end: End, counts: [usize; 3], served: impl Into<Option<u64>>) -> Setup {
    check(of(SMALL).with_fault(fault), end, counts, served)
}

/// As `costs`, where the first answer is cut, and the fault is met by the request for the rest.
#[track_caller]
fn midway(fault: Fault, end: End, counts: [usize; 3], served: impl Into<Option<u64>>) -> Setup {
    check(cut().with_fault(on_cdn(fault)), end, counts, served)
}

fn cut() -> Setup {
    of(SMALL).with_fault(on_cdn(Fault::cut(FIRST)).once())
}

fn on_cdn(fault: Fault) -> Fault {
    fault.path(MODEL).on(Host::Cdn)
}

fn of_the_hub(fault: Fault) -> Fault {
    fault.path(MODEL).on(Host::Hub)
}

#[test]
fn a_connection_that_is_cut() {
    costs(on_cdn(Fault::cut(FIRST)).once(), Whole, [2, 2, 1], SMALL);
    costs(on_cdn(Fault::cut(FIRST)), Whole, [4, 4, 3], SMALL);
    costs(on_cdn(Fault::cut(0)), Error("download_failed", Yes), [5, 5, 4], 0);
    midway(Fault::cut(0).times(3), Whole, [5, 5, 4], SMALL);
    // The first answer is progress, after which it counts among five in a row.
    midway(Fault::cut(0), Error("download_failed", Yes), [5, 5, 4], FIRST);
    costs(on_cdn(Fault::hang_up()).times(4), Whole, [5, 5, 4], SMALL);
    costs(of_the_hub(Fault::hang_up()), Error("download_failed", Yes), [5, 0, 4], 0);
}

#[test]
fn a_range_that_is_answered_with_200() {
    midway(Fault::ignore_range(), Whole, [2, 2, 1], FIRST + SMALL);
    // Each answer begins from the start, and none comes further than the first.
    let cut = Fault::ignore_range().and(Fault::cut(FIRST));
    midway(cut, Error("download_failed", Yes), [5, 5, 4], 5 * FIRST);
}

#[test]
fn an_etag_that_changes_midway() {
    // The one that tells of it, and then all of the file.
    midway(Fault::etag("second"), Whole, [3, 3, 1], None);
    // With other bytes, all of them are the new ones, which are not what was promised; that is tried twice.
    let other = Content::generated(SMALL, 8);
    midway(Fault::changed(other.clone()), Error("integrity_failed", No), [4, 4, 1], None);
    // For one answer alone, neither of the two is mixed with the other.
    midway(Fault::changed(other).once(), Whole, [4, 4, 1], None);
    let setup = cut();
    (0..8).for_each(|turn| setup.hub.fault(on_cdn(Fault::etag(format!("etag-{turn}")).once())));
    check(setup, Error("download_failed", Yes), [4, 4, 1], None);
}

#[test]
fn a_file_without_digest_that_changes_midway() {
    let other = Content::generated(SMALL, 8);
    let replaced = |fault: Fault| {
        let mut setup = cut().with_fault(on_cdn(fault));
        setup.files[0].digest = None;
        setup.contents.insert(MODEL.to_owned(), other.clone());
        setup
    };
    // All of the new one: a strong ETag is all that tells.
    check(replaced(Fault::changed(other.clone())), Whole, [3, 3, 1], None);
    // Also where the host does not look at what it is asked to compare, and sends the rest of the new one.
    let rest = other.read(FIRST..SMALL).unwrap();
    let part = Fault::answer(206, "application/octet-stream", rest).with_header("ETag", "\"second\"");
    let part = part.with_header("Content-Range", format!("bytes {FIRST}-{}/{SMALL}", SMALL - 1));
    let setup = replaced(part.once());
    setup.hub.fault(on_cdn(Fault::changed(other.clone())));
    check(setup, Whole, [4, 4, 1], None);
}

#[test]
fn wrong_bytes() {
    costs(on_cdn(Fault::wrong_bytes()), Error("integrity_failed", No), [2, 2, 0], 2 * SMALL);
    costs(on_cdn(Fault::wrong_byte(SMALL - 1)).once(), Whole, [2, 2, 0], 2 * SMALL);
    // Those that came before a cut are no longer asked for.
    midway(Fault::wrong_byte(SMALL - 1).once(), Whole, [3, 3, 1], 2 * SMALL);
}

#[test]
fn a_wrong_length() {
    for fault in [Fault::longer(5), Fault::shorter(5)] {
        costs(on_cdn(fault.clone()), Error("integrity_failed", No), [1, 1, 0], None);
        // The ETag is the old one, and the size tells.
        midway(fault, Error("integrity_failed", No), [2, 2, 1], None);
    }
    // An answer without a range says the size of the file.
    for length in [1000, -1000] {
        costs(on_cdn(Fault::content_length(length)), Error("integrity_failed", No), [1, 1, 0], None);
    }
}

#[test]
fn a_web_page() {
    costs(of_the_hub(Fault::html()), Error("download_failed", No), [1, 0, 0], 0);
    costs(on_cdn(Fault::html()), Error("download_failed", No), [1, 1, 0], None);
    midway(Fault::html(), Error("download_failed", No), [2, 2, 1], None);
}

#[test]
fn refusals_401_403_and_404() {
    for (status, code) in [(401, "unauthorized"), (403, "unauthorized"), (404, "not_found")] {
        costs(of_the_hub(Fault::status(status)), Error(code, No), [1, 0, 0], 0);
        let setup = cut().with_fault(of_the_hub(Fault::status(status)).skip(1));
        check(setup, Error(code, No), [2, 1, 1], FIRST);
    }
    costs(on_cdn(Fault::status(404)), Error("not_found", No), [1, 1, 0], 0);
    midway(Fault::status(404), Error("not_found", No), [2, 2, 1], FIRST);
}

#[test]
fn a_range_that_is_not_satisfiable() {
    midway(Fault::status(416).once(), Whole, [3, 3, 1], FIRST + SMALL);
    midway(Fault::status(416), Error("download_failed", No), [3, 3, 1], FIRST);
    costs(on_cdn(Fault::status(416)), Error("download_failed", No), [2, 2, 0], 0);
    let another_size = Fault::status(416).with_header("Content-Range", "bytes */4711");
    midway(another_size, Error("integrity_failed", No), [2, 2, 1], FIRST);
}

#[test]
fn too_many_requests() {
    for host in [Host::Hub, Host::Cdn] {
        let refused = |after| Fault::too_many_requests(after).path(MODEL).on(host);
        let cdn = |requests| if host == Host::Hub { 0 } else { requests };
        let setup = costs(refused("7").times(2), Whole, [3, 1 + cdn(2), 2], SMALL);
        assert!(setup.waits().iter().all(|wait| wait.as_secs() == 7), "{:?}", setup.waits());
        let setup = costs(refused("1"), Error("rate_limited", Yes), [5, cdn(5), 4], 0);
        assert!(setup.waits().iter().all(|wait| wait.as_secs() == 1), "{:?}", setup.waits());
        costs(refused("121"), Error("rate_limited", Yes), [1, cdn(1), 0], 0);
    }
}

#[test]
fn errors_of_a_server() {
    for status in [500, 502, 503, 504] {
        costs(on_cdn(Fault::status(status)).times(4), Whole, [5, 5, 4], SMALL);
        midway(Fault::status(status), Error("download_failed", Yes), [5, 5, 4], FIRST);
        costs(of_the_hub(Fault::status(status)), Error("download_failed", Yes), [5, 0, 4], 0);
    }
}

#[test]
fn a_signed_url_that_has_expired() {
    // A request to the source gives a new one, at once.
    costs(on_cdn(Fault::status(403)).once(), Whole, [2, 2, 0], SMALL);
    costs(on_cdn(Fault::status(403)), Error("download_failed", Yes), [5, 5, 3], 0);
    // Good for one request each, which is all that is asked of one: also where a connection is cut.
    let setup = of(SMALL).with_fault(on_cdn(Fault::cut(FIRST)));
    setup.hub.set_url_uses(Some(1));
    check(setup, Whole, [4, 4, 3], SMALL);
    let setup = of(SMALL);
    setup.hub.set_url_uses(Some(0));
    check(setup, Error("download_failed", Yes), [5, 5, 3], 0);
}
