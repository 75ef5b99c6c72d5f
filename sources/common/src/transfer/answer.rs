//! What an answer to a request for bytes means. Plain values in, a verdict out.

use std::ops::Range;

/// What was asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked<'a> {
    /// The file's name.
    pub(super) path: &'a str,
    /// Its size by the manifest.
    pub(super) size: u64,
    /// The bytes asked for; all of them without `Range`.
    pub(super) range: Range<u64>,
    /// The ETag that bytes of this file came under before.
    pub(super) validator: Option<&'a str>,
    /// Whether a digest will tell in the end if all bytes belong together.
    pub(super) has_digest: bool,
}

/// What came back.
#[derive(Debug, Clone, Default)]
pub(super) struct Head<'a> {
    pub(super) status: u16,
    pub(super) content_type: Option<&'a str>,
    pub(super) content_length: Option<&'a str>,
    pub(super) content_range: Option<&'a str>,
    pub(super) content_encoding: Option<&'a str>,
    pub(super) etag: Option<&'a str>,
}

/// What it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The body is the file from where it was asked for up to this offset.
    Part(u64),
    /// The body is the file from its start.
    Whole,
    /// The file is another one now.
    Changed,
    /// The host says that the file has this size, which is not the one in the manifest.
    Size(u64),
    /// The host says that the range lies beyond the end of the file, but not that the file has another size.
    Beyond,
    /// This is no answer that can be used, nor will there be one.
    Unusable(String),
    /// The host refuses.
    Refused,
}

/// Whether `If-Range` can be asked with `etag`: not with a weak one, under which the bytes may differ (RFC 9110, 13.1.5).
pub(super) fn is_strong(etag: &str) -> bool {
    etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"')
}

/// What `head` says to `asked`.
pub(super) fn judge(asked: &Asked<'_>, head: &Head<'_>) -> Verdict {
    let changed = || match (asked.validator, head.etag) {
        (Some(known), Some(now)) => known != now,
        // An answer to `If-Range` has the ETag (RFC 9110, 15.3.7); where nothing else would tell, it must.
        (Some(_), None) => !asked.has_digest,
        (None, _) => false,
    };
    match head.status {
        200 | 206 if is_web_page(asked, head) => Verdict::Unusable("the answer is a web page, not the file".to_owned()),
        200 | 206 if is_encoded(head) => {
            let encoding = head.content_encoding.unwrap_or_default().escape_debug();
            Verdict::Unusable(format!("the answer is encoded (`{encoding}`) although no encoding was asked for"))
        }
        200 => match head.content_length.and_then(|length| length.trim().parse::<u64>().ok()) {
            Some(length) if length != asked.size => Verdict::Size(length),
            _ if changed() => Verdict::Changed,
            _ => Verdict::Whole,
        },
        206 => {
            let Some((first, last, total)) = head.content_range.and_then(parse_content_range) else {
                return Verdict::Unusable("the answer is a part of the file without saying which".to_owned());
            };
            let fits = first == asked.range.start && last >= first && last < asked.range.end;
            match total {
                Some(total) if total != asked.size => Verdict::Size(total),
                _ if !fits => Verdict::Unusable(format!(
                    "the answer holds the bytes {first} to {last}, not {} to {}",
                    asked.range.start,
                    asked.range.end.saturating_sub(1)
                )),
                _ if changed() => Verdict::Changed,
                _ => Verdict::Part(last + 1),
            }
        }
        416 => match head.content_range.and_then(parse_unsatisfied) {
            Some(total) if total != asked.size => Verdict::Size(total),
            _ => Verdict::Beyond,
        },
        status if (200..300).contains(&status) => Verdict::Unusable(format!("the status {status} brings no file")),
        _ => Verdict::Refused,
    }
}

fn is_web_page(asked: &Asked<'_>, head: &Head<'_>) -> bool {
    let name = asked.path.to_ascii_lowercase();
    let kind = head.content_type.unwrap_or_default().trim_start().to_ascii_lowercase();
    kind.starts_with("text/html") && !name.ends_with(".html") && !name.ends_with(".htm")
}

fn is_encoded(head: &Head<'_>) -> bool {
    head.content_encoding.is_some_and(|e| !e.trim().is_empty() && !e.trim().eq_ignore_ascii_case("identity"))
}

/// `bytes 0-9/100` or `bytes 0-9/*`.
fn parse_content_range(value: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?, total))
}

/// `bytes */100`.
fn parse_unsatisfied(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes")?.trim_start().strip_prefix("*/")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked<'static> {
        Asked { path: "a.bin", size: 100, range: 10..50, validator: Some("\"v1\""), has_digest: true }
    }

    fn part(content_range: &'static str) -> Head<'static> {
        Head { status: 206, content_range: Some(content_range), etag: Some("\"v1\""), ..Head::default() }
    }

    fn whole(content_length: &'static str) -> Head<'static> {
        Head { status: 200, content_length: Some(content_length), etag: Some("\"v1\""), ..Head::default() }
    }

    fn unusable(asked: &Asked<'_>, head: &Head<'_>, words: &str) {
        match judge(asked, head) {
            Verdict::Unusable(reason) => assert!(reason.contains(words), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_part_is_taken_if_it_is_the_one_asked_for() {
        assert_eq!(judge(&asked(), &part("bytes 10-49/100")), Verdict::Part(50));
        assert_eq!(judge(&asked(), &part("bytes 10-49/*")), Verdict::Part(50));
        assert_eq!(judge(&asked(), &part("bytes 10-19/100")), Verdict::Part(20));
        assert_eq!(judge(&asked(), &part("bytes 10-49/101")), Verdict::Size(101));
        for wrong in ["bytes 11-49/100", "bytes 10-50/100", "bytes 0-49/100", "bytes 10-9/100"] {
            unusable(&asked(), &part(wrong), "not 10 to 49");
        }
        for garbage in ["", "bytes", "bytes 10-/100", "10-49/100", "bytes 10-49/x", "bytes -1-49/100"] {
            unusable(&asked(), &part(garbage), "without saying which");
        }
        unusable(&asked(), &Head { content_range: None, ..part("") }, "without saying which");
    }

    #[test]
    fn another_etag_is_another_file() {
        let other = Some("\"v2\"");
        assert_eq!(judge(&asked(), &Head { etag: other, ..part("bytes 10-49/100") }), Verdict::Changed);
        assert_eq!(judge(&asked(), &Head { etag: other, ..whole("100") }), Verdict::Changed);
        let fresh = Asked { validator: None, ..asked() };
        assert_eq!(judge(&fresh, &Head { etag: other, ..part("bytes 10-49/100") }), Verdict::Part(50));
    }

    #[test]
    fn without_an_etag_only_a_digest_lets_parts_be_put_together() {
        let silent = Head { etag: None, ..part("bytes 10-49/100") };
        assert_eq!(judge(&asked(), &silent), Verdict::Part(50));
        assert_eq!(judge(&Asked { has_digest: false, ..asked() }, &silent), Verdict::Changed);
    }

    #[test]
    fn a_whole_file_must_have_its_size() {
        assert_eq!(judge(&asked(), &whole("100")), Verdict::Whole);
        assert_eq!(judge(&asked(), &Head { content_length: None, ..whole("") }), Verdict::Whole);
        assert_eq!(judge(&asked(), &whole("99")), Verdict::Size(99));
    }

    #[test]
    fn a_range_beyond_the_end_is_about_the_size_or_starts_over() {
        let head = |range| Head { status: 416, content_range: range, ..Head::default() };
        assert_eq!(judge(&asked(), &head(Some("bytes */40"))), Verdict::Size(40));
        assert_eq!(judge(&asked(), &head(Some("bytes */100"))), Verdict::Beyond);
        assert_eq!(judge(&asked(), &head(None)), Verdict::Beyond);
    }

    #[test]
    fn a_web_page_or_an_encoding_is_no_file() {
        let page = Head { content_type: Some("Text/HTML; charset=utf-8"), ..whole("100") };
        unusable(&asked(), &page, "web page");
        assert_eq!(judge(&Asked { path: "a.HTML", ..asked() }, &page), Verdict::Whole);
        unusable(&asked(), &Head { content_encoding: Some("gzip"), ..whole("100") }, "`gzip`");
        assert_eq!(judge(&asked(), &Head { content_encoding: Some("Identity"), ..whole("100") }), Verdict::Whole);
    }

    #[test]
    fn other_statuses_refuse_or_bring_nothing() {
        for status in [301, 304, 400, 401, 403, 404, 429, 500, 503] {
            assert_eq!(judge(&asked(), &Head { status, ..Head::default() }), Verdict::Refused);
        }
        unusable(&asked(), &Head { status: 204, ..Head::default() }, "204");
    }

    #[test]
    fn only_a_strong_etag_is_asked_with() {
        assert!(is_strong("\"abc\""));
        for weak in ["W/\"abc\"", "abc", "\"\"", "\""] {
            assert!(!is_strong(weak), "{weak}");
        }
    }
}
