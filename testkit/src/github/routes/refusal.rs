//! Errors as GitHub words them.

use serde_json::json;

use super::rate_limits::Allowance;
use crate::server::{Host, Response, reason, signed::Unsigned};

const DOCUMENTATION: &str = "https://docs.github.com/rest";

/// An error of the API.
fn api(status: u16, message: &str) -> Response {
    let body = json!({ "message": message, "documentation_url": DOCUMENTATION, "status": status.to_string() });
    Response::json(status, &body)
}

/// An error that is told by its status alone.
pub(super) fn of_status(host: Host, status: u16) -> Response {
    match host {
        Host::Cdn => object_store(status, "ServerBusy", reason(status)),
        Host::Web => page(status),
        _ => api(status, reason(status)),
    }
}

pub(super) fn not_found() -> Response {
    api(404, "Not Found")
}

pub(super) fn bad_credentials() -> Response {
    api(401, "Bad credentials")
}

pub(super) fn no_commit(reference: &str) -> Response {
    api(422, &format!("No commit found for SHA: {reference}"))
}

pub(super) fn unsupported_version(version: &str) -> Response {
    api(400, &format!("The API version {version:?} is not supported."))
}

pub(super) fn unsupported_media_type(accept: &str) -> Response {
    api(415, &format!("Unsupported 'Accept' header: {accept:?}. Must accept 'application/json'."))
}

/// Where no request is left.
pub(super) fn rate_limited(status: u16, token: bool, allowance: Allowance) -> Response {
    let message = match token {
        true => {
            "API rate limit exceeded for user ID 1. If you reach out to GitHub Support for help, please include \
                 the request ID."
        }
        false => {
            "API rate limit exceeded for 127.0.0.1. (But here's the good news: Authenticated requests get a \
                  higher rate limit. Check out the documentation for more details.)"
        }
    };
    allowance.told_in(api(status, message))
}

/// Requests without a `User-Agent` do not come as far as the API.
pub(super) fn no_user_agent() -> Response {
    let message = "Request forbidden by administrative rules. Please make sure your request has a User-Agent header \
                   (https://docs.github.com/en/rest/overview/resources-in-the-rest-api#user-agent-required).";
    Response::new(403, "text/html; charset=utf-8", format!("\r\n{message}\r\n"))
}

/// A renamed repository, at `location`.
pub(super) fn moved(location: &str) -> Response {
    let body = json!({ "message": "Moved Permanently", "url": location, "documentation_url": DOCUMENTATION });
    Response::json(301, &body).with_header("Location", location)
}

/// An error of the web pages.
pub(super) fn page(status: u16) -> Response {
    let reason = reason(status);
    let body =
        format!("<!DOCTYPE html><html><head><title>{reason} · GitHub</title></head><body>{reason}</body></html>");
    Response::new(status, "text/html; charset=utf-8", body)
}

/// The object store refuses in XML.
fn object_store(status: u16, code: &str, message: &str) -> Response {
    let error = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    Response::new(status, "application/xml", format!("<?xml version=\"1.0\" encoding=\"utf-8\"?>{error}"))
}

pub(super) fn unsigned(why: Unsigned) -> Response {
    let detail = match why {
        Unsigned::Mismatch => "Signature did not match.",
        Unsigned::Expired => "Signature not valid in the specified time frame.",
    };
    object_store(403, "AuthenticationFailed", &format!("Server failed to authenticate the request. {detail}"))
}

/// A signed URL is all that authorizes, so a token beside it is a mistake.
pub(super) fn authorization_beside_signature() -> Response {
    let message = "Authentication information is not given in the correct format. Check the value of Authorization \
                   header.";
    object_store(400, "InvalidAuthenticationInfo", message)
}

pub(super) fn no_such_object() -> Response {
    object_store(404, "BlobNotFound", "The specified blob does not exist.")
}
