use super::{OUTSIDER, PUSHER, READER, Release, Repository, api, api_as, client, github, web};
use crate::github::GitHub;

const TARGETS: [&str; 4] =
    ["/repos/a/secret", "/repos/a/secret/releases/latest", "/repos/a/secret/releases", "/repos/a/secret/commits/v1"];

fn with_secret() -> GitHub {
    let github = github([]);
    let secret = Repository::new("a/secret").with_release(Release::new("v1").with_file("a", "a"));
    github.create(secret.private().renamed_from("a/former"));
    github
}

#[test]
fn a_private_repository_is_not_there_for_those_without_access() {
    let github = with_secret();
    for target in TARGETS {
        let statuses = [OUTSIDER, READER, PUSHER].map(|token| api_as(&github, token, target).status);
        assert_eq!((api(&github, target, &[]).status, statuses), (404, [404, 200, 200]), "{target}");
    }
    let missing = api(&github, TARGETS[1], &[]).json();
    assert_eq!(missing, api(&github, "/repos/a/none/releases/latest", &[]).json(), "the two look the same");
    assert_eq!((&missing["message"], &missing["status"]), (&"Not Found".into(), &"404".into()));
    assert_eq!(api(&github, "/repos/a/former", &[]).status, 404);
    assert_eq!(api_as(&github, READER, "/repos/a/former").status, 301);
    let token = [("Authorization", "Bearer ghp_pusher")];
    let page = client::get(github.web_address(), "/a/secret/releases/download/v1/a", &token);
    assert_eq!(page.status, 404, "the web host knows no tokens");
    github.set_private("a/secret", false);
    assert_eq!(web(&github, "/a/secret/releases/download/v1/a").status, 302);
}

#[test]
fn an_unknown_token_is_refused_everywhere() {
    let github = with_secret();
    github.create(Repository::new("a/open"));
    for authorization in ["Bearer ghp_unknown", "Basic ghp_reader", "ghp_reader"] {
        for target in ["/repos/a/open", TARGETS[0], "/rate_limit"] {
            let answer = api(&github, target, &[("Authorization", authorization)]);
            assert_eq!((answer.status, &answer.json()["message"]), (401, &"Bad credentials".into()), "{target}");
        }
    }
    assert_eq!(api(&github, TARGETS[0], &[("Authorization", "token ghp_reader")]).status, 200);
}

#[test]
fn the_api_wants_a_user_agent_a_version_and_a_media_type_that_it_knows() {
    let github = with_secret();
    let without = client::get(github.api_address(), "/repos/a/open", &[]);
    assert_eq!(without.status, 403);
    assert!(String::from_utf8_lossy(&without.body).contains("User-Agent"));
    assert_eq!(without.header("x-ratelimit-remaining"), None);

    github.create(Repository::new("a/open"));
    for (name, value, status) in [
        ("X-GitHub-Api-Version", "2022-11-28", 200),
        ("X-GitHub-Api-Version", "2026-03-10", 200),
        ("X-GitHub-Api-Version", "2019-01-01", 400),
        ("Accept", "application/vnd.github+json", 200),
        ("Accept", "application/vnd.github.v3+json, */*;q=0.1", 200),
        ("Accept", "text/html", 415),
        ("Accept", "application/octet-stream", 415),
    ] {
        let answer = api(&github, "/repos/a/open", &[(name, value)]);
        assert_eq!(answer.status, status, "{name}: {value}");
    }
    let selected = api(&github, "/repos/a/open", &[]);
    assert_eq!(selected.header("x-github-api-version-selected"), Some("2022-11-28"));
    let agent = [("User-Agent", "tests")];
    assert_eq!(client::ask(github.api_address(), "POST", "/repos/a/open", &agent, b"{}").unwrap().status, 404);
    assert_eq!(api(&github, "/users/a", &[]).status, 404);
}
