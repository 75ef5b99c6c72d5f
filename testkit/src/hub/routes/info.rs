//! What the API tells of a repository: its card, its files, its refs.

use serde_json::{Map, Value, json};

use super::super::repo::{Commit, File, Gated, Kept, Published};
use crate::server::{Response, digest};

/// When everything happened: nothing here has a clock.
const LONG_AGO: &str = "2024-01-01T00:00:00.000Z";

/// `/api/models/{id}` and `/api/models/{id}/revision/{revision}`.
pub(super) fn info(published: &Published, commit: Commit<'_>, with_blobs: bool) -> Response {
    let repo = &published.repo;
    let mut tags = repo.labels.clone();
    let mut card = Map::new();
    if let Some(license) = &repo.license {
        tags.push(format!("license:{license}"));
        card.insert("license".into(), json!(license));
    }
    let siblings: Vec<Value> =
        commit.files.iter().map(|(path, file)| sibling(path, file, &commit.git_ids[path], with_blobs)).collect();
    let gated = match repo.gated {
        None => json!(false),
        Some(Gated::Auto) => json!("auto"),
        Some(Gated::Manual) => json!("manual"),
    };
    let mut body = json!({
        "_id": &digest::sha1_of([repo.id.as_str()])[..24],
        "id": repo.id,
        "modelId": repo.id,
        "sha": commit.id,
        "private": repo.private,
        "gated": gated,
        "disabled": repo.disabled,
        "downloads": 0,
        "likes": 0,
        "createdAt": LONG_AGO,
        "lastModified": LONG_AGO,
        "tags": tags,
        "cardData": card,
        "siblings": siblings,
        "usedStorage": commit.files.values().map(|file| file.content.size()).sum::<u64>(),
    });
    if let Some((author, _)) = repo.id.split_once('/') {
        body["author"] = json!(author);
    }
    Response::json(200, &body).with_header("X-Repo-Commit", commit.id)
}

fn sibling(path: &str, file: &File, git_id: &str, with_blobs: bool) -> Value {
    let mut sibling = json!({ "rfilename": path });
    if with_blobs {
        sibling["size"] = json!(file.content.size());
        sibling["blobId"] = json!(git_id);
        if file.kept != Kept::Plain {
            let (sha256, size) = (file.content.sha256(), file.content.size());
            sibling["lfs"] = json!({ "sha256": sha256, "size": size, "pointerSize": file.pointer().len() });
        }
    }
    sibling
}

/// `/api/models/{id}/refs`.
pub(super) fn refs(published: &Published, with_pull_requests: bool) -> Response {
    let entry = |name: &str, full: String, commit: usize| json!({ "name": name, "ref": full, "targetCommit": published.commit_ids[commit] });
    let repo = &published.repo;
    let mut branches = Vec::new();
    let mut pull_requests = Vec::new();
    if !repo.branches.contains_key("main") {
        branches.push(entry("main", "refs/heads/main".into(), published.commit_ids.len() - 1));
    }
    for (name, commit) in &repo.branches {
        match name.strip_prefix("refs/") {
            Some(short) => pull_requests.push(entry(short, name.clone(), *commit)),
            None => branches.push(entry(name, format!("refs/heads/{name}"), *commit)),
        }
    }
    let tags: Vec<Value> =
        repo.tags.iter().map(|(name, commit)| entry(name, format!("refs/tags/{name}"), *commit)).collect();
    let mut body = json!({ "branches": branches, "tags": tags, "converts": [] });
    if with_pull_requests {
        body["pullRequests"] = json!(pull_requests);
    }
    Response::json(200, &body)
}
