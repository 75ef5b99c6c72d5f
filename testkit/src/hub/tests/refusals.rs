use super::{Reply, get};
use crate::hub::{Gated, Hub, Repo};

const TOKEN: &str = "hf_known";
const WITHOUT_ACCESS: &str = "hf_outside";

fn hub() -> Hub {
    let repo = |id: &str| Repo::new(id).with_file("config.json", "{}");
    Hub::builder()
        .with_token(TOKEN)
        .with_token_without_access(WITHOUT_ACCESS)
        .with_repo(repo("org/open"))
        .with_repo(repo("org/gated").gated(Gated::Auto))
        .with_repo(repo("org/private").private().renamed_from("org/secret"))
        .with_repo(repo("org/closed").disabled())
        .start()
}

fn with_token(hub: &Hub, target: &str, token: Option<&str>) -> Reply {
    let authorization = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = authorization.iter().map(|value| ("Authorization", value.as_str())).collect();
    get(hub.address(), target, &headers)
}

#[test]
fn each_refusal_has_its_status_and_its_code() {
    let hub = hub();
    let (nobody, outside, known) = (None, Some(WITHOUT_ACCESS), Some(TOKEN));
    for (target, token, status, code) in [
        ("/org/none/resolve/main/config.json", nobody, 401, Some("RepoNotFound")),
        ("/org/none/resolve/main/config.json", known, 404, Some("RepoNotFound")),
        ("/api/models/org/private", nobody, 401, Some("RepoNotFound")),
        ("/api/models/org/private", outside, 404, Some("RepoNotFound")),
        ("/api/models/org/private", known, 200, None),
        ("/api/models/org/secret", outside, 404, Some("RepoNotFound")),
        ("/api/models/org/gated", nobody, 200, None),
        ("/api/models/org/gated/tree/main", nobody, 200, None),
        ("/org/gated/resolve/main/config.json", nobody, 401, Some("GatedRepo")),
        ("/org/gated/resolve/main/config.json", outside, 403, Some("GatedRepo")),
        ("/org/gated/resolve/main/config.json", known, 200, None),
        ("/org/closed/resolve/main/config.json", known, 403, None),
        ("/org/open/resolve/none/config.json", nobody, 404, Some("RevisionNotFound")),
        ("/api/models/org/open/revision/none", nobody, 404, Some("RevisionNotFound")),
        ("/org/open/resolve/main/none", nobody, 404, Some("EntryNotFound")),
        ("/org/open/resolve/main/config.json", Some("hf_unknown"), 401, None),
        ("/org/open/resolve/main/config.json", outside, 200, None),
        ("/org/open/blob/main/config.json", nobody, 404, None),
    ] {
        let answer = with_token(&hub, target, token);
        let found = (answer.status, answer.header("x-error-code"));
        assert_eq!(found, (status, code), "{target} with {token:?}");
        if status != 200 {
            assert_eq!(answer.header("x-error-message"), answer.json()["error"].as_str(), "{target}");
        }
    }
}

#[test]
fn a_missing_file_names_the_commit_it_is_missing_from() {
    let hub = hub();
    let answer = with_token(&hub, "/org/open/resolve/main/none", None);
    assert_eq!(answer.header("x-repo-commit"), hub.commit("org/open", "main").as_deref());
}
