use super::{
    Access, GitHub, PUSHER, REPOSITORY, Release, Repository, api, api_as, asset, bytes, client, follow, github, web,
};
use crate::github::{Asset, Content, Fault, Host, Outcome};

const NAME: &str = "adapter.gguf";
const BYTES: &[u8] = b"0123456789";

fn release() -> Release {
    Release::new("v1").with_file(NAME, BYTES)
}

#[test]
fn the_api_redirects_to_the_object_store_if_bytes_are_accepted() {
    let github = github([release()]);
    let target = asset(&github, "v1", NAME);
    let described = api(&github, &target, &[("Accept", "application/vnd.github+json")]);
    assert_eq!((described.status, described.json()["name"].as_str()), (200, Some(NAME)));
    let found = bytes(&github, &target);
    assert_eq!(found.location().0, github.cdn_address());
    let body = follow(&found, &[]);
    assert_eq!((body.status, &*body.body), (200, BYTES));
    assert_eq!(body.header("accept-ranges"), Some("bytes"));
    assert_eq!(body.header("content-disposition"), Some("attachment; filename=adapter.gguf"));
}

#[test]
fn the_api_can_send_the_bytes_itself() {
    let repository = Repository::new(REPOSITORY).with_release(release()).private();
    let builder = GitHub::builder().with_token(PUSHER, Access::Push).with_repository(repository);
    let github = builder.with_assets_from_the_api(true).start();
    let headers =
        [("Accept", "application/octet-stream"), ("Authorization", "token ghp_pusher"), ("Range", "bytes=4-")];
    let part = api(&github, &asset(&github, "v1", NAME), &headers);
    assert_eq!((part.status, &*part.body), (206, &BYTES[4..]));
    assert_eq!(part.header("x-ratelimit-used"), Some("1"));
}

#[test]
fn the_object_store_knows_ranges_and_conditions() {
    let github = github([release()]);
    let found = bytes(&github, &asset(&github, "v1", NAME));
    let etag = follow(&found, &[]).header("etag").unwrap().to_owned();
    let (host, target) = found.location();
    let head = client::head(host, target);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("10"), 0));
    let part = follow(&found, &[("Range", "bytes=7-"), ("If-Range", &etag)]);
    assert_eq!((part.status, &*part.body, part.header("content-range")), (206, &BYTES[7..], Some("bytes 7-9/10")));
    assert_eq!(follow(&found, &[("Range", "bytes=7-"), ("If-Range", "\"other\"")]).body, BYTES);
    let beyond = follow(&found, &[("Range", "bytes=10-")]);
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */10")));
}

#[test]
fn a_signed_url_expires_and_takes_no_token() {
    let github = github([release()]);
    let target = asset(&github, "v1", NAME);
    let found = bytes(&github, &target);
    github.expire_urls();
    let expired = follow(&found, &[]);
    assert_eq!((expired.status, expired.header("content-type")), (403, Some("application/xml")));
    assert!(String::from_utf8_lossy(&expired.body).contains("<Code>AuthenticationFailed</Code>"));

    github.set_url_uses(Some(1));
    let found = bytes(&github, &target);
    assert_eq!([(); 2].map(|()| follow(&found, &[]).status), [200, 403]);
    github.set_url_uses(None);
    let found = bytes(&github, &target);
    assert_eq!(follow(&found, &[("Authorization", "Bearer ghp_reader")]).status, 400);
    let (host, target) = found.location();
    assert_eq!(client::get(host, target.split_once('?').unwrap().0, &[]).status, 403, "without a signature");
    assert_eq!(follow(&found, &[]).body, BYTES);
}

#[test]
fn the_web_host_redirects_to_the_object_store() {
    let github = github([release(), Release::new("lora/v2+a b").with_file(NAME, "two")]);
    for tag in ["lora%2Fv2%2Ba%20b", "lora/v2+a%20b"] {
        let found = web(&github, &format!("/{REPOSITORY}/releases/download/{tag}/{NAME}"));
        assert_eq!(follow(&found, &[]).body, b"two", "{tag}");
    }
    let latest = web(&github, &format!("/{REPOSITORY}/releases/latest/download/{NAME}"));
    let download = format!("/{REPOSITORY}/releases/download/lora%2Fv2%2Ba%20b/{NAME}");
    assert_eq!((latest.status, latest.location()), (302, (github.web_address(), &*download)));
    for missing in ["v1/none", "none/adapter.gguf"] {
        let page = web(&github, &format!("/{REPOSITORY}/releases/download/{missing}"));
        assert_eq!((page.status, page.header("content-type")), (404, Some("text/html; charset=utf-8")), "{missing}");
    }
}

#[test]
fn an_upload_that_has_not_ended_leads_to_nothing() {
    let github = github([Release::new("v1").with_asset(Asset::new(NAME, BYTES).uploading())]);
    let target = asset(&github, "v1", NAME);
    let described = api(&github, &target, &[]).json();
    assert_eq!((&described["state"], &described["size"]), (&"starter".into(), &0.into()));
    assert!(described["digest"].is_null());
    let missing = follow(&bytes(&github, &target), &[]);
    assert_eq!(missing.status, 404);
    assert!(String::from_utf8_lossy(&missing.body).contains("<Code>BlobNotFound</Code>"));

    github.finish_upload(REPOSITORY, "v1", NAME);
    let described = api(&github, &target, &[]).json();
    assert_eq!((&described["state"], &described["size"]), (&"uploaded".into(), &10.into()));
    assert_eq!(follow(&bytes(&github, &target), &[]).body, BYTES);
}

#[test]
fn an_asset_has_its_name_on_all_hosts() {
    let github = github([release(), Release::new("v2").with_file(NAME, BYTES)]);
    let target = asset(&github, "v1", NAME);
    let download = format!("/{REPOSITORY}/releases/download/v1/{NAME}");
    follow(&bytes(&github, &target), &[]);
    follow(&web(&github, &download), &[]);
    let seen: Vec<Host> = github.requests_for("v1/adapter.gguf").iter().map(|request| request.host).collect();
    assert_eq!(seen, [Host::Api, Host::Cdn, Host::Web, Host::Cdn]);
    for pattern in [NAME, "Owner/lora/adapter.gguf", "Owner/lora/v1/*"] {
        assert_eq!(github.requests_for(pattern).len(), 4, "{pattern}");
    }
    assert!(github.requests_for("v2/*").is_empty());
}

#[test]
fn faults_are_for_assets_of_a_release_on_a_host() {
    let github = github([release(), Release::new("v2").with_file(NAME, BYTES)]);
    let [one, two] = ["v1", "v2"].map(|tag| bytes(&github, &asset(&github, tag, NAME)));
    github.fault(Fault::cut(3).path("v1/adapter.gguf").once());
    github.fault(Fault::changed("other").path("v1/*").on(Host::Cdn).once());
    assert_eq!(follow(&two, &[]).body, BYTES);
    let cut = follow(&one, &[]);
    assert!(!cut.is_whole() && cut.body == BYTES[..3]);
    assert_eq!(follow(&one, &[]).body, b"other");
    let outcomes: Vec<Outcome> = github.wait_until_idle().iter().map(|request| request.outcome).collect();
    assert_eq!(outcomes[2..], [Outcome::Finished, Outcome::Cut, Outcome::Finished]);

    github.clear_faults();
    github.fault(Fault::status(503));
    let refused = api(&github, &format!("/repos/{REPOSITORY}"), &[]);
    assert_eq!((refused.status, &refused.json()["message"]), (503, &"Service Unavailable".into()));
    assert_eq!(follow(&one, &[]).header("content-type"), Some("application/xml"));
    assert_eq!(web(&github, "/").header("content-type"), Some("text/html; charset=utf-8"));
}

#[test]
fn downloads_are_counted_if_that_is_on() {
    let repository = Repository::new(REPOSITORY).with_release(release());
    let github = GitHub::builder().with_repository(repository).with_download_counts(true).start();
    let target = asset(&github, "v1", NAME);
    bytes(&github, &target);
    web(&github, &format!("/{REPOSITORY}/releases/download/v1/{NAME}"));
    assert_eq!(api(&github, &target, &[]).json()["download_count"], 2);
}

#[test]
fn digests_are_given_or_not_or_wrong() {
    let assets = [
        Asset::new("true", BYTES),
        Asset::new("absent", BYTES).without_digest(),
        Asset::new("wrong", BYTES).with_digest("sha256:00").with_size(99),
    ];
    let release = assets.into_iter().fold(Release::new("v1"), Release::with_asset).with_sha256sums("SHA256SUMS");
    let github = github([release]);
    let told = api_as(&github, PUSHER, &format!("/repos/{REPOSITORY}/releases/tags/v1")).json();
    let digests: Vec<_> = (0..3).map(|i| told["assets"][i]["digest"].as_str()).collect();
    let sha256 = Content::from(BYTES).sha256().to_owned();
    assert_eq!(digests, [Some(&*format!("sha256:{sha256}")), None, Some("sha256:00")]);
    assert_eq!((&told["assets"][1]["size"], &told["assets"][2]["size"]), (&10.into(), &99.into()));
    let sums = follow(&bytes(&github, &asset(&github, "v1", "SHA256SUMS")), &[]).body;
    assert_eq!(String::from_utf8(sums).unwrap(), format!("{sha256}  true\n{sha256}  absent\n{sha256}  wrong\n"));
}
