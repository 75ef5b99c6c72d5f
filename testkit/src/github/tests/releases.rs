use serde_json::json;

use super::{OUTSIDER, PUSHER, READER, REPOSITORY, Release, Repository, api, api_as, client, github};
use crate::github::{Asset, Content, GitHub, MakeLatest};

/// The tag that the API names as the latest.
fn latest(github: &GitHub) -> Option<String> {
    let answer = api(github, &format!("/repos/{REPOSITORY}/releases/latest"), &[]);
    (answer.status == 200).then(|| answer.json()["tag_name"].as_str().unwrap().to_owned())
}

/// The tags in the list that a token sees.
fn tags(github: &GitHub, token: &str) -> Vec<String> {
    let list = api_as(github, token, &format!("/repos/{REPOSITORY}/releases")).json();
    list.as_array().unwrap().iter().map(|release| release["tag_name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_release_has_the_fields_of_the_real_one() {
    let release = Release::new("v1/a+b").with_name("One").with_body("text").with_target("dev").immutable();
    let release = release.created_at("2023-12-31T00:00:00Z");
    let asset = Asset::new("a b.zip", "zip").with_content_type("application/zip").with_download_count(7);
    let github = github([release.with_asset(asset)]);
    let told = api(&github, &format!("/repos/{REPOSITORY}/releases/tags/v1%2Fa%2Bb"), &[]).json();
    let (id, asset_id) = (github.release_id(REPOSITORY, "v1/a+b"), github.asset_id(REPOSITORY, "v1/a+b", "a b.zip"));
    let url = format!("{}/repos/{REPOSITORY}", github.api_url());
    for (field, value) in [
        ("id", json!(id)),
        ("url", json!(format!("{url}/releases/{id}"))),
        ("html_url", json!(format!("{}/{REPOSITORY}/releases/tag/v1%2Fa%2Bb", github.web_url()))),
        ("tag_name", json!("v1/a+b")),
        ("name", json!("One")),
        ("body", json!("text")),
        ("draft", json!(false)),
        ("prerelease", json!(false)),
        ("immutable", json!(true)),
        ("target_commitish", json!("dev")),
        ("created_at", json!("2023-12-31T00:00:00Z")),
        ("published_at", json!("2024-01-01T00:01:00Z")),
    ] {
        assert_eq!(told[field], value, "{field}");
    }
    let download = format!("{}/{REPOSITORY}/releases/download/v1%2Fa%2Bb/a%20b.zip", github.web_url());
    for (field, value) in [
        ("id", json!(asset_id)),
        ("name", json!("a b.zip")),
        ("size", json!(3)),
        ("content_type", json!("application/zip")),
        ("state", json!("uploaded")),
        ("digest", json!(format!("sha256:{}", Content::from("zip").sha256()))),
        ("download_count", json!(7)),
        ("url", json!(format!("{url}/releases/assets/{asset_id}"))),
        ("browser_download_url", json!(download)),
    ] {
        assert_eq!(told["assets"][0][field], value, "{field}");
    }
    assert_eq!(api(&github, &format!("/repos/{REPOSITORY}/releases/{id}"), &[]).json(), told);
    assert_eq!(api(&github, "/repos/oWNER/LORA/releases/tags/v1/a+b", &[]).json(), told, "case does not matter");
    let numbered = api(&github, &format!("/repos/{REPOSITORY}"), &[]).json()["id"].clone();
    assert_eq!(api(&github, &format!("/repositories/{numbered}/releases/{id}"), &[]).json(), told);
}

#[test]
fn an_enterprise_server_has_the_api_on_the_web_host() {
    let github = github([Release::new("v1").with_file("a", "a")]);
    let target = format!("/api/v3/repos/{REPOSITORY}/releases/tags/v1");
    let told = client::get(github.web_address(), &target, &[("User-Agent", "tests")]).json();
    let url = told["assets"][0]["url"].as_str().unwrap().to_owned();
    assert!(url.starts_with(&github.enterprise_api_url()), "{url}");
    let target = url.strip_prefix(&github.web_url()).unwrap();
    let headers = [("User-Agent", "tests"), ("Accept", "application/octet-stream")];
    assert_eq!(super::follow(&client::get(github.web_address(), target, &headers), &[]).body, b"a");
    assert_eq!(github.requests_for("v1/a").len(), 2);
}

#[test]
fn a_list_comes_in_pages_that_link_to_each_other() {
    let github = github((1..=5).map(|n| Release::new(format!("v{n}"))));
    let (mut target, mut pages) = (format!("/repos/{REPOSITORY}/releases?per_page=2"), Vec::new());
    loop {
        let page = api(&github, &target, &[]);
        let entries = page.json();
        let tags = entries.as_array().unwrap().iter().map(|release| release["tag_name"].as_str().unwrap());
        pages.push(tags.collect::<Vec<_>>().join(" "));
        let next = page.header("link").unwrap().split(", ").find(|link| link.ends_with("rel=\"next\""));
        let Some(next) = next else { break };
        target = next[1..next.find('>').unwrap()].strip_prefix(&github.api_url()).unwrap().to_owned();
        assert!(target.starts_with("/repositories/"), "{target}");
    }
    assert_eq!(pages, ["v5 v4", "v3 v2", "v1"]);
    assert!(api(&github, &format!("/repos/{REPOSITORY}/releases"), &[]).header("link").is_none());
    let assets = format!("/repos/{REPOSITORY}/releases/{}/assets", github.release_id(REPOSITORY, "v1"));
    assert_eq!(api(&github, &assets, &[]).json(), json!([]), "a release without assets");
}

#[test]
fn the_latest_is_the_one_published_last_unless_told_otherwise() {
    let github = github([]);
    assert_eq!(latest(&github), None);
    let is = |tag: &str| assert_eq!(latest(&github).as_deref(), Some(tag));
    github.publish(REPOSITORY, Release::new("v2").created_at("2025-01-01T00:00:00Z"));
    is("v2");
    github.publish(REPOSITORY, Release::new("v1").created_at("2024-06-01T00:00:00Z"));
    is("v1");
    github.publish(REPOSITORY, Release::new("v3-rc").prerelease());
    github.publish(REPOSITORY, Release::new("v4").draft());
    github.publish(REPOSITORY, Release::new("v0.9").make_latest(MakeLatest::False));
    is("v1");
    github.publish(REPOSITORY, Release::new("v0.8").make_latest(MakeLatest::Legacy));
    is("v2");
    github.set_latest(REPOSITORY, "v0.9");
    is("v0.9");
    github.delete_release(REPOSITORY, "v0.9");
    is("v2");
    github.edit(REPOSITORY, "v4", Release::published);
    is("v4");
}

#[test]
fn a_draft_is_seen_only_by_those_who_may_push() {
    let github = github([Release::new("v1"), Release::new("v2").draft().with_file("a", "a")]);
    let release = format!("/repos/{REPOSITORY}/releases/{}", github.release_id(REPOSITORY, "v2"));
    let asset = format!("/repos/{REPOSITORY}/releases/assets/{}", github.asset_id(REPOSITORY, "v2", "a"));
    for (token, status, listed) in
        [(PUSHER, 200, &["v2", "v1"][..]), (READER, 404, &["v1"][..]), (OUTSIDER, 404, &["v1"][..])]
    {
        assert_eq!(tags(&github, token), listed, "{token}");
        assert_eq!([&release, &asset].map(|target| api_as(&github, token, target).status), [status; 2], "{token}");
        let by_tag = format!("/repos/{REPOSITORY}/releases/tags/v2");
        assert_eq!(api_as(&github, token, &by_tag).status, 404, "no draft is had by its tag");
    }
    let draft = api_as(&github, PUSHER, &release).json();
    assert!(draft["published_at"].is_null() && github.commit(REPOSITORY, "v2").is_none(), "no tag yet");
    github.edit(REPOSITORY, "v2", Release::published);
    assert_eq!(tags(&github, READER), ["v2", "v1"]);
    assert!(github.commit(REPOSITORY, "v2").is_some());
}

#[test]
fn a_tag_tells_its_commit_in_three_ways() {
    let (one, two) = ("1".repeat(40), "2".repeat(40));
    let github =
        github([Release::new("a/v1").at_commit(&one), Release::new("v2").at_commit(&two).with_annotated_tag()]);
    let get = |path: &str| api(&github, &format!("/repos/{REPOSITORY}{path}"), &[]);
    for path in ["/git/ref/tags/a/v1", "/git/ref/tags%2Fa%2Fv1"] {
        let object = get(path).json()["object"].clone();
        assert_eq!((&object["type"], &object["sha"]), (&json!("commit"), &json!(one)), "{path}");
    }
    let object = get("/git/ref/tags/v2").json()["object"].clone();
    assert_eq!(object["type"], "tag");
    let tag = get(&format!("/git/tags/{}", object["sha"].as_str().unwrap())).json();
    assert_eq!((&tag["tag"], &tag["object"]["sha"]), (&json!("v2"), &json!(two)));
    for reference in ["a%2Fv1", "tags/a/v1", &one] {
        assert_eq!(get(&format!("/commits/{reference}")).json()["sha"], one, "{reference}");
    }
    let accept = [("Accept", "application/vnd.github.sha")];
    let bare = api(&github, &format!("/repos/{REPOSITORY}/commits/v2"), &accept);
    assert_eq!(bare.body, two.as_bytes());
    assert_eq!([get("/git/ref/tags/v").status, get("/commits/none").status], [404, 422]);
    assert_eq!(get("/commits/main").json()["sha"], get("/git/ref/heads/main").json()["object"]["sha"]);
}

#[test]
fn a_repository_tells_its_licence() {
    let github = github([]);
    github.create(Repository::new("a/b").with_license("MIT").with_default_branch("trunk"));
    let told = api(&github, "/repos/a/b", &[]).json();
    assert_eq!((&told["license"]["spdx_id"], &told["default_branch"]), (&json!("MIT"), &json!("trunk")));
    assert_eq!((&told["full_name"], &told["private"]), (&json!("a/b"), &json!(false)));
}
