//! What goes wrong only with GitHub.

use serde_json::json;

use crate::server::{Fault, Host};

/// GitHub's limit on requests that come too fast, which is not the hourly one: `status`, 403 or 429, with a message that
/// says so, some of the hourly limit left, and `Retry-After` if `retry_after_seconds` is given; clients are to wait at
/// least a minute without. It is for the API.
pub fn secondary_rate_limit(status: u16, retry_after_seconds: Option<u64>) -> Fault {
    let body = json!({
        "message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
        "documentation_url": "https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api",
        "status": status.to_string(),
    });
    let fault = Fault::answer(status, "application/json; charset=utf-8", body.to_string())
        .with_header("X-RateLimit-Limit", "60")
        .with_header("X-RateLimit-Remaining", "42")
        .on(Host::Api);
    match retry_after_seconds {
        Some(seconds) => fault.with_header("Retry-After", seconds.to_string()),
        None => fault,
    }
}
