//! Files: plain ones here, those in LFS by a redirect to the second host.

use super::super::repo::{Commit, File, Kept};
use crate::server::{Request, Response, percent};

/// The answer for a plain file.
pub(super) fn plain(commit: Commit<'_>, path: &str, file: &File) -> Response {
    Response::file(&file.content, media_type(path), &commit.git_ids[path])
        .with_header("X-Repo-Commit", commit.id)
        .with_header("Content-Disposition", disposition(path))
}

/// A redirect to the same host for a plain file, as the real Hub has it for those that it caches.
pub(super) fn cached(request: &Request, id: &str, commit: Commit<'_>, path: &str, file: &File) -> Response {
    let (etag, asked) = (percent::encode(&format!("\"{}\"", commit.git_ids[path])), percent::encode(&request.path));
    let encoded = percent::encode_path(path);
    let location = format!("/api/resolve-cache/models/{id}/{}/{encoded}?{asked}=&etag={etag}", commit.id);
    linked(Response::redirect(307, &location), commit, &commit.git_ids[path], file)
}

/// A redirect to `location` on the second host for a file in LFS.
pub(super) fn lfs(location: &str, commit: Commit<'_>, file: &File) -> Response {
    let response = linked(Response::redirect(302, location), commit, file.content.sha256(), file);
    match &file.kept {
        Kept::Lfs { xet_hash: Some(hash) } => response.with_header("X-Xet-Hash", hash),
        _ => response,
    }
}

/// The headers of a redirect that tell of the file it leads to.
fn linked(redirect: Response, commit: Commit<'_>, etag: &str, file: &File) -> Response {
    redirect
        .with_header("X-Repo-Commit", commit.id)
        .with_header("X-Linked-Size", file.content.size().to_string())
        .with_header("X-Linked-Etag", format!("\"{etag}\""))
        .with_header("Accept-Ranges", "bytes")
}

/// What a browser is to call the file at `path`.
pub(super) fn disposition(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let plain: String = name.chars().filter(|c| c.is_ascii_graphic() && *c != '"').collect();
    format!("inline; filename*=UTF-8''{}; filename=\"{plain}\";", percent::encode(name))
}

/// The Hub serves what is text as text, web pages among it.
fn media_type(path: &str) -> &'static str {
    match path.rsplit_once('.') {
        Some((_, "json" | "txt" | "md" | "py" | "jinja" | "html" | "htm" | "yaml" | "yml")) => {
            "text/plain; charset=utf-8"
        }
        _ => "application/octet-stream",
    }
}
