use super::{ask, get, head};
use crate::hub::{Content, Fault, Host, Hub, Outcome, Repo};

const PLAIN: &str = "/org/tiny/resolve/main/file.bin";
const BYTES: &[u8] = b"0123456789";

fn hub() -> Hub {
    Hub::builder().with_repo(Repo::new("org/tiny").with_file("file.bin", BYTES).with_lfs("big.bin", BYTES)).start()
}

#[test]
fn a_connection_can_be_cut_at_any_byte() {
    let hub = hub();
    for bytes in [0, 1, 9] {
        hub.fault(Fault::cut(bytes).once());
        let answer = get(hub.address(), PLAIN, &[]);
        assert_eq!(answer.body, BYTES[..bytes as usize]);
        assert_eq!(answer.header("content-length"), Some("10"));
    }
    hub.fault(Fault::cut(2).once());
    assert_eq!(get(hub.address(), PLAIN, &[("Range", "bytes=4-")]).body, b"45", "counted from where the range begins");
    hub.fault(Fault::cut(10).once());
    assert!(get(hub.address(), PLAIN, &[]).is_whole(), "there are no more bytes than that");
    hub.fault(Fault::hang_up().once());
    assert!(ask(hub.address(), "GET", PLAIN, &[], b"").is_none());

    let outcomes: Vec<_> = hub.wait_until_idle().iter().map(|request| (request.status, request.outcome)).collect();
    let (cut, finished) = (Outcome::Cut, Outcome::Finished);
    assert_eq!(outcomes, [(200, cut), (200, cut), (200, cut), (206, cut), (200, finished), (0, cut)]);
}

#[test]
fn a_range_can_be_ignored_and_only_a_range_uses_that_up() {
    let hub = hub();
    hub.fault(Fault::ignore_range().once());
    assert_eq!(get(hub.address(), PLAIN, &[]).status, 200);
    let range = [("Range", "bytes=4-")];
    assert_eq!(get(hub.address(), PLAIN, &range).body, BYTES);
    assert_eq!(get(hub.address(), PLAIN, &range).body, BYTES[4..]);
}

#[test]
fn the_etag_changes_midway_and_if_range_fails_from_then_on() {
    let hub = hub();
    let etag = head(hub.address(), PLAIN).header("etag").unwrap().to_owned();
    hub.fault(Fault::etag("other").skip(1));
    let ask = || get(hub.address(), PLAIN, &[("Range", "bytes=4-"), ("If-Range", &etag)]);
    assert_eq!(ask().status, 206);
    let later = ask();
    assert_eq!((later.status, later.header("etag")), (200, Some("\"other\"")));
    assert_eq!(head(hub.address(), "/org/tiny/resolve/main/big.bin").header("x-linked-etag"), Some("\"other\""));
}

#[test]
fn a_file_is_replaced_midway() {
    let hub = hub();
    hub.fault(Fault::changed("another file").skip(1));
    let before = get(hub.address(), PLAIN, &[]);
    let after = get(hub.address(), PLAIN, &[("Range", "bytes=4-"), ("If-Range", before.header("etag").unwrap())]);
    assert_eq!((after.status, &*after.body), (200, &b"another file"[..]));
    assert_ne!(after.header("etag"), before.header("etag"));
}

#[test]
fn wrong_bytes_come_under_the_old_etag() {
    let hub = hub();
    let etag = get(hub.address(), PLAIN, &[]).header("etag").unwrap().to_owned();
    hub.fault(Fault::wrong_byte(5).times(2));
    hub.fault(Fault::wrong_bytes().once());
    let one = get(hub.address(), PLAIN, &[]);
    assert_eq!((&*one.body, one.header("etag")), (&b"01234\xca6789"[..], Some(&*etag)));
    assert_eq!(get(hub.address(), PLAIN, &[("Range", "bytes=4-6")]).body, b"4\xca6");
    let all: Vec<u8> = BYTES.iter().map(|byte| !byte).collect();
    assert_eq!(get(hub.address(), PLAIN, &[]).body, all);
    assert_eq!(get(hub.address(), PLAIN, &[]).body, BYTES);
}

#[test]
fn a_wrong_length_can_be_that_of_the_file_or_that_of_the_promise() {
    let hub = hub();
    for fault in [Fault::longer(2), Fault::shorter(3), Fault::content_length(5), Fault::content_length(-4)] {
        hub.fault(fault.once());
    }
    let longer = get(hub.address(), PLAIN, &[("Range", "bytes=8-")]);
    assert_eq!((&*longer.body, longer.header("content-range")), (&b"89\0\0"[..], Some("bytes 8-11/12")));
    let shorter = get(hub.address(), PLAIN, &[]);
    assert!(shorter.is_whole() && shorter.body == BYTES[..7]);
    for promised in ["15", "6"] {
        let answer = get(hub.address(), PLAIN, &[]);
        assert_eq!((answer.header("content-length"), &*answer.body), (Some(promised), BYTES));
    }
}

#[test]
fn errors_pages_and_redirects_take_the_place_of_the_answer() {
    let hub = hub();
    hub.fault(Fault::html().once());
    hub.fault(Fault::status(503).times(2));
    hub.fault(Fault::too_many_requests("120").once());
    hub.fault(Fault::status(416).once());
    hub.fault(Fault::status(403).with_header("X-Error-Code", "GatedRepo").once());
    hub.fault(Fault::redirect(301, "http://elsewhere/x").once());
    hub.fault(Fault::redirect_loop().once());
    let ask = || get(hub.address(), PLAIN, &[("Range", "bytes=4-")]);

    let page = ask();
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!([ask().status, ask().status], [503, 503]);
    let limited = ask();
    assert_eq!((limited.status, limited.header("retry-after")), (429, Some("120")));
    let beyond = ask();
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */10")));
    let gated = ask();
    assert_eq!((gated.status, gated.header("x-error-code")), (403, Some("GatedRepo")));
    assert_eq!(ask().header("location"), Some("http://elsewhere/x"));
    assert_eq!(ask().header("location"), Some(PLAIN));
    assert_eq!(ask().body, BYTES[4..]);
}

#[test]
fn an_encoded_body_says_so() {
    let hub = hub();
    hub.fault(Fault::gzip().once());
    let answer = get(hub.address(), PLAIN, &[]);
    assert_eq!((answer.header("content-encoding"), answer.is_whole()), (Some("gzip"), true));
    assert_eq!(&answer.body[15..25], BYTES, "stored, not compressed");
}

#[test]
fn a_fault_is_only_for_the_requests_it_names() {
    let hub = hub();
    let redirect = || get(hub.address(), "/org/tiny/resolve/main/big.bin", &[]);
    hub.fault(Fault::status(500).on(Host::Cdn).path("org/tiny/*.bin"));
    assert_eq!(get(hub.address(), PLAIN, &[]).status, 200);
    let found = redirect();
    assert_eq!(found.status, 302);
    let (host, target) = found.location();
    assert_eq!(get(host, target, &[]).status, 500, "the second host knows the file by its name");
    hub.clear_faults();
    assert_eq!(get(host, target, &[]).body, BYTES);

    hub.fault(Fault::cut(1).path("big.bin").once());
    assert_eq!(redirect().status, 302, "a redirect has no body of its own");
    assert_eq!(head(host, target).status, 200, "nor has a HEAD");
    assert_eq!(get(host, target, &[]).body, b"0");

    hub.fault(Fault::status(502).method("HEAD").path("/api/*"));
    assert_eq!(head(hub.address(), "/api/models/org/tiny").status, 502);
    assert_eq!(get(hub.address(), "/api/models/org/tiny", &[]).status, 200);
}

#[test]
fn several_things_go_wrong_with_one_answer() {
    let hub = hub();
    hub.fault(Fault::etag("x").and(Fault::cut(3)).with_header("Server", "proxy").once());
    let answer = get(hub.address(), PLAIN, &[]);
    assert_eq!((answer.header("etag"), answer.header("server")), (Some("\"x\""), Some("proxy")));
    assert_eq!(answer.body, BYTES[..3]);
}

#[test]
fn a_slow_body_is_whole_in_the_end() {
    let content = Content::generated(4000, 1);
    let hub = Hub::builder().with_repo(Repo::new("org/tiny").with_file("file.bin", content.clone())).start();
    hub.fault(Fault::slow(40_000_000));
    assert_eq!(get(hub.address(), PLAIN, &[]).body, content.read(0..4000).unwrap());
}
