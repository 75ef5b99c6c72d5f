//! Lists in pages.

use serde_json::Value;

use crate::server::{Request, Response, percent};

/// How many entries a page has, if the client does not say, and at most.
const DEFAULT: usize = 30;
const MOST: usize = 100;

/// The page of `entries` that `request` asks for, with links to others at `url`.
pub(super) fn page(request: &Request, url: &str, entries: Vec<Value>) -> Response {
    let number = |name| request.query(name).and_then(|value| value.parse().ok()).filter(|number| *number > 0);
    let size = number("per_page").unwrap_or(DEFAULT).min(MOST);
    let page: usize = number("page").unwrap_or(1);
    let last = entries.len().div_ceil(size).max(1);
    let on_it: Vec<Value> = entries.into_iter().skip(page.saturating_sub(1).saturating_mul(size)).take(size).collect();
    let response = Response::json(200, &Value::Array(on_it));

    let others = percent::pairs(&request.query).filter(|(name, _)| name != "page");
    let query: String = others.map(|(name, value)| format!("{name}={}&", percent::encode(&value))).collect();
    let link = |page: usize, relation: &str| format!("<{url}?{query}page={page}>; rel=\"{relation}\"");
    let mut links = Vec::new();
    if page > 1 {
        links.push(link((page - 1).min(last), "prev"));
    }
    if page < last {
        links.extend([link(page + 1, "next"), link(last, "last")]);
    }
    if page > 1 {
        links.push(link(1, "first"));
    }
    if links.is_empty() { response } else { response.with_header("Link", links.join(", ")) }
}
