//! The web host: downloads of public releases.

use super::{
    refusal,
    site::Site,
    target::{self, Download},
};
use crate::server::{Request, Response, percent};

/// The answer to a request that is not for the API.
pub(super) fn answer(site: &Site, request: &Request) -> Response {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return refusal::page(404);
    }
    let Some(download) = target::of_the_web(&request.segments()) else { return refusal::page(404) };
    let Download { repository: name, tag, asset } = &download;
    let mut state = site.state();
    let Some(repository) = state.repositories.iter().find(|repository| repository.is_called(name)) else {
        let renamed = state.repositories.iter().find(|repository| repository.was_called(name) && !repository.private);
        return match renamed {
            Some(now) => Response::redirect(301, &site.web_url(&location(&now.name, tag.as_deref(), asset))),
            None => refusal::page(404),
        };
    };
    // The pages know browser sessions, no tokens.
    if repository.private {
        return refusal::page(404);
    }
    let Some(tag) = tag else {
        let Some(latest) = repository.latest() else { return refusal::page(404) };
        return Response::redirect(302, &site.web_url(&location(name, Some(&latest.release.tag), asset)));
    };
    let Some(release) = repository.by_tag(tag) else { return refusal::page(404) };
    let Some(found) = release.assets.iter().find(|known| known.asset.name == *asset) else {
        return refusal::page(404);
    };
    let (url, id) = (site.sign(repository, release, found), found.id);
    site.count_download(&mut state, id);
    Response::redirect(302, &url)
}

fn location(name: &str, tag: Option<&str>, asset: &str) -> String {
    let asset = percent::encode(asset);
    match tag {
        Some(tag) => format!("/{name}/releases/download/{}/{asset}", percent::encode(tag)),
        None => format!("/{name}/releases/latest/download/{asset}"),
    }
}

/// The path of the API in `request` to the web host, if it is for the API: `/api/v3/…`.
pub(super) fn path_of_the_api(request: &Request) -> Option<&str> {
    request.path.strip_prefix("/api/v3").filter(|rest| rest.starts_with('/'))
}
