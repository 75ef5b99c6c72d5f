//! Errors as the Hub words them: a status, a code, a message, and the message again as JSON.

use serde_json::json;

use crate::server::{Response, reason};

fn refusal(status: u16, code: Option<&str>, message: &str) -> Response {
    let response = Response::json(status, &json!({ "error": message }));
    let response = match code {
        Some(code) => response.with_header("X-Error-Code", code),
        None => response,
    };
    response.with_header("X-Error-Message", message)
}

/// An error that is told by its status alone.
pub(super) fn of_status(status: u16) -> Response {
    refusal(status, None, reason(status))
}

/// A repository that is not there, or may not be known of: the Hub does not tell the two apart, and without a token
/// it asks for one.
pub(super) fn repo_not_found(with_token: bool) -> Response {
    match with_token {
        true => refusal(404, Some("RepoNotFound"), "Repository not found"),
        false => refusal(401, Some("RepoNotFound"), "Invalid username or password."),
    }
}

/// A file of a gated repository.
pub(super) fn gated(id: &str, with_token: bool) -> Response {
    let restricted = format!("Access to model {id} is restricted");
    match with_token {
        true => {
            let advice = format!("Visit https://huggingface.co/{id} to ask for access.");
            refusal(403, Some("GatedRepo"), &format!("{restricted} and you are not in the authorized list. {advice}"))
        }
        false => {
            let advice = "You must have access to it and be authenticated to access it. Please log in.";
            refusal(401, Some("GatedRepo"), &format!("{restricted}. {advice}"))
        }
    }
}

pub(super) fn invalid_credentials() -> Response {
    refusal(401, None, "Invalid credentials in Authorization header")
}

pub(super) fn disabled() -> Response {
    refusal(403, None, "Access to this resource is disabled.")
}

pub(super) fn revision_not_found(revision: &str) -> Response {
    refusal(404, Some("RevisionNotFound"), &format!("Invalid rev id: {revision}"))
}

pub(super) fn entry_not_found(commit: &str) -> Response {
    refusal(404, Some("EntryNotFound"), "Entry not found").with_header("X-Repo-Commit", commit)
}

pub(super) fn no_such_page() -> Response {
    refusal(404, None, "Sorry, we can't find the page you are looking for.")
}

pub(super) fn method_not_allowed() -> Response {
    refusal(405, None, "Method not allowed")
}

pub(super) fn bad_request(message: &str) -> Response {
    refusal(400, None, message)
}

/// The second host refuses in XML, as object stores do.
pub(super) fn access_denied() -> Response {
    let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
                <Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
    Response::new(403, "application/xml", body)
}
