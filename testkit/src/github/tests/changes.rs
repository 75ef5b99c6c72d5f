use serde_json::Value;

use super::{PUSHER, REPOSITORY, Release, api, api_as, asset, bytes, follow, github, web};
use crate::github::{Asset, GitHub, Repository};

fn by_tag(github: &GitHub, tag: &str) -> Option<Value> {
    let answer = api(github, &format!("/repos/{REPOSITORY}/releases/tags/{tag}"), &[]);
    (answer.status == 200).then(|| answer.json())
}

#[test]
fn a_tag_moves_to_another_release_or_commit() {
    let github = github([Release::new("v1").with_file("a", "one")]);
    let (release, commit) = (github.release_id(REPOSITORY, "v1"), github.commit(REPOSITORY, "v1").unwrap());
    let gone = asset(&github, "v1", "a");
    let other = github.publish(REPOSITORY, Release::new("v1").with_file("a", "two"));
    assert_ne!(other, release);
    assert_eq!(by_tag(&github, "v1").unwrap()["id"], other);
    assert_ne!(github.commit(REPOSITORY, "v1").unwrap(), commit);
    assert_eq!(bytes(&github, &gone).status, 404);
    assert_eq!(follow(&bytes(&github, &asset(&github, "v1", "a")), &[]).body, b"two");

    let moved = "e".repeat(40);
    github.move_tag(REPOSITORY, "v1", &moved);
    assert_eq!(github.commit(REPOSITORY, "v1"), Some(moved.clone()));
    assert_eq!(by_tag(&github, "v1").unwrap()["id"], other, "the release stays");
    github.delete_release(REPOSITORY, "v1");
    assert!(by_tag(&github, "v1").is_none());
    github.publish(REPOSITORY, Release::new("v1"));
    assert_eq!(github.commit(REPOSITORY, "v1"), Some(moved), "a tag that is there stays where it is");
}

#[test]
fn a_release_whose_tag_is_deleted_becomes_a_draft() {
    let github = github([Release::new("v1")]);
    let id = github.release_id(REPOSITORY, "v1");
    github.delete_tag(REPOSITORY, "v1");
    assert!(by_tag(&github, "v1").is_none());
    assert_eq!(github.commit(REPOSITORY, "v1"), None);
    let draft = api_as(&github, PUSHER, &format!("/repos/{REPOSITORY}/releases/{id}")).json();
    assert_eq!((&draft["draft"], &draft["tag_name"]), (&true.into(), &"v1".into()));
}

#[test]
fn an_asset_is_replaced_under_its_name() {
    let github = github([Release::new("v1").with_file("a", "one").with_file("b", "b")]);
    let (target, signed) = (asset(&github, "v1", "a"), bytes(&github, &asset(&github, "v1", "a")));
    let before = api(&github, &target, &[]).json();
    let id = github.upload(REPOSITORY, "v1", Asset::new("a", "two"));
    let after = api(&github, &asset(&github, "v1", "a"), &[]).json();
    assert_eq!(after["id"], id);
    for field in ["id", "updated_at", "digest"] {
        assert_ne!(after[field], before[field], "{field}");
    }
    assert_eq!(api(&github, &target, &[]).status, 404);
    assert_eq!(follow(&signed, &[]).body, b"one", "what was signed stays");
    assert_eq!(by_tag(&github, "v1").unwrap()["assets"].as_array().unwrap().len(), 2);

    github.delete_asset(REPOSITORY, "v1", "b");
    github.edit(REPOSITORY, "v1", |release| release.with_name("renamed").with_file("c", "c"));
    let told = by_tag(&github, "v1").unwrap();
    let names: Vec<_> = told["assets"].as_array().unwrap().iter().map(|asset| asset["name"].clone()).collect();
    assert_eq!((names, &told["name"]), (vec!["a".into(), "c".into()], &"renamed".into()));
}

#[test]
fn a_renamed_repository_is_found_by_its_number() {
    let github = github([Release::new("v1").with_file("a", "a")]);
    let number = api(&github, &format!("/repos/{REPOSITORY}"), &[]).json()["id"].clone();
    github.rename(REPOSITORY, "owner/adapters");
    let moved = api(&github, &format!("/repos/{REPOSITORY}/releases/tags/v1?x=y"), &[]);
    let expected = format!("/repositories/{number}/releases/tags/v1?x=y");
    assert_eq!((moved.status, moved.location()), (301, (github.api_address(), &*expected)));
    assert_eq!(moved.json()["message"], "Moved Permanently");
    let told = api(&github, moved.location().1, &[]).json();
    let url = format!("{}/repos/owner/adapters/releases/{}", github.api_url(), told["id"]);
    assert_eq!(told["url"], url);
    let page = web(&github, &format!("/{REPOSITORY}/releases/download/v1/a"));
    assert_eq!((page.status, page.location().1), (301, "/owner/adapters/releases/download/v1/a"));

    github.create(Repository::new(REPOSITORY));
    assert_eq!(api(&github, &format!("/repos/{REPOSITORY}/releases/tags/v1"), &[]).status, 404, "the name is taken");
    github.set_private("owner/adapters", true);
    assert_eq!(api(&github, moved.location().1, &[]).status, 404);
    github.remove("owner/adapters");
    assert_eq!(api_as(&github, PUSHER, moved.location().1).status, 404);
}
