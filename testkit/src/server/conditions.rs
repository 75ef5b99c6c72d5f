//! Conditions and ranges (RFC 9110, 13 and 14).

use std::ops::Range;

use super::{Content, Request, Response};

/// What of the whole answer `response` the request gets: `304` where it has that version already, a range where it
/// asks for one of a file that can be had in ranges, `416` where the file has no such range.
pub(super) fn apply(request: &Request, response: &mut Response) {
    if response.status != 200 {
        return;
    }
    if is_known(request, response) {
        response.status = 304;
        return;
    }
    let etag = response.header("etag").map(str::to_owned);
    if request.method != "GET" || response.header("accept-ranges") != Some("bytes") {
        return;
    }
    // A strong comparison: a date or a weak validator never holds here.
    if request.header("if-range").is_some_and(|validator| Some(validator) != etag.as_deref()) {
        return;
    }
    let size = response.body.size();
    match request.header("range").and_then(|range| parse(range, size)) {
        Some(Some(range)) => {
            response.status = 206;
            response.set_header("Content-Range", format!("bytes {}-{}/{size}", range.start, range.end - 1));
            response.range = range;
        }
        Some(None) => not_satisfiable(response, size),
        None => {}
    }
}

/// Whether the client has the version `response` already, by what it says in `If-None-Match`.
pub(crate) fn is_known(request: &Request, response: &Response) -> bool {
    let (Some(known), Some(etag)) = (request.header("if-none-match"), response.header("etag")) else { return false };
    known.split(',').any(|known| known.trim() == "*" || opaque(known) == opaque(etag))
}

/// Makes `response` the answer to a range that a file of `size` bytes does not have.
pub(super) fn not_satisfiable(response: &mut Response, size: u64) {
    response.status = 416;
    response.set_header("Content-Range", format!("bytes */{size}"));
    response.replace_body(Content::from(""));
}

/// The one range that `header` asks for, `Some(None)` if none of it lies in `size` bytes, `None` if it is not one range
/// of bytes: then a server may ignore it.
fn parse(header: &str, size: u64) -> Option<Option<Range<u64>>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.trim(), last.trim()) {
        ("", last) => size.saturating_sub(last.parse().ok()?)..size,
        (first, "") => first.parse().ok()?..size,
        (first, last) => {
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            if last < first {
                return None;
            }
            first..last.saturating_add(1).min(size)
        }
    };
    Some((!range.is_empty()).then_some(range))
}

fn opaque(etag: &str) -> &str {
    let etag = etag.trim();
    etag.strip_prefix("W/").unwrap_or(etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_has_them() {
        for (header, expected) in [
            ("bytes=0-0", Some(Some(0..1))),
            ("bytes=2-", Some(Some(2..10))),
            ("bytes=-3", Some(Some(7..10))),
            ("bytes=-30", Some(Some(0..10))),
            ("bytes=8-100", Some(Some(8..10))),
            ("bytes=10-", Some(None)),
            ("bytes=-0", Some(None)),
            ("bytes=3-2", None),
            ("bytes=0-1,4-5", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(parse(header, 10), expected, "{header}");
        }
        assert_eq!(parse("bytes=0-", 0), Some(None), "nothing of an empty file");
    }
}
