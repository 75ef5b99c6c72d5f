//! The second host: files by their SHA-256, for those who have a signed URL.

use std::collections::BTreeMap;

use super::{
    super::{
        Content, digest, percent,
        server::{Request, Response},
    },
    refusal,
    resolve::disposition,
};

/// The URLs that were signed.
#[derive(Debug, Default)]
pub(super) struct SignedUrls {
    issued: BTreeMap<String, Signed>,
    /// For how many requests a URL is good.
    pub(super) uses: Option<usize>,
}

#[derive(Debug)]
struct Signed {
    repo: String,
    path: String,
    content: Content,
    uses_left: Option<usize>,
}

impl SignedUrls {
    /// Path and query of a new URL for a file.
    pub(super) fn sign(&mut self, repo: &str, path: &str, content: &Content) -> String {
        let sha256 = content.sha256();
        let signature = digest::sha1_of([sha256, &self.issued.len().to_string()]);
        let disposition = percent::encode(&disposition(path));
        let url = format!(
            "/blob/{sha256}?response-content-disposition={disposition}&Expires=4102444800&X-Signature={signature}"
        );
        let (repo, path, content) = (repo.to_owned(), path.to_owned(), content.clone());
        self.issued.insert(signature, Signed { repo, path, content, uses_left: self.uses });
        url
    }

    /// Lets all of them expire.
    pub(super) fn expire(&mut self) {
        self.issued.values_mut().for_each(|signed| signed.uses_left = Some(0));
    }

    /// The repository and the path of the file that `request` has a URL for, expired or not.
    pub(super) fn file(&self, request: &Request) -> Option<(String, String)> {
        let signed = self.issued.get(&request.query("X-Signature")?)?;
        Some((signed.repo.clone(), signed.path.clone()))
    }

    /// The whole answer.
    pub(super) fn answer(&mut self, request: &Request) -> Response {
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            return refusal::method_not_allowed();
        }
        let signed = request.query("X-Signature").and_then(|signature| self.issued.get_mut(&signature));
        let Some(signed) = signed.filter(|signed| request.path == format!("/blob/{}", signed.content.sha256())) else {
            return refusal::access_denied();
        };
        match &mut signed.uses_left {
            Some(0) => return refusal::access_denied(),
            Some(left) => *left -= 1,
            None => {}
        }
        // Object stores have ETags of their own, which are not the file's SHA-256.
        let etag = &digest::sha1_of(["etag", signed.content.sha256()])[..32];
        Response::file(&signed.content, "application/octet-stream", etag)
            .with_header("Content-Disposition", disposition(&signed.path))
    }
}
