//! The object store: the bytes of assets, for those who have a signed URL.

use super::{
    super::{
        published::{PublishedAsset, PublishedRelease, PublishedRepository},
        state::State,
    },
    refusal,
};
use crate::server::{Request, Response, SignedUrls, Subject, digest, percent};

/// What a signature is called in a query.
const SIGNATURE: &str = "sig";
const FOLDER: &str = "/github-production-release-asset";

/// Path and query of a new URL for an asset.
pub(super) fn sign(
    urls: &SignedUrls,
    repository: &PublishedRepository,
    release: &PublishedRelease,
    asset: &PublishedAsset,
) -> String {
    let path = format!("{FOLDER}/{}/{}", repository.id, asset.object());
    let signature = urls.sign(&path, subject_of(repository, release, asset), &asset.asset.content);
    let disposition = percent::encode(&disposition(&asset.asset.name));
    format!(
        "{path}?sp=r&sv=2018-11-09&sr=b&spr=https&se=2100-01-01T00%3A00%3A00Z&{SIGNATURE}={signature}\
         &response-content-disposition={disposition}&response-content-type=application%2Foctet-stream"
    )
}

/// An asset as records and faults name it.
pub(super) fn subject_of(
    repository: &PublishedRepository,
    release: &PublishedRelease,
    asset: &PublishedAsset,
) -> Subject {
    let tag = Some(release.release.tag.clone());
    Subject { repo: repository.name.clone(), tag, file: asset.asset.name.clone() }
}

/// The asset that `request` has a URL for, expired or not.
pub(super) fn subject(urls: &SignedUrls, request: &Request) -> Option<Subject> {
    urls.subject(&request.query(SIGNATURE)?)
}

/// The whole answer.
pub(super) fn answer(urls: &SignedUrls, state: &State, request: &Request) -> Response {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return refusal::no_such_object();
    }
    if request.header("authorization").is_some() {
        return refusal::authorization_beside_signature();
    }
    let signed = match urls.redeem(&request.path, request.query(SIGNATURE)) {
        Ok(signed) => signed,
        Err(why) => return refusal::unsigned(why),
    };
    let mut assets = state.repositories.iter().flat_map(|repository| &repository.releases).flat_map(|r| &r.assets);
    if assets.any(|asset| asset.asset.uploading && request.path.ends_with(&asset.object())) {
        return refusal::no_such_object();
    }
    // The store tells nothing of the digest, and what it has under a path never changes.
    let etag = format!("0x{}", digest::sha1_of(["etag", &request.path])[..15].to_uppercase());
    Response::file(&signed.content, "application/octet-stream", &etag)
        .with_header("Content-Disposition", disposition(&signed.subject.file))
}

fn disposition(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_graphic() && c != '"' { c } else { '_' }).collect();
    format!("attachment; filename={plain}")
}
