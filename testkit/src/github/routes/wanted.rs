//! What the API tells of a repository.

use serde_json::Value;

use super::{
    super::published::{PublishedRelease, PublishedRepository},
    api::{Asked, accepts},
    json::{self, Bases},
    pages, refusal,
    site::Site,
    target::{Wanted, Which},
};
use crate::server::Response;

/// What `wanted` of a repository is, if the visitor may know of it; `accepts_bytes` for the bytes of an asset.
pub(super) fn answer(
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
