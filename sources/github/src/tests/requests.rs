//! What is asked, with which headers.

use llm_local_source_common::network::Timer as _;
use llm_local_testkit::github::{Fault, Host, Recorded, secondary_rate_limit};

use super::*;

fn header<'a>(request: &'a Recorded, name: &str) -> Option<&'a str> {
    request.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

#[test]
fn a_request_has_the_headers_that_github_wants() {
    let setup = setup(server().with_repository(one()), TOKEN);
    setup.resolve("github:acme/lora@v1").unwrap();
    for request in setup.server.wait_until_idle() {
        assert_eq!(request.host, Host::Api);
        assert!(header(&request, "user-agent").unwrap().starts_with("llm-local/"));
        assert_eq!(header(&request, "accept"), Some("application/vnd.github+json"));
        assert_eq!(header(&request, "x-github-api-version"), Some("2022-11-28"));
        assert_eq!(header(&request, "authorization"), Some(&*format!("Bearer {TOKEN}")));
    }
}

#[test]
fn without_a_token_bytes_are_asked_of_the_web_and_with_one_of_the_api() {
    let setup_without = setup(server().with_repository(one()), "");
    let manifest = setup_without.resolve("github:acme/lora@v1").unwrap();
    let request = setup_without.request(&manifest, "pirate.zip");
    assert_eq!(request.url, setup_without.server.web_url() + "/acme/lora/releases/download/v1/pirate.zip");
    assert!(request.headers.is_empty());

    let with = setup(server().with_repository(one().private()), TOKEN);
    let manifest = with.resolve("github:acme/lora@v1").unwrap();
    let request = with.request(&manifest, "pirate.zip");
    let id = with.server.asset_id("acme/lora", "v1", "pirate.zip");
    assert_eq!(request.url, format!("{}/repos/acme/lora/releases/assets/{id}", with.server.api_url()));
    let names: Vec<_> = request.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["Accept", "Authorization"]);

    // A manifest of an earlier process: the browser's URL is not known.
    let later = setup(server().with_repository(one()), "");
    let url = later.request(&manifest, "pirate.zip").url;
    assert!(url.ends_with(&format!("/releases/assets/{id}")), "{url}");
}

#[test]
fn a_private_repository_needs_a_token_that_may_read_it() {
    let private = || server().with_repository(one().private()).with_token("ghp_public", Access::Public);
    said(
        setup(private(), "").resolve("github:acme/lora@v1"),
        "not_found",
        &["if it is private, give a token", "GITHUB_TOKEN"],
    );
    said(
        setup(private(), "ghp_public").resolve("github:acme/lora@v1"),
        "not_found",
        &["the token that was sent may not"],
    );
    said(
        setup(private(), "ghp_s3cret_other").resolve("github:acme/lora@v1"),
        "unauthorized",
        &["does not know the token"],
    );
    assert!(setup(private(), TOKEN).resolve("github:acme/lora@v1").is_ok());
}

#[test]
fn asking_again_costs_nothing_of_the_limit_where_nothing_changed() {
    let setup = setup(server().with_repository(one()), TOKEN);
    let first = setup.resolve("github:acme/lora").unwrap();
    let used = setup.server.rate_limit_used(Some(TOKEN));
    setup.server.clear();
    assert_eq!(setup.resolve("github:acme/lora").unwrap(), first);
    let requests = setup.server.wait_until_idle();
    assert!(requests.iter().all(|r| r.status == 304 && header(r, "if-none-match").is_some()), "{requests:?}");
    assert_eq!((requests.len(), setup.server.rate_limit_used(Some(TOKEN))), (2, used));
    setup.server.publish("acme/lora", Release::new("v2").with_file("pirate.zip", "PK2"));
    assert_eq!(setup.resolve("github:acme/lora").unwrap().version.as_deref(), Some("v2"));
    assert!(std::fs::read_dir(setup.answers.path()).unwrap().count() > 0);
}

#[test]
fn an_answer_that_is_used_again_is_as_new_and_one_that_leads_elsewhere_is_not_used() {
    let setup = setup(server().with_repository(one()), TOKEN);
    assert_eq!(setup.tags("github:acme/lora"), ["v1"]);
    let path = std::fs::read_dir(setup.answers.path()).unwrap().next().unwrap().unwrap().path();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    setup.server.clear();
    assert_eq!(setup.tags("github:acme/lora"), ["v1"]);
    assert_eq!(setup.server.wait_until_idle()[0].status, 304);
    let written = std::fs::metadata(&path).unwrap().modified().unwrap();
    assert!(written > long_ago + std::time::Duration::from_secs(3600), "{written:?}");
    // As one who did not look at it has kept it.
    let kept = std::fs::read_to_string(&path).unwrap();
    let leading = kept.replacen("{", r#"{"link":"<https://elsewhere.test/x>; rel=\"next\"","#, 1);
    std::fs::write(&path, leading).unwrap();
    setup.server.clear();
    assert_eq!(setup.tags("github:acme/lora"), ["v1"]);
    assert_eq!(setup.server.wait_until_idle()[0].status, 200);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), kept);
}

#[test]
fn a_limit_that_is_used_up_says_when_it_resets() {
    let setup = setup(server().with_repository(one()), "");
    let now = setup.timer.wall().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    setup.server.exhaust_rate_limit(now + 1800);
    let error = said(
        setup.resolve("github:acme/lora@v1"),
        "rate_limited",
        &["github:acme/lora@v1", "5,000 with one", "GITHUB_TOKEN", "try again in"],
    );
    let Error::RateLimited { retry_after: Some(after), .. } = error else { panic!("{error:?}") };
    assert!((1700..=1800).contains(&after.as_secs()), "{after:?}");
    assert_eq!(setup.asked().len(), 1);
}

#[test]
fn a_licence_that_cannot_be_asked_for_now_is_an_error_and_one_that_may_not_be_is_none() {
    let setup = setup(server().with_repository(one()), "");
    setup.server.fault(Fault::status(503).on(Host::Api).path("/repos/acme/lora"));
    let error = said(setup.resolve("github:acme/lora@v1"), "download_failed", &["503"]);
    assert!(error.is_retryable());
    setup.server.clear_faults();
    setup.server.fault(secondary_rate_limit(429, Some(900)).path("/repos/acme/lora"));
    assert!(said(setup.resolve("github:acme/lora@v1"), "rate_limited", &[]).is_retryable());
    setup.server.clear_faults();
    setup.server.fault(Fault::status(403).on(Host::Api).path("/repos/acme/lora"));
    assert_eq!(setup.resolve("github:acme/lora@v1").unwrap().license, None);
    setup.server.clear_faults();
    assert_eq!(setup.resolve("github:acme/lora@v1").unwrap().license.as_deref(), Some("MIT"));
}

#[test]
fn a_renamed_repository_is_followed_with_its_token() {
    let setup = setup(server().with_repository(one().private().renamed_from("acme/old")), TOKEN);
    assert_eq!(setup.resolve("github:acme/old@v1").unwrap().version.as_deref(), Some("v1"));
}

#[test]
fn offline_no_request_is_made() {
    let setup = setup(server().with_repository(one()), "");
    let offline = FetchContext::new().with_offline(true);
    let asked = block_on(setup.source.resolve(&"github:acme/lora@v1".parse().unwrap(), Want::Adapter, &offline));
    said(asked, "offline", &["github:acme/lora@v1"]);
    let manifest = setup.resolve("github:acme/lora@v1").unwrap();
    setup.server.clear();
    said(block_on(setup.source.open(&manifest, &manifest.files[0], 0..1, &offline)), "offline", &["pirate.zip"]);
    assert_eq!(setup.asked(), Vec::<String>::new());
}

#[test]
fn an_enterprise_server_has_its_api_below_a_path() {
    let setup = setup(server().with_repository(one()), "");
    let source = GitHub::builder().token("").api(setup.server.enterprise_api_url()).build().unwrap();
    let reference = "github:acme/lora@v1".parse().unwrap();
    let manifest = block_on(source.resolve(&reference, Want::Adapter, &FetchContext::new())).unwrap();
    assert_eq!(manifest.version.as_deref(), Some("v1"));
    assert_eq!(setup.asked()[0], "/api/v3/repos/acme/lora/releases/tags/v1");
}

#[test]
fn a_list_that_goes_on_at_another_host_is_not_asked_for_there_and_no_token_goes_there() {
    let path = "repos/acme/lora/releases?per_page=100&page=2";
    for origin in ["{other}", "//{other_host}", "http://localhost:{port}", "{api}@{other_host}", "{cdn}"] {
        let (setup, other) = (setup(server().with_repository(one()), TOKEN), server().with_repository(one()).start());
        let origin = origin
            .replace("{other}", &other.api_url())
            .replace("{other_host}", &other.api_address().to_string())
            .replace("{port}", &setup.server.api_address().port().to_string())
            .replace("{api}", &setup.server.api_url())
            .replace("{cdn}", &setup.server.cdn_url());
        let link = format!("<{origin}/{path}>; rel=\"next\", <{origin}/{path}>; rel=\"last\"");
        setup.server.fault(Fault::header("Link", link).on(Host::Api).path("/repos/acme/lora/releases"));
        let reference = "github:acme/lora".parse().unwrap();
        let listed = block_on(setup.source.revisions(&reference, &FetchContext::new()));
        let error = said(listed, "download_failed", &["github:acme/lora", "another host, which is not asked"]);
        assert!(!error.is_retryable());
        assert_eq!(setup.asked(), ["/repos/acme/lora/releases"], "{origin}");
        assert_eq!(std::fs::read_dir(setup.answers.path()).unwrap().count(), 0, "it is not kept");
        assert_eq!(other.wait_until_idle().len(), 0, "{origin}");
    }
    // Of the same host it is asked for, with the token.
    let setup = setup(server().with_repository(one()), TOKEN);
    let link = format!("<{}/{path}>; rel=\"next\"", setup.server.api_url());
    setup.server.fault(Fault::header("Link", link).on(Host::Api).path("/repos/acme/lora/releases").once());
    assert_eq!(setup.tags("github:acme/lora"), ["v1"]);
    let requests = setup.server.wait_until_idle();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert_eq!(
        (requests[1].query.as_str(), header(&requests[1], "authorization").is_some()),
        ("per_page=100&page=2", true)
    );
}
