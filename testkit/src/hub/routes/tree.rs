//! The tree of files, page by page.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    super::repo::{Commit, File, Kept},
    refusal,
};
use crate::server::{Request, Response, digest, percent};

/// `/api/models/{id}/tree/{revision}/{folder}`: what lies in the folder, or everything below it with `?recursive=true`.
/// A page has `?limit` entries and at most `page_size`; a `Link` header leads to the next one.
pub(super) fn tree(request: &Request, endpoint: &str, commit: Commit<'_>, folder: &str, page_size: usize) -> Response {
    let flag = |name| request.query(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let entries = entries(commit, folder, flag("recursive"));
    if entries.is_empty() && !folder.is_empty() {
        return refusal::entry_not_found(commit.id);
    }
    let number = |name| request.query(name).map(|value| value.parse::<usize>()).transpose();
    let (Ok(limit), Ok(cursor)) = (number("limit"), number("cursor")) else {
        return refusal::bad_request("limit and cursor are numbers");
    };
    let (from, size) = (cursor.unwrap_or(0), limit.unwrap_or(page_size).clamp(1, page_size));
    let count = entries.len();
    let page: Vec<Value> = entries.into_values().skip(from).take(size).collect();
    let next = from + page.len();
    let response = Response::json(200, &Value::Array(page));
    if next >= count {
        return response;
    }
    let others = percent::pairs(&request.query).filter(|(name, _)| name != "cursor");
    let query: String = others.map(|(name, value)| format!("{name}={}&", percent::encode(&value))).collect();
    response.with_header("Link", format!("<{endpoint}{}?{query}cursor={next}>; rel=\"next\"", request.path))
}

/// `/api/models/{id}/paths-info/{revision}`: those of the paths in the body that are there, given as JSON or as a form.
pub(super) fn paths_info(request: &Request, commit: Commit<'_>) -> Response {
    let body = String::from_utf8_lossy(&request.body);
    let paths: Vec<String> = match serde_json::from_str::<Value>(&body) {
        Ok(body) => {
            let paths = body["paths"].as_array().map(Vec::as_slice).unwrap_or_default();
            paths.iter().filter_map(|path| path.as_str().map(str::to_owned)).collect()
        }
        Err(_) => percent::pairs(&body).filter(|(name, _)| name == "paths").map(|(_, path)| path).collect(),
    };
    let mut all = entries(commit, "", true);
    let found: Vec<Value> = paths.iter().filter_map(|path| all.remove(path.trim_matches('/'))).collect();
    Response::json(200, &Value::Array(found))
}

/// The entries below `folder` by their paths.
fn entries(commit: Commit<'_>, folder: &str, recursive: bool) -> BTreeMap<String, Value> {
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let mut entries = BTreeMap::new();
    for (path, file) in commit.files {
        let Some(below) = path.strip_prefix(&prefix) else { continue };
        let mut slashes = below.match_indices('/').map(|(at, _)| prefix.len() + at);
        let nested = slashes.clone().next().is_some();
        let folders: Vec<usize> = if recursive { slashes.collect() } else { slashes.next().into_iter().collect() };
        for end in folders {
            let folder = &path[..end];
            entries.entry(folder.to_owned()).or_insert_with(|| directory(commit, folder));
        }
        if recursive || !nested {
            entries.insert(path.clone(), entry(path, file, &commit.git_ids[path]));
        }
    }
    entries
}

fn directory(commit: Commit<'_>, path: &str) -> Value {
    json!({ "type": "directory", "oid": digest::sha1_of(["tree", commit.id, path]), "size": 0, "path": path })
}

fn entry(path: &str, file: &File, git_id: &str) -> Value {
    let size = file.content.size();
    let mut entry = json!({ "type": "file", "oid": git_id, "size": size, "path": path });
    if let Kept::Lfs { xet_hash } = &file.kept {
        let (sha256, pointer) = (file.content.sha256(), file.pointer().len());
        entry["lfs"] = json!({ "oid": sha256, "size": size, "pointerSize": pointer });
        if let Some(hash) = xet_hash {
            entry["xetHash"] = json!(hash);
        }
    }
    entry
}
