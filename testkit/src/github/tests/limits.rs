use super::{Access, GitHub, READER, REPOSITORY, Release, Repository, api, api_as, asset, bytes, client, follow};
use crate::github::{Fault, Host, secondary_rate_limit};

const TARGET: &str = "/repos/Owner/lora/releases/latest";

fn limited(anonymous: u64, with_token: u64, status: u16) -> GitHub {
    let repository = Repository::new(REPOSITORY).with_release(Release::new("v1").with_file("a", "a"));
    let builder = GitHub::builder().with_repository(repository).with_token(READER, Access::Read);
    builder.with_rate_limit(anonymous, with_token).with_rate_limit_status(status).start()
}

/// The limit, what is left of it, and what was used, as a header tells them.
fn told(answer: &client::Reply) -> [&str; 3] {
    ["limit", "remaining", "used"].map(|what| answer.header(&format!("x-ratelimit-{what}")).unwrap())
}

#[test]
fn each_token_and_those_without_one_have_a_limit_of_their_own() {
    for status in [403, 429] {
        let github = limited(2, 3, status);
        github.set_rate_limit_reset(4_102_444_800);
        assert_eq!(told(&api(&github, TARGET, &[])), ["2", "1", "1"]);
        assert_eq!(api(&github, "/repos/a/none", &[]).status, 404);
        assert_eq!(github.rate_limit_used(None), 2, "an error counts");
        let refused = api(&github, TARGET, &[]);
        assert_eq!((refused.status, told(&refused)), (status, ["2", "0", "2"]));
        assert_eq!(refused.header("x-ratelimit-reset"), Some("4102444800"));
        assert_eq!(refused.header("x-ratelimit-resource"), Some("core"));
        assert!(refused.json()["message"].as_str().unwrap().starts_with("API rate limit exceeded"));
        assert_eq!(told(&api_as(&github, READER, TARGET)), ["3", "2", "1"]);
        let rate = api(&github, "/rate_limit", &[]).json()["resources"]["core"].clone();
        assert_eq!((&rate["remaining"], &rate["reset"]), (&0.into(), &4_102_444_800_u64.into()));
        github.refill_rate_limit();
        assert_eq!(api(&github, TARGET, &[]).status, 200);
    }
}

#[test]
fn the_limit_can_be_exhausted_at_once() {
    let github = limited(60, 5000, 403);
    let signed = bytes(&github, &asset(&github, "v1", "a"));
    github.exhaust_rate_limit(1_900_000_000);
    for refused in [api(&github, TARGET, &[]), api_as(&github, READER, TARGET)] {
        assert_eq!((refused.status, refused.header("x-ratelimit-remaining")), (403, Some("0")));
        assert_eq!(refused.header("x-ratelimit-reset"), Some("1900000000"));
        assert_eq!(refused.header("retry-after"), None);
    }
    assert_eq!(follow(&signed, &[]).status, 200, "the object store has no such limit");
    github.refill_rate_limit();
    assert_eq!(api(&github, TARGET, &[]).status, 200);
}

#[test]
fn what_is_known_already_is_free_with_a_token() {
    let github = limited(60, 5000, 403);
    let bearer = ("Authorization", "Bearer ghp_reader");
    let etag = api(&github, TARGET, &[bearer]).header("etag").unwrap().to_owned();
    assert!(etag.starts_with("W/\""), "{etag}");
    let known = api(&github, TARGET, &[bearer, ("If-None-Match", &etag)]);
    assert_eq!((known.status, known.body.len(), known.header("etag")), (304, 0, Some(&*etag)));
    assert_eq!((told(&known)[2], github.rate_limit_used(Some(READER))), ("1", 1));

    let own = api(&github, TARGET, &[("If-None-Match", &etag)]);
    assert_eq!(own.status, 200, "an ETag is that of a token");
    let etag_without = own.header("etag").unwrap().to_owned();
    assert_eq!(api(&github, TARGET, &[("If-None-Match", &etag_without)]).status, 304);
    assert_eq!(github.rate_limit_used(None), 2, "without a token it counts");

    github.publish(REPOSITORY, Release::new("v2"));
    let changed = api(&github, TARGET, &[bearer, ("If-None-Match", &etag)]);
    assert_eq!((changed.status, &changed.json()["tag_name"]), (200, &"v2".into()));
    assert_eq!(github.rate_limit_used(Some(READER)), 2);
}

#[test]
fn secondary_limits_say_when_to_come_back() {
    let github = limited(60, 5000, 403);
    github.fault(secondary_rate_limit(403, Some(30)).once());
    github.fault(secondary_rate_limit(429, None).path("*/releases/latest").once());
    for (status, retry_after) in [(403, Some("30")), (429, None)] {
        let refused = api(&github, TARGET, &[]);
        assert_eq!((refused.status, refused.header("retry-after")), (status, retry_after));
        assert_eq!(refused.header("x-ratelimit-remaining"), Some("42"));
        assert!(refused.json()["message"].as_str().unwrap().contains("secondary rate limit"));
    }
    assert_eq!(api(&github, TARGET, &[]).status, 200);
}

#[test]
fn headers_of_all_hosts_are_recorded() {
    let github = limited(60, 5000, 403);
    let headers = [("Authorization", "Bearer ghp_reader"), ("Accept", "application/octet-stream")];
    let signed = api(&github, &asset(&github, "v1", "a"), &headers);
    github.fault(Fault::stall(0).on(Host::Cdn).once());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| follow(&signed, &[]));
        github.wait_until(|requests| requests.iter().any(|request| request.host == Host::Cdn && request.status == 200));
        assert_eq!(github.open_requests(), 1);
        github.release();
        assert_eq!(waiting.join().unwrap().body, b"a");
    });
    let requests = github.wait_until_idle();
    let tokens: Vec<bool> = requests.iter().map(|request| request.header("authorization").is_some()).collect();
    assert_eq!(tokens, [true, false]);
    assert!(!format!("{requests:?}").contains(READER));
}
