//! What a path of the Hub asks for.

/// What is wanted of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// `/api/models/{id}[/revision/{revision}]`
    Info { revision: String },
    /// `/api/models/{id}/tree/{revision}[/{folder}]`; the folder is empty for the root.
    Tree { revision: String, folder: String },
    /// `/api/models/{id}/refs`
    Refs,
    /// `/api/models/{id}/paths-info/{revision}`
    PathsInfo { revision: String },
    /// `/{id}/resolve/{revision}/{path}`
    File { revision: String, path: String },
    /// `/api/resolve-cache/models/{id}/{commit}/{path}`
    CachedFile { commit: String, path: String },
}

/// The repository that is asked, and what for, by the decoded segments of the path.
pub(super) fn parse(segments: &[String]) -> Option<(String, Wanted)> {
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["api", "models", rest @ ..] => of_the_api(rest),
        ["api", "resolve-cache", "models", rest @ ..] => {
            let commit = rest.iter().position(|segment| is_commit(segment)).filter(|at| (1..=2).contains(at))?;
            let (id, rest) = (rest[..commit].join("/"), &rest[commit..]);
            Some((id, Wanted::CachedFile { commit: rest[0].into(), path: path(&rest[1..])? }))
        }
        [org, name, "resolve", revision, file @ ..] => {
            Some((format!("{org}/{name}"), Wanted::File { revision: (*revision).into(), path: path(file)? }))
        }
        [name, "resolve", revision, file @ ..] => {
            Some(((*name).into(), Wanted::File { revision: (*revision).into(), path: path(file)? }))
        }
        _ => None,
    }
}

fn of_the_api(segments: &[&str]) -> Option<(String, Wanted)> {
    let is_verb = |segment: &&str| ["revision", "tree", "refs", "paths-info"].contains(segment);
    // The oldest repositories have a name without an organization.
    let length = if segments.get(1).is_none_or(is_verb) { 1 } else { 2 };
    let (id, rest) = segments.split_at_checked(length)?;
    let wanted = match rest {
        [] => Wanted::Info { revision: "main".into() },
        ["revision", revision] => Wanted::Info { revision: (*revision).into() },
        ["tree", revision, folder @ ..] => {
            Wanted::Tree { revision: (*revision).into(), folder: folder.join("/").trim_matches('/').into() }
        }
        ["refs"] => Wanted::Refs,
        ["paths-info", revision] => Wanted::PathsInfo { revision: (*revision).into() },
        _ => return None,
    };
    Some((id.join("/"), wanted))
}

fn path(segments: &[&str]) -> Option<String> {
    (!segments.is_empty()).then(|| segments.join("/"))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str) -> Option<(String, Wanted)> {
        parse(&path.split('/').map(|segment| segment.replace("%2F", "/")).collect::<Vec<_>>())
    }

    #[test]
    fn a_path_names_a_repository_and_what_is_wanted_of_it() {
        let (revision, id) = ("main".to_owned(), "a/b".to_owned());
        assert_eq!(parsed("api/models/a/b"), Some((id.clone(), Wanted::Info { revision: revision.clone() })));
        assert_eq!(parsed("api/models/gpt2"), Some(("gpt2".into(), Wanted::Info { revision: revision.clone() })));
        assert_eq!(parsed("api/models/gpt2/refs"), Some(("gpt2".into(), Wanted::Refs)));
        let folder = "x/y".to_owned();
        let tree = Wanted::Tree { revision: "refs/pr/1".into(), folder };
        assert_eq!(parsed("api/models/a/b/tree/refs%2Fpr%2F1/x/y"), Some((id.clone(), tree)));
        let file = Wanted::File { revision, path: "x/y.json".into() };
        assert_eq!(parsed("a/b/resolve/main/x/y.json"), Some((id.clone(), file.clone())));
        assert_eq!(parsed("gpt2/resolve/main/x/y.json"), Some(("gpt2".into(), file)));
        let commit = "0123456789".repeat(4);
        let cached = Wanted::CachedFile { commit: commit.clone(), path: "x".into() };
        assert_eq!(parsed(&format!("api/resolve-cache/models/a/b/{commit}/x")), Some((id, cached)));
    }

    #[test]
    fn other_paths_name_nothing() {
        for path in ["", "api/models", "a/b/resolve/main", "a/b/blob/main/x", "api/models/a/b/revision/x/y"] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }
}
