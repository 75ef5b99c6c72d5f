//! Lists that come in pages.

use reqwest::Url;

use super::{Failure, address};

/// The URL of the page after the one at `url`, by the header `Link` that came with it (RFC 8288); `None` if it is the last.
/// Whatever credential went with the first page goes with the next, so that must be of the same scheme, host and port.
///
/// # Errors
/// A permanent [`Failure`] for a page elsewhere.
pub fn next_page(link: &str, url: &str) -> Result<Option<String>, Failure> {
    let Some(target) = target(link) else { return Ok(None) };
    match Url::parse(url).and_then(|url| Ok((url.join(target)?, url))) {
        Ok((next, url)) if address::same_origin(&next, &url) => Ok(Some(next.into())),
        _ => Err(Failure::permanent(address::shown(url), "the list goes on at another host, which is not asked")),
    }
}

/// What the link called `next` leads to.
fn target(mut link: &str) -> Option<&str> {
    loop {
        // A URL may hold commas, so each ends where its brackets do.
        let (target, rest) = link.split_once('<')?.1.split_once('>')?;
        let (parameters, after) = rest.split_at(rest.find('<').unwrap_or(rest.len()));
        let is_next = |p: &str| matches!(p.trim().trim_end_matches([',', ' ']), "rel=\"next\"" | "rel=next");
        if parameters.split(';').any(is_next) {
            return Some(target);
        }
        link = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(link: &str, url: &str) -> Option<String> {
        next_page(link, url).unwrap()
    }

    #[test]
    fn the_next_page_is_read_from_the_link_header() {
        let link = r#"<https://a/r?page=1>; rel="prev", <https://a/r?per_page=100&page=3,4>; rel="next", <https://a/r?page=9>; rel="last""#;
        assert_eq!(next(link, "https://a:443/r").as_deref(), Some("https://a/r?per_page=100&page=3,4"));
        assert_eq!(
            next("</r?cursor=x>; title=\"y\"; rel=next", "https://a/q?z").as_deref(),
            Some("https://a/r?cursor=x")
        );
        for last in [
            "",
            "<https://a/r?page=1>; rel=\"prev\"",
            "<https://a/r>",
            "rel=\"next\"",
            "<https://b/next>; rel=\"nextish\"",
        ] {
            assert_eq!(next(last, "https://a/r"), None, "{last}");
        }
    }

    #[test]
    fn a_page_elsewhere_is_not_asked_for() {
        for target in
            ["https://b/r?sig=abc", "http://a/r?sig=abc", "https://a:444/r?sig=abc", "//b/r?sig=abc", "https://"]
        {
            let failure = next_page(&format!("<{target}>; rel=\"next\""), "https://a/list?token=abc").unwrap_err();
            let text = failure.error.to_string();
            assert!(text.contains("another host") && text.contains("a/list") && !text.contains("abc"), "{text}");
            assert!(!failure.error.is_retryable());
        }
    }
}
