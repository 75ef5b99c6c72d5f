//! Releases that are not there, and what is said of those that are.

use llm_local_source_common::network::Wait;
use llm_local_testkit::github::{Fault, Host, secondary_rate_limit};

use super::*;

const LIST: &str = "/repos/acme/lora/releases";

#[test]
fn what_goes_wrong_with_the_list_takes_nothing_from_a_release_that_is_missing() {
    let faults = [
        Fault::status(503),
        Fault::hang_up(),
        Fault::status(401),
        Fault::html(),
        Fault::too_many_requests("900"),
        secondary_rate_limit(403, None),
    ];
    for fault in faults {
        for (reference, lacks) in [
            ("github:acme/lora@v9", "no release `v9`"),
            ("github:acme/lora@7~1", "no release with the id 7"),
            ("github:acme/lora", "no release that is neither"),
        ] {
            let pre = Release::new("v1").prerelease().with_file("pirate.zip", "PK");
            let setup = setup(server().with_repository(Repository::new("acme/lora").with_release(pre)), TOKEN);
            setup.server.fault(fault.clone().on(Host::Api).path(LIST));
            let error = said(setup.resolve(reference), "not_found", &[lacks, "could not be found out"]);
            assert!(!error.is_retryable() && !error.to_string().contains("no published release"), "{error}");
            let asked = setup.asked();
            // A client may ask again by itself where a connection was closed on it.
            assert!(asked[0] != LIST && asked[1..].iter().all(|path| path == LIST), "{asked:?}");
            assert!(asked.len() <= 3, "{asked:?}");
            assert!(setup.timer.sleeps(Wait::Backoff).is_empty());
        }
    }
}

#[test]
fn one_page_of_releases_is_asked_for_to_say_which_there_are() {
    let mut repository = Repository::new("acme/lora");
    for i in 0..130 {
        repository = repository.with_release(Release::new(format!("v{i}")).with_file("a.gguf", "x"));
    }
    let setup = setup(server().with_repository(repository), "");
    said(setup.resolve("github:acme/lora@x"), "not_found", &["no release `x`", "lora@v129,", "lora@v110 and more"]);
    assert_eq!(setup.asked(), ["/repos/acme/lora/releases/tags/x", LIST]);
}
