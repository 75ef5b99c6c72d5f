//! What goes wrong only with GitHub.

use serde_json::json;

use crate::server::{Fault, Host};

/// GitHub's limit on requests that come too fast, which is not the hourly one: 403 with a message that says so, some of
/// the hourly limit left, and `Retry-After` if `retry_after_seconds` is given. GitHub may send 429 as well:
/// `secondary_rate_limit(…).and(Fault::header(…))` changes headers, [`Fault::too_many_requests`] is a plain 429.
pub fn secondary_rate_limit(retry_after_seconds: Option<u64>) -> Fault {
    let body = json!({
        "message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
        "documentation_url": "https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api",
        "status": "403",
    });
    let fault = Fault::answer(403, "application/json; charset=utf-8", body.to_string())
        .with_header("X-RateLimit-Limit", "60")
        .with_header("X-RateLimit-Remaining", "42")
        .on(Host::Api);
    match retry_after_seconds {
        Some(seconds) => fault.with_header("Retry-After", seconds.to_string()),
        None => fault,
    }
}
