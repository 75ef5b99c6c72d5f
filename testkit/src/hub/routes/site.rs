//! Repositories, tokens and signed URLs, and which route answers what.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    super::{
        Repo,
        repo::{Kept, Published},
    },
    access::Visitor,
    info, refusal, resolve, second_host,
    target::{self, Wanted},
    tree,
};
use crate::server::{self, Host, Request, Response, SignedUrls, Subject};

/// Both hosts of a Hub.
#[derive(Debug)]
pub(crate) struct Site {
    endpoints: [String; 2],
    tokens: BTreeMap<String, bool>,
    page_size: usize,
    resolve_cache: bool,
    repos: Mutex<BTreeMap<String, Arc<Published>>>,
    urls: Arc<SignedUrls>,
}

impl Site {
    /// A site at the URLs of the Hub and the second host, with tokens and whether they have access.
    pub(crate) fn new(
        endpoints: [String; 2],
        tokens: Vec<(String, bool)>,
        page_size: usize,
        resolve_cache: bool,
        urls: Arc<SignedUrls>,
    ) -> Self {
        Self {
            endpoints,
            tokens: tokens.into_iter().collect(),
            page_size,
            resolve_cache,
            repos: Mutex::default(),
            urls,
        }
    }

    pub(crate) fn publish(&self, repo: Repo) {
        let published = Arc::new(Published::new(repo)); // before the lock: digests take a while
        self.repos().insert(published.repo.id.clone(), published);
    }

    pub(crate) fn remove(&self, id: &str) {
        self.repos().remove(id);
    }

    pub(crate) fn commit(&self, id: &str, revision: &str) -> Option<String> {
        self.repos().get(id)?.commit(revision).map(|commit| commit.id.to_owned())
    }

    fn hub(&self, request: &Request) -> Result<Response, Response> {
        let (id, wanted) = target::parse(&request.segments()).ok_or_else(refusal::no_such_page)?;
        let method = if matches!(wanted, Wanted::PathsInfo { .. }) { ["POST"; 2] } else { ["GET", "HEAD"] };
        if !method.contains(&request.method.as_str()) {
            return Err(refusal::method_not_allowed());
        }
        let visitor = Visitor::of(request, &self.tokens)?;
        let published = self.repo(&id, request, visitor)?;
        visitor.may_see(&published.repo, &wanted)?;

        let revision = match &wanted {
            Wanted::Refs => return Ok(info::refs(&published, request.query("include_prs").is_some())),
            Wanted::Info { revision }
            | Wanted::Tree { revision, .. }
            | Wanted::PathsInfo { revision }
            | Wanted::File { revision, .. }
            | Wanted::CachedFile { commit: revision, .. } => revision,
        };
        let commit = published.commit(revision).ok_or_else(|| refusal::revision_not_found(revision))?;
        let (path, from_cache) = match &wanted {
            Wanted::Info { .. } | Wanted::Refs => {
                return Ok(info::info(&published, commit, request.query("blobs").is_some()));
            }
            Wanted::Tree { folder, .. } => {
                return Ok(tree::tree(request, &self.endpoints[0], commit, folder, self.page_size));
            }
            Wanted::PathsInfo { .. } => return Ok(tree::paths_info(request, commit)),
            Wanted::File { path, .. } => (path, false),
            Wanted::CachedFile { path, .. } => (path, true),
        };
        let file = commit.files.get(path).ok_or_else(|| refusal::entry_not_found(commit.id))?;
        Ok(match file.kept {
            Kept::Plain if self.resolve_cache && !from_cache => resolve::cached(request, &id, commit, path, file),
            Kept::Plain => resolve::plain(commit, path, file),
            Kept::Lfs { .. } => {
                let location = self.endpoints[1].clone() + &second_host::sign(&self.urls, &id, path, &file.content);
                resolve::lfs(&location, commit, file)
            }
        })
    }

    /// The repository called `id`; a redirect as an error if that is a former id.
    fn repo(&self, id: &str, request: &Request, visitor: Visitor) -> Result<Arc<Published>, Response> {
        let repos = self.repos();
        if let Some(published) = repos.get(id) {
            return Ok(Arc::clone(published));
        }
        let renamed = repos.values().find(|published| published.repo.former_ids.iter().any(|former| former == id));
        Err(match renamed {
            Some(now) if !now.repo.private || visitor.has_access() => {
                Response::redirect(307, &request.target().replacen(id, &now.repo.id, 1))
            }
            _ => refusal::repo_not_found(visitor.has_token()),
        })
    }

    fn repos(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Published>>> {
        self.repos.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl server::Site for Site {
    fn subject(&self, host: Host, request: &Request) -> Option<Subject> {
        if host == Host::Cdn {
            return second_host::subject(&self.urls, request);
        }
        match target::parse(&request.segments())? {
            (repo, Wanted::File { path: file, .. } | Wanted::CachedFile { path: file, .. }) => {
                Some(Subject { repo, tag: None, file })
            }
            _ => None,
        }
    }

    fn answer(&self, host: Host, request: &Request) -> Response {
        if host == Host::Cdn {
            return second_host::answer(&self.urls, request);
        }
        self.hub(request).unwrap_or_else(|refusal| refusal)
    }

    fn error(&self, _: Host, status: u16) -> Response {
        refusal::of_status(status)
    }
}
