//! Whatever goes wrong with a signed URL and a token, neither is in what is said of it.

use std::{error::Error as _, net::TcpListener, ops::Range, sync::Arc};

use llm_local_core::{
    ArtifactRef, ArtifactSource, Error, FetchContext, Manifest, ManifestFile, Opened, Request, Result, Want,
    async_trait,
};
use llm_local_source_common::transfer::Job;
use llm_local_testkit::hub::{Content, Fault};

use super::support::*;

const SIGNATURE: &str = "s1gned";
const PASSWORD: &str = "passw0rd";

/// Asks for its file by one signed URL.
struct Signed(String);

#[async_trait]
impl ArtifactSource for Signed {
    fn scheme(&self) -> &str {
        "test"
    }

    async fn resolve(&self, reference: &ArtifactRef, _: Want, _: &FetchContext) -> Result<Manifest> {
        Err(Error::not_found(reference, "these tests make their manifests themselves"))
    }

    async fn open(&self, _: &Manifest, _: &ManifestFile, _: Range<u64>, _: &FetchContext) -> Result<Opened> {
        let request = Request::new(&*self.0).with_header("Authorization", format!("Bearer {TOKEN}"));
        Ok(Opened::Request(request.with_header("X-Api-Key", TOKEN)))
    }
}

/// The errors of fetching the large file, and of reading all of it, by `url` with `HUB` for where the hub is. One of the
/// two may go well: what is read is not verified.
fn errors(setup: &Setup, url: &str) -> Vec<Error> {
    let at = url.replace("HUB", &setup.hub.address().to_string());
    let job = Job::new(Arc::new(Signed(at)), setup.manifest());
    let fetched = pollster::block_on(setup.transfer().fetch(vec![job.clone()], &setup.cx()));
    let read = pollster::block_on(setup.transfer().read(&job, MODEL, 0..SIZE, &setup.cx()));
    [fetched.map(drop), read.map(drop)].into_iter().filter_map(Result::err).collect()
}

/// All that can be said of `error`.
fn said(error: &Error) -> String {
    let mut said = format!("{error}\n{error:?}\n{error:#?}\n");
    let mut cause = error.source();
    while let Some(inner) = cause {
        said.push_str(&format!("{inner}\n{inner:?}\n"));
        cause = inner.source();
    }
    said
}

#[track_caller]
fn assert_tells_nothing(of: &str, errors: &[Error]) {
    assert!(!errors.is_empty(), "{of} does no harm");
    for error in errors {
        let said = said(error);
        for secret in [TOKEN, "Bearer", SIGNATURE, PASSWORD, "X-Sig", "Basic"] {
            assert!(!said.contains(secret), "{secret} in {said}");
        }
    }
}

fn setup() -> Setup {
    let mut setup = Setup::new().only(MODEL);
    setup.network = setup.network.clone().with_attempts(2);
    setup
}

fn signed(before: &str) -> String {
    format!("{before}?X-Sig={SIGNATURE}&user={PASSWORD}")
}

/// Of the large file, by a URL with all secrets that a URL can have.
fn signed_url() -> String {
    signed(&format!("http://user:{PASSWORD}@HUB/{REPO}/resolve/main/{MODEL}"))
}

#[test]
fn no_answer_makes_an_error_tell_a_secret() {
    let mut faults = vec![
        Fault::hang_up(),
        Fault::cut(0),
        Fault::ignore_range().and(Fault::cut(1000)),
        Fault::changed(Content::generated(SIZE + 1, 9)),
        Fault::longer(3),
        Fault::shorter(3),
        Fault::gzip(),
        Fault::html(),
        Fault::answer(206, "text/plain", "x"),
        Fault::answer(206, "text/plain", "x").with_header("Content-Range", "bytes 7-7/9"),
        Fault::answer(200, "text/plain", "x").with_header("Content-Encoding", "br"),
        Fault::redirect_loop(),
        Fault::too_many_requests("1"),
        Fault::too_many_requests("3600"),
        Fault::too_many_requests(signed("http://a/")),
    ];
    let statuses = [204, 304, 400, 401, 403, 404, 407, 408, 410, 416, 418, 429, 500, 501, 503, 505, 599];
    faults.extend(statuses.map(Fault::status));
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let places = [
        format!("http://user:{PASSWORD}@example.invalid/a"),
        format!("ftp://user:{PASSWORD}@127.0.0.1/a"),
        format!("http://user:{PASSWORD}@{gone}/a"),
        format!("https://user:{PASSWORD}@{gone}/a"),
        format!("http://user:{PASSWORD}@[::1/a"),
        "http://".to_owned(),
    ];
    faults.extend(places.map(|place| Fault::redirect(302, signed(&place))));
    for fault in faults {
        let setup = setup();
        let of = format!("{fault:?}");
        setup.hub.fault(fault);
        assert_tells_nothing(&of, &errors(&setup, &signed_url()));
        assert!(!setup.hub.requests().is_empty());
    }
}

#[test]
fn no_host_makes_an_error_tell_a_secret() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for place in [
        format!("http://user:{PASSWORD}@{gone}/a"),
        format!("https://user:{PASSWORD}@{gone}/a"),
        // It does not speak TLS.
        format!("https://user:{PASSWORD}@HUB/a"),
        format!("http://user:{PASSWORD}@example.invalid/a"),
        format!("ftp://user:{PASSWORD}@HUB/a"),
        format!("http//user:{PASSWORD}@HUB/a"),
        format!("http://user:{PASSWORD}@[::1/a"),
        format!("http://user:{PASSWORD}@HUB:port/a"),
    ] {
        assert_tells_nothing(&place, &errors(&setup(), &signed(&place)));
    }
}

#[test]
fn no_stall_makes_an_error_tell_a_secret() {
    for fault in [Fault::silence(), Fault::stall(0), Fault::stall(1000)] {
        let setup = setup();
        setup.hub.fault(fault);
        // Whatever is waited for takes too long.
        setup.timer.end_stalls(1000);
        assert_tells_nothing("a stall", &errors(&setup, &signed_url()));
    }
}

#[test]
fn a_redirect_to_a_host_that_is_not_allowed_tells_the_file_the_host_and_the_fix_and_no_secret() {
    let mut setup = setup();
    setup.network = setup.network.clone().with_allowed_hosts([setup.hub.address().to_string()]);
    for place in [signed(&format!("https://user:{PASSWORD}@cdn.example.invalid/a")), signed("https://127.0.0.1:1/a")] {
        setup.hub.clear_faults();
        setup.hub.fault(Fault::redirect(302, &place));
        let host = if place.contains("invalid") { "cdn.example.invalid/a" } else { "127.0.0.1:1/a" };
        let errors = errors(&setup, &signed_url());
        assert_eq!(errors.len(), 2);
        for error in &errors {
            let text = error.to_string();
            assert!(error.code() == "not_allowed" && !error.is_retryable(), "{text}");
            for words in [host, "model.bin of test:org/tiny", "Policy::allow_hosts", &setup.hub.address().to_string()] {
                assert_eq!(text.matches(words).count(), 1, "{words} in {text}");
            }
        }
        assert_tells_nothing(&place, &errors);
    }
}

#[test]
fn a_url_that_may_not_be_asked_is_an_error_that_names_the_file_and_the_ref() {
    for (url, words) in [
        ("http://cdn.example.invalid/a?X-Sig=s1gned", "cdn.example.invalid/a"),
        ("ftp://HUB/a?X-Sig=s1gned", "neither `https` nor `http`"),
        ("no url ?X-Sig=s1gned", "is none"),
    ] {
        let setup = setup();
        let errors = errors(&setup, url);
        assert_eq!(errors.len(), 2);
        for error in errors {
            let text = error.to_string();
            assert_eq!(error.code(), "invalid_spec", "{text}");
            assert!(text.contains("model.bin of test:org/tiny") && text.contains(words), "{text}");
            assert_eq!(text.matches("model.bin").count(), 1, "{text}");
            assert_tells_nothing(url, &[error]);
        }
        assert!(setup.hub.requests().is_empty());
    }
}
