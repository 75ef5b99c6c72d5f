use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use serde_json::json;

use super::{ask, get, head};
use crate::hub::{Content, Gated, Hub, Repo};

const LFS: &str = "/org/tiny/resolve/main/model.safetensors";

fn tiny() -> Repo {
    Repo::new("org/tiny")
        .with_file("config.json", "{}")
        .with_lfs("model.safetensors", "hello world")
        .with_file("onnx/a/deep.txt", "deep")
        .with_file("onnx/b.txt", "b")
}

fn hub() -> Hub {
    Hub::builder().with_repo(tiny()).start()
}

#[test]
fn the_api_tells_the_commit_the_files_the_licence_and_the_gate() {
    let repo = tiny().with_license("apache-2.0").with_label("transformers").gated(Gated::Manual);
    let hub = Hub::builder().with_repo(repo).start();
    let info = get(hub.address(), "/api/models/org/tiny", &[]).json();
    assert_eq!(info["id"], "org/tiny");
    assert_eq!(info["sha"], hub.commit("org/tiny", "main").unwrap());
    assert_eq!((&info["gated"], &info["private"]), (&json!("manual"), &json!(false)));
    assert_eq!(info["cardData"]["license"], "apache-2.0");
    assert_eq!(info["tags"], json!(["transformers", "license:apache-2.0"]));
    assert_eq!(info["siblings"][0], json!({ "rfilename": "config.json" }));

    let info = get(hub.address(), "/api/models/org/tiny/revision/main?blobs=true", &[]).json();
    let lfs = json!({ "sha256": Content::from("hello world").sha256(), "size": 11, "pointerSize": 127 });
    assert_eq!((&info["siblings"][1]["lfs"], &info["siblings"][1]["size"]), (&lfs, &json!(11)));
}

#[test]
fn a_tree_comes_in_pages_that_link_to_each_other() {
    let hub = Hub::builder().with_repo(tiny()).with_page_size(4).start();
    let mut target = "/api/models/org/tiny/tree/main?recursive=true".to_owned();
    let mut paths = Vec::new();
    let mut pages = Vec::new();
    loop {
        let page = get(hub.address(), &target, &[]);
        let entries = page.json();
        pages.push(entries.as_array().unwrap().len());
        paths.extend(entries.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap().to_owned()));
        let Some(link) = page.header("link") else { break };
        let url = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
        target = url.strip_prefix(&hub.endpoint()).unwrap().to_owned();
    }
    assert_eq!(pages, [4, 2]);
    assert_eq!(paths, ["config.json", "model.safetensors", "onnx", "onnx/a", "onnx/a/deep.txt", "onnx/b.txt"]);
}

#[test]
fn a_folder_lists_what_lies_in_it() {
    let hub = hub();
    let entries = get(hub.address(), "/api/models/org/tiny/tree/main/onnx", &[]).json();
    let of = |i: usize| (entries[i]["type"].as_str().unwrap(), entries[i]["path"].as_str().unwrap());
    assert_eq!(entries.as_array().unwrap().len(), 2);
    assert_eq!((of(0), of(1)), (("directory", "onnx/a"), ("file", "onnx/b.txt")));
    assert_eq!(get(hub.address(), "/api/models/org/tiny/tree/main/nothing", &[]).status, 404);

    let root = get(hub.address(), "/api/models/org/tiny/tree/main?limit=2", &[]).json();
    let sha256 = Content::from("hello world").sha256().to_owned();
    assert_eq!(root[1]["lfs"], json!({ "oid": sha256, "size": 11, "pointerSize": 127 }));
    assert_eq!(root[0]["oid"], Content::from("{}").git_blob());
    assert!(root[0].get("lfs").is_none());
}

#[test]
fn paths_info_answers_for_the_paths_that_are_there() {
    let hub = hub();
    let target = "/api/models/org/tiny/paths-info/main";
    for body in
        ["{\"paths\":[\"onnx\",\"none\",\"config.json\"]}", "paths=onnx&paths=none&paths=config.json&expand=False"]
    {
        let entries = ask(hub.address(), "POST", target, &[], body.as_bytes()).unwrap().json();
        let paths: Vec<_> = entries.as_array().unwrap().iter().map(|entry| entry["path"].clone()).collect();
        assert_eq!(paths, ["onnx", "config.json"], "{body}");
    }
}

#[test]
fn branches_tags_pull_requests_and_commits_are_revisions() {
    let repo = Repo::new("tiny").with_file("a", "one").with_tag("v1").with_branch("refs/pr/1").with_commit();
    let hub = Hub::builder().with_repo(repo.with_file("a", "two")).start();
    let (old, new) = (hub.commit("tiny", "v1").unwrap(), hub.commit("tiny", "main").unwrap());
    assert_ne!(old, new);
    for (revision, content) in [("main", "two"), ("v1", "one"), ("refs%2Fpr%2F1", "one"), (&old, "one"), (&new, "two")]
    {
        let file = get(hub.address(), &format!("/tiny/resolve/{revision}/a"), &[]);
        assert_eq!(file.body, content.as_bytes(), "{revision}");
        assert_eq!(file.header("x-repo-commit"), Some(if content == "one" { &*old } else { &*new }));
    }
    let refs = get(hub.address(), "/api/models/tiny/refs?include_prs=1", &[]).json();
    assert_eq!(refs["branches"], json!([{ "name": "main", "ref": "refs/heads/main", "targetCommit": new }]));
    assert_eq!(refs["tags"], json!([{ "name": "v1", "ref": "refs/tags/v1", "targetCommit": old }]));
    assert_eq!(refs["pullRequests"][0]["ref"], "refs/pr/1");

    hub.publish(Repo::new("tiny").with_file("a", "three"));
    assert_eq!(get(hub.address(), "/tiny/resolve/main/a", &[]).body, b"three");
    assert_eq!(get(hub.address(), "/tiny/resolve/v1/a", &[]).status, 404);
}

#[test]
fn the_hub_serves_plain_files_under_their_git_blob_ids() {
    let hub = hub();
    let asked = head(hub.address(), "/org/tiny/resolve/main/config.json");
    assert_eq!((asked.status, asked.body.len()), (200, 0));
    assert_eq!(asked.header("content-length"), Some("2"));
    assert_eq!(asked.header("etag"), Some("\"9e26dfeeb6e641a33dae4961196235bdb965b21b\""));
    assert_eq!(asked.header("x-repo-commit"), hub.commit("org/tiny", "main").as_deref());
    assert_eq!(get(hub.address(), "/org/tiny/resolve/main/config.json", &[]).body, b"{}");
}

#[test]
fn files_in_lfs_are_behind_a_signed_url_of_the_second_host() {
    let hub = hub();
    let redirect = head(hub.address(), LFS);
    assert_eq!(redirect.status, 302);
    let etag = format!("\"{}\"", Content::from("hello world").sha256());
    assert_eq!((redirect.header("x-linked-etag"), redirect.header("x-linked-size")), (Some(&*etag), Some("11")));
    assert_ne!(redirect.header("content-length"), Some("11"), "that is the redirect's own");
    let (host, target) = redirect.location();
    assert_eq!(host, hub.cdn_address());
    let file = get(host, target, &[]);
    assert_eq!((file.status, &*file.body), (200, &b"hello world"[..]));
    assert_ne!(file.header("etag"), Some(&*etag), "the second host has its own");

    assert_eq!(get(host, target.split_once('?').unwrap().0, &[]).status, 403, "without a signature");
    hub.expire_urls();
    assert_eq!(get(host, target, &[]).status, 403);
    hub.set_url_uses(Some(1));
    let redirect = get(hub.address(), LFS, &[]);
    let statuses = [(); 2].map(|()| get(hub.cdn_address(), redirect.location().1, &[]).status);
    assert_eq!(statuses, [200, 403]);
}

#[test]
fn ranges_and_conditions_are_those_of_the_standard() {
    let hub = hub();
    let redirect = get(hub.address(), LFS, &[]);
    let (host, target) = redirect.location();
    let etag = get(host, target, &[]).header("etag").unwrap().to_owned();
    let part = get(host, target, &[("Range", "bytes=6-"), ("If-Range", &etag)]);
    assert_eq!((part.status, &*part.body), (206, &b"world"[..]));
    assert_eq!(part.header("content-range"), Some("bytes 6-10/11"));
    assert_eq!(get(host, target, &[("Range", "bytes=6-"), ("If-Range", "\"other\"")]).body, b"hello world");
    let beyond = get(host, target, &[("Range", "bytes=11-")]);
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */11")));
    let known = get(host, target, &[("If-None-Match", &format!("W/{etag}"))]);
    assert_eq!((known.status, known.body.len()), (304, 0));
    let plain = get(hub.address(), "/org/tiny/resolve/main/onnx/a/deep.txt", &[("Range", "bytes=-2")]);
    assert_eq!((plain.status, &*plain.body), (206, &b"ep"[..]));
}

#[test]
fn a_former_id_leads_to_the_new_one_by_a_relative_redirect() {
    let hub = Hub::builder().with_repo(tiny().renamed_from("old/name")).start();
    for (asked, expected) in [
        ("/api/models/old/name/revision/main?blobs=true", "/api/models/org/tiny/revision/main?blobs=true"),
        ("/old/name/resolve/main/config.json", "/org/tiny/resolve/main/config.json"),
    ] {
        let redirect = get(hub.address(), asked, &[]);
        assert_eq!((redirect.status, redirect.header("location")), (307, Some(expected)));
    }
}

#[test]
fn plain_files_can_be_redirected_to_the_cache_on_the_same_host() {
    let hub = Hub::builder().with_repo(tiny()).with_resolve_cache(true).start();
    let redirect = get(hub.address(), "/org/tiny/resolve/main/onnx/b.txt", &[]);
    assert_eq!((redirect.status, redirect.header("x-linked-size")), (307, Some("1")));
    let file = get(hub.address(), redirect.header("location").unwrap(), &[]);
    assert_eq!((file.status, &*file.body), (200, &b"b"[..]));
    assert_eq!(file.header("etag"), redirect.header("x-linked-etag"));
}

#[test]
fn a_connection_is_kept_for_more_requests() {
    let hub = hub();
    let mut connection = TcpStream::connect(hub.address()).unwrap();
    let request = "GET /org/tiny/resolve/main/config.json HTTP/1.1\r\nHost: hub\r\n";
    write!(connection, "{request}\r\n{request}Connection: close\r\n\r\n").unwrap();
    let mut answers = String::new();
    connection.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2);
    let requests = hub.wait_until_idle();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].connection, requests[1].connection);
}
