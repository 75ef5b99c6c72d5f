//! How hosts ask to slow down: by headers, and GitHub in words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use llm_local_core::Refusal;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

/// The wait that GitHub's documentation asks for where an answer says that there was a limit, and not until when.
const UNTOLD: Duration = Duration::from_secs(60);

/// The wait that `refusal` asks for, if it does: by `Retry-After` as seconds or as a date, else a window of `RateLimit`
/// (draft-ietf-httpapi-ratelimit-headers, as the Hugging Face Hub sends it) or of `X-RateLimit-*` (GitHub) in which nothing
/// remains.
pub(super) fn wait_asked(refusal: &Refusal, wall: SystemTime) -> Option<Duration> {
    refusal
        .header("retry-after")
        .and_then(|value| retry_after(value, wall))
        .or_else(|| refusal.header("ratelimit").and_then(exhausted))
        .or_else(|| x_ratelimit(refusal, wall))
}

/// Whether the body of an answer may say that there was a limit, where its headers do not.
pub(super) fn may_say_more(status: u16, content_type: Option<&str>) -> bool {
    let kind = content_type.unwrap_or_default().trim_start().to_ascii_lowercase();
    matches!(status, 403 | 429) && ["application/json", "text/plain"].iter().any(|text| kind.starts_with(text))
}

/// The wait that the body of an answer asks for by its words. GitHub refuses requests that come too fast (its secondary
/// limits, formerly "abuse detection") by a 403 or 429 that tells no time, while much of the hourly limit is left.
pub(super) fn wait_said(status: u16, body: &[u8]) -> Option<Duration> {
    let text = String::from_utf8_lossy(body).to_ascii_lowercase();
    let secondary = ["secondary rate limit", "abuse detection"].iter().any(|words| text.contains(words));
    (secondary || status == 403 && text.contains("rate limit")).then_some(UNTOLD)
}

fn retry_after(value: &str, wall: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date: SystemTime = OffsetDateTime::parse(value, &Rfc2822).ok()?.into();
    // A date that has passed asks for no wait.
    Some(date.duration_since(wall).unwrap_or_default())
}

/// The longest wait of the windows of `"name";r=<left>;t=<seconds until it starts anew>` in which nothing is left.
fn exhausted(value: &str) -> Option<Duration> {
    let window = |item: &str| {
        let number = |name: &str| {
            let mut parameters = item.split(';').filter_map(|p| p.trim().split_once('='));
            parameters.find(|(n, _)| *n == name).and_then(|(_, v)| v.trim().parse::<u64>().ok())
        };
        (number("r")? == 0).then(|| number("t")).flatten()
    };
    value.split(',').filter_map(window).max().map(Duration::from_secs)
}

fn x_ratelimit(refusal: &Refusal, wall: SystemTime) -> Option<Duration> {
    let number = |name| refusal.header(name).and_then(|v| v.trim().parse::<u64>().ok());
    if number("x-ratelimit-remaining")? != 0 {
        return None;
    }
    let reset = UNIX_EPOCH.checked_add(Duration::from_secs(number("x-ratelimit-reset")?))?;
    Some(reset.duration_since(wall).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(headers: &[(&str, &str)]) -> Option<u64> {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        // Sun, 06 Nov 1994 08:49:07 GMT
        let wall = UNIX_EPOCH + Duration::from_secs(784_111_747);
        wait_asked(&Refusal::new(429, headers), wall).map(|wait| wait.as_secs())
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        assert_eq!(said(&[("retry-after", "17")]), Some(17));
        assert_eq!(said(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(30));
        assert_eq!(said(&[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")]), Some(0));
        assert_eq!(said(&[("retry-after", "soon")]), None);
        assert_eq!(said(&[]), None);
    }

    #[test]
    fn a_window_counts_only_when_nothing_is_left_in_it() {
        assert_eq!(said(&[("ratelimit", r#""api";r=0;t=30"#)]), Some(30));
        assert_eq!(said(&[("ratelimit", r#""api";r=3;t=30, "resolvers";r=0;t=12"#)]), Some(12));
        assert_eq!(said(&[("ratelimit", r#""api";r=3;t=30"#)]), None);
        assert_eq!(said(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "784111787")]), Some(40));
        assert_eq!(said(&[("x-ratelimit-remaining", "1"), ("x-ratelimit-reset", "784111787")]), None);
        assert_eq!(said(&[("retry-after", "5"), ("ratelimit", r#""api";r=0;t=30"#)]), Some(5));
    }

    #[test]
    fn a_limit_that_is_only_put_into_words_asks_for_a_minute() {
        let minute = Some(Duration::from_secs(60));
        let secondary = br#"{"message":"You have exceeded a secondary rate limit. Please wait."}"#;
        let abuse = br#"{"message":"You have triggered an abuse detection mechanism."}"#;
        for (status, body, wait) in [
            (403, &secondary[..], minute),
            (429, secondary, minute),
            (403, abuse, minute),
            (403, b"API Rate Limit exceeded for 1.2.3.4", minute),
            // The time is for whoever asks to find out.
            (429, b"rate limit", None),
            (403, br#"{"message":"Resource not accessible by personal access token"}"#, None),
            (403, b"\xff\xfe", None),
        ] {
            assert_eq!(wait_said(status, body), wait, "{status} {}", String::from_utf8_lossy(body));
        }
        assert!(may_say_more(403, Some("application/json; charset=utf-8")) && may_say_more(429, Some("Text/plain")));
        assert!(!may_say_more(403, Some("text/html")) && !may_say_more(403, None));
        assert!(!may_say_more(404, Some("application/json")));
    }
}
