//! The API.

use serde_json::Value;

use super::{
    super::published::{PublishedRelease, PublishedRepository},
    access::Visitor,
    json::{self, Bases},
    pages, refusal,
    site::Site,
    target::{self, Wanted, Which},
};
use crate::server::{Request, Response, conditions, digest, percent};

/// The versions of the API that there are.
const VERSIONS: [&str; 2] = ["2022-11-28", "2026-03-10"];
const BYTES: &str = "application/octet-stream";

/// A request whose sender is known.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    /// The URL of the API as it was asked.
    base: &'a str,
    /// What comes after it, without the query.
    path: &'a str,
    request: &'a Request,
    visitor: Visitor<'a>,
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
    let allowance = site.rate_limits().of(visitor);
    if allowance.remaining() == 0 {
        return refusal::rate_limited(site.rate_limit_status(), visitor.token().is_some(), allowance);
    }
    let response = match refused {
        Some(refusal) => refusal,
        None => validated(site, Asked { base, path, request, visitor }).unwrap_or_else(|refusal| refusal),
    };
    let response = with_validators(request, visitor, response);
    // Documented for requests with a token only: "…and the request was made while correctly authorized".
    let is_free = visitor.token().is_some() && response.status == 200 && conditions::is_known(request, &response);
    let mut limits = site.rate_limits();
    if !is_free {
        limits.count(visitor);
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
    let response = wanted_of(site, asked, &which, &wanted, accepts_bytes)?;
    Ok(response.with_header("X-GitHub-Api-Version-Selected", version))
}

fn wanted_of(
    site: &Site,
    asked: Asked<'_>,
    which: &Which,
    wanted: &Wanted,
    accepts_bytes: bool,
) -> Result<Response, Response> {
    let Asked { base, path, request, visitor } = asked;
    let bases = Bases { api: base, web: &site.web_url("") };
    let mut state = site.state();
    let found = state.repositories.iter().find(|repository| match which {
        Which::Named(name) => repository.is_called(name),
        Which::Numbered(id) => repository.id == *id,
    });
    let Some(repository) = found.filter(|repository| visitor.may_read(repository)) else {
        let Which::Named(name) = which else { return Err(refusal::not_found()) };
        let mut known = state.repositories.iter().filter(|repository| visitor.may_read(repository));
        let moved = known.find(|repository| found.is_none() && repository.was_called(name));
        let moved = moved.ok_or_else(refusal::not_found)?;
        let path = path_below_repository(path);
        let query = request.target().split_once('?').map(|(_, query)| format!("?{query}")).unwrap_or_default();
        return Err(refusal::moved(&format!("{base}/repositories/{}{path}{query}", moved.id)));
    };
    let url = bases.repository(repository);
    let list_url = |rest: &str| format!("{base}/repositories/{}{rest}", repository.id);
    let visible = |release: &&PublishedRelease| visitor.may_see(release);
    let by_id = |id: u64| repository.releases.iter().filter(visible).find(|release| release.id == id);
    let told = |release: &PublishedRelease| json::release(bases, repository, release);
    let ok = |value: Value| Ok(Response::json(200, &value));
    match wanted {
        Wanted::Repository => ok(json::repository(bases, repository)),
        Wanted::Releases => {
            let mut releases: Vec<&PublishedRelease> = repository.releases.iter().filter(visible).collect();
            releases.sort_by(|a, b| (&b.created_at, b.id).cmp(&(&a.created_at, a.id)));
            let entries = releases.into_iter().map(told).collect();
            Ok(pages::page(request, &list_url("/releases"), entries))
        }
        Wanted::Latest => ok(told(repository.latest().ok_or_else(refusal::not_found)?)),
        Wanted::ByTag(tag) => ok(told(repository.by_tag(tag).ok_or_else(refusal::not_found)?)),
        Wanted::Release(id) => ok(told(by_id(*id).ok_or_else(refusal::not_found)?)),
        Wanted::AssetsOf(id) => {
            let release = by_id(*id).ok_or_else(refusal::not_found)?;
            let entries = release.assets.iter().map(|asset| json::asset(bases, repository, release, asset)).collect();
            Ok(pages::page(request, &list_url(&format!("/releases/{id}/assets")), entries))
        }
        Wanted::Asset(id) => {
            let (release, asset) = repository.asset(*id).ok_or_else(refusal::not_found)?;
            if !visitor.may_see(release) {
                return Err(refusal::not_found());
            }
            if !accepts_bytes {
                return ok(json::asset(bases, repository, release, asset));
            }
            let response = site.bytes(repository, release, asset);
            site.count_download(&mut state, *id);
            Ok(response)
        }
        Wanted::Reference(reference) => {
            let (kind, sha) = reference_of(repository, reference).ok_or_else(refusal::not_found)?;
            ok(json::reference(&url, reference, kind, &sha))
        }
        Wanted::TagObject(sha) => {
            let found = repository.tags.iter().find(|(name, tag)| tag.object(name).as_deref() == Some(sha));
            let (name, tag) = found.ok_or_else(refusal::not_found)?;
            ok(json::tag_object(&url, name, sha, tag))
        }
        Wanted::Commit(reference) => {
            let commit = repository.commit(reference).ok_or_else(|| refusal::no_commit(reference))?;
            match accepts(request, "application/vnd.github.sha") {
                true => Ok(Response::new(200, "application/vnd.github.sha; charset=utf-8", commit)),
                false => ok(json::commit(&url, &commit)),
            }
        }
    }
}

/// The kind and the id of the git object that `reference` points to.
fn reference_of(repository: &PublishedRepository, reference: &str) -> Option<(&'static str, String)> {
    if let Some(name) = reference.strip_prefix("tags/") {
        let tag = repository.tags.get(name)?;
        return Some(tag.object(name).map_or_else(|| ("commit", tag.commit.clone()), |object| ("tag", object)));
    }
    let branch = reference.strip_prefix("heads/")?;
    (branch == repository.default_branch).then(|| ("commit", repository.head()))
}

/// What follows the repository in a path that names it: `/repos/{owner}/{name}…`.
fn path_below_repository(path: &str) -> &str {
    path.match_indices('/').nth(3).map_or("", |(at, _)| &path[at..])
}

fn accepts(request: &Request, media_type: &str) -> bool {
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
