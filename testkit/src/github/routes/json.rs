//! Repositories, releases and assets as the API tells them.

use serde_json::{Value, json};

use super::super::published::{PublishedAsset, PublishedRelease, PublishedRepository, Tag};
use crate::server::{digest, percent};

/// Where the URLs in answers lead to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bases<'a> {
    /// The URL of the API as it was asked.
    pub(super) api: &'a str,
    pub(super) web: &'a str,
}

impl Bases<'_> {
    pub(super) fn repository(self, repository: &PublishedRepository) -> String {
        format!("{}/repos/{}", self.api, repository.name)
    }
}

pub(super) fn repository(bases: Bases<'_>, repository: &PublishedRepository) -> Value {
    let (owner, name) = repository.name.split_once('/').unwrap_or(("", &repository.name));
    let license = repository.license.as_ref().map(|id| {
        let key = id.to_ascii_lowercase();
        json!({ "key": key, "name": id, "spdx_id": id, "url": format!("{}/licenses/{key}", bases.api) })
    });
    json!({
        "id": repository.id,
        "node_id": node_id("R", repository.id),
        "name": name,
        "full_name": repository.name,
        "private": repository.private,
        "visibility": if repository.private { "private" } else { "public" },
        "owner": user(owner),
        "html_url": format!("{}/{}", bases.web, repository.name),
        "url": bases.repository(repository),
        "releases_url": bases.repository(repository) + "/releases{/id}",
        "default_branch": repository.default_branch,
        "license": license,
        "archived": false,
        "disabled": false,
        "fork": false,
    })
}

pub(super) fn release(bases: Bases<'_>, repository: &PublishedRepository, published: &PublishedRelease) -> Value {
    let release = &published.release;
    let (url, tag) = (bases.repository(repository), percent::encode(&release.tag));
    let own = format!("{url}/releases/{}", published.id);
    let assets: Vec<Value> =
        published.assets.iter().map(|asset| self::asset(bases, repository, published, asset)).collect();
    json!({
        "url": own,
        "assets_url": format!("{own}/assets"),
        "upload_url": format!("{own}/assets{{?name,label}}"),
        "html_url": format!("{}/{}/releases/tag/{}", bases.web, repository.name, download_tag(published)),
        "id": published.id,
        "node_id": node_id("RE", published.id),
        "author": user(repository.name.split('/').next().unwrap_or_default()),
        "tag_name": release.tag,
        "target_commitish": release.target.as_ref().unwrap_or(&repository.default_branch),
        "name": release.name.as_ref().unwrap_or(&release.tag),
        "draft": release.draft,
        "immutable": release.immutable,
        "prerelease": release.prerelease,
        "created_at": published.created_at,
        "updated_at": published.updated_at,
        "published_at": published.published_at,
        "assets": assets,
        "tarball_url": (!release.draft).then(|| format!("{url}/tarball/{tag}")),
        "zipball_url": (!release.draft).then(|| format!("{url}/zipball/{tag}")),
        "body": release.body,
    })
}

pub(super) fn asset(
    bases: Bases<'_>,
    repository: &PublishedRepository,
    release: &PublishedRelease,
    published: &PublishedAsset,
) -> Value {
    let asset = &published.asset;
    let download = format!("{}/{}/releases/download/{}", bases.web, repository.name, download_tag(release));
    json!({
        "url": format!("{}/releases/assets/{}", bases.repository(repository), published.id),
        "id": published.id,
        "node_id": node_id("RA", published.id),
        "name": asset.name,
        "label": "",
        "uploader": user(repository.name.split('/').next().unwrap_or_default()),
        "content_type": asset.content_type,
        "state": if asset.uploading { "starter" } else { "uploaded" },
        "size": published.size(),
        "digest": published.digest(),
        "download_count": asset.download_count,
        "created_at": published.created_at,
        "updated_at": published.updated_at,
        "browser_download_url": format!("{download}/{}", percent::encode(&asset.name)),
    })
}

/// `/git/ref/{reference}`.
pub(super) fn reference(url: &str, reference: &str, kind: &str, sha: &str) -> Value {
    let folder = if kind == "tag" { "tags" } else { "commits" };
    json!({
        "ref": format!("refs/{reference}"),
        "node_id": node_id("REF", 0),
        "url": format!("{url}/git/refs/{}", percent::encode_path(reference)),
        "object": { "type": kind, "sha": sha, "url": format!("{url}/git/{folder}/{sha}") },
    })
}

/// `/git/tags/{sha}`.
pub(super) fn tag_object(url: &str, name: &str, sha: &str, tag: &Tag) -> Value {
    json!({
        "node_id": node_id("TA", 0),
        "sha": sha,
        "url": format!("{url}/git/tags/{sha}"),
        "tag": name,
        "message": name,
        "object": { "type": "commit", "sha": tag.commit, "url": format!("{url}/git/commits/{}", tag.commit) },
    })
}

/// `/commits/{reference}`.
pub(super) fn commit(url: &str, sha: &str) -> Value {
    json!({
        "sha": sha,
        "node_id": node_id("C", 0),
        "commit": { "message": "", "tree": { "sha": digest::sha1_of(["tree", sha]) } },
        "url": format!("{url}/commits/{sha}"),
        "parents": [],
    })
}

/// The tag in URLs: a draft has none yet.
fn download_tag(release: &PublishedRelease) -> String {
    match release.release.draft {
        true => format!("untagged-{}", &digest::sha1_of(["draft", &release.id.to_string()])[..20]),
        false => percent::encode(&release.release.tag),
    }
}

fn user(login: &str) -> Value {
    json!({ "login": login, "id": 1, "node_id": node_id("U", 1), "type": "User", "site_admin": false })
}

fn node_id(kind: &str, id: u64) -> String {
    format!("{kind}_{id:x}")
}
