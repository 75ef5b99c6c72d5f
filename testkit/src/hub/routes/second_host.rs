//! The second host: files by their SHA-256, for those who have a signed URL.

use super::{refusal, resolve::disposition};
use crate::server::{Content, Request, Response, SignedUrls, Subject, digest, percent};

/// What a signature is called in a query.
const SIGNATURE: &str = "X-Signature";

/// Path and query of a new URL for a file.
pub(super) fn sign(urls: &SignedUrls, repo: &str, file: &str, content: &Content) -> String {
    let path = path_of(content);
    let subject = Subject { repo: repo.to_owned(), tag: None, file: file.to_owned() };
    let signature = urls.sign(&path, subject, content);
    let disposition = percent::encode(&disposition(file));
    format!("{path}?response-content-disposition={disposition}&Expires=4102444800&{SIGNATURE}={signature}")
}

/// The file that `request` has a URL for, expired or not.
pub(super) fn subject(urls: &SignedUrls, request: &Request) -> Option<Subject> {
    urls.subject(&request.query(SIGNATURE)?)
}

/// The whole answer.
pub(super) fn answer(urls: &SignedUrls, request: &Request) -> Response {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return refusal::method_not_allowed();
    }
    let Ok(signed) = urls.redeem(&request.path, request.query(SIGNATURE)) else { return refusal::access_denied() };
    // Object stores have ETags of their own, which are not the file's SHA-256.
    let etag = &digest::sha1_of(["etag", signed.content.sha256()])[..32];
    Response::file(&signed.content, "application/octet-stream", etag)
        .with_header("Content-Disposition", disposition(&signed.subject.file))
}

fn path_of(content: &Content) -> String {
    format!("/blob/{}", content.sha256())
}
