//! The API.

use super::{
    access::Visitor,
    refusal,
    site::Site,
    target::{self, Wanted},
    wanted,
};
use crate::server::{Request, Response, conditions, digest, percent};

/// The versions of the API that there are.
const VERSIONS: [&str; 2] = ["2022-11-28", "2026-03-10"];
const BYTES: &str = "application/octet-stream";

/// A request whose sender is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The URL of the API as it was asked.
    pub(super) base: &'a str,
    /// What comes after it, without the query.
    pub(super) path: &'a str,
    pub(super) request: &'a Request,
    pub(super) visitor: Visitor<'a>,
}

/// The answer to `request` to the API at the URL `base`, of which `path` is asked.
pub(super) fn answer(site: &Site, base: &str, path: &str, request: &Request) -> Response {
    if request.header("user-agent").is_none_or(|agent| agent.trim().is_empty()) {
        return refusal::no_user_agent();
    }
    let (visitor, refused) = match Visitor::of(request, site.tokens()) {
        Ok(visitor) => (visitor, None),
        Err(refusal) => (Visitor::Anonymous, Some(refusal)),
    };
    if path == "/rate_limit" && refused.is_none() {
        let allowance = site.rate_limits().of(visitor);
        return allowance.told_in(Response::json(200, &allowance.json()));
    }
    if let Err(allowance) = site.rate_limits().take(visitor) {
        return refusal::rate_limited(site.rate_limit_status(), visitor.token().is_some(), allowance);
    }
    let response = match refused {
        Some(refusal) => refusal,
        None => validated(site, Asked { base, path, request, visitor }).unwrap_or_else(|refusal| refusal),
    };
    let response = with_validators(request, visitor, response);
    // Documented for requests with a token only: "…and the request was made while correctly authorized".
    let mut limits = site.rate_limits();
    if visitor.token().is_some() && response.status == 200 && conditions::is_known(request, &response) {
        limits.give_back(visitor);
    }
    limits.of(visitor).told_in(response).with_header("X-GitHub-Media-Type", "github.v3; format=json")
}

/// `response` with an ETag, which depends on who asks and how.
fn with_validators(request: &Request, visitor: Visitor<'_>, response: Response) -> Response {
    if response.status != 200 || response.header("etag").is_some() {
        return response;
    }
    let link = response.header("link").unwrap_or_default();
    let token = visitor.token().unwrap_or_default();
    let parts = [response.body.sha256(), link, token, request.header("accept").unwrap_or_default()];
    let etag = format!("W/\"{}\"", digest::sha1_of(parts));
    let scope = if token.is_empty() { "public" } else { "private" };
    response
        .with_header("ETag", etag)
        .with_header("Cache-Control", format!("{scope}, max-age=60, s-maxage=60"))
        .with_header("Vary", "Accept, Authorization, Cookie, X-GitHub-OTP")
}

/// The answer to a request whose headers are in order.
fn validated(site: &Site, asked: Asked<'_>) -> Result<Response, Response> {
    let Asked { path, request, .. } = asked;
    let version = request.header("x-github-api-version").unwrap_or(VERSIONS[0]);
    if !VERSIONS.contains(&version) {
        return Err(refusal::unsupported_version(version));
    }
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Err(refusal::not_found());
    }
    let segments: Vec<String> = path.split('/').skip(1).map(percent::decode).collect();
    let (which, wanted) = target::of_the_api(&segments).ok_or_else(refusal::not_found)?;
    let accepts_bytes = accepts(request, BYTES) && matches!(wanted, Wanted::Asset(_));
    let accept = request.header("accept").unwrap_or("*/*");
    if !accepts_bytes && !accept.split(',').any(|media_type| is_json(media_type, &wanted)) {
        return Err(refusal::unsupported_media_type(accept));
    }
    let response = wanted::answer(site, asked, &which, &wanted, accepts_bytes)?;
    Ok(response.with_header("X-GitHub-Api-Version-Selected", version))
}

/// Whether `Accept` names `media_type` itself.
pub(super) fn accepts(request: &Request, media_type: &str) -> bool {
    let accept = request.header("accept").unwrap_or_default();
    accept.split(',').any(|accepted| accepted.split(';').next().unwrap_or_default().trim() == media_type)
}

/// Whether the API has something of `media_type` for `wanted`: JSON, or the bare id of a commit.
fn is_json(media_type: &str, wanted: &Wanted) -> bool {
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    let is_github = media_type.starts_with("application/vnd.github") && media_type != "application/vnd.github.sha";
    is_github
        || ["*/*", "application/*", "application/json"].contains(&media_type)
        || media_type == "application/vnd.github.sha" && matches!(wanted, Wanted::Commit(_))
}
