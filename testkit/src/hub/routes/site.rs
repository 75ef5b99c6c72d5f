//! Repositories, tokens and signed URLs, and which route answers what.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    super::{
        Host, Repo,
        repo::{Kept, Published},
        server::{self, Request, Response},
    },
    access::Visitor,
    info, refusal, resolve,
    second_host::SignedUrls,
    target::{self, Wanted},
    tree,
};

/// Both hosts of a Hub.
#[derive(Debug)]
pub(crate) struct Site {
    endpoints: [String; 2],
    tokens: BTreeMap<String, bool>,
    page_size: usize,
    resolve_cache: bool,
    repos: Mutex<BTreeMap<String, Arc<Published>>>,
    urls: Mutex<SignedUrls>,
}

impl Site {
    /// A site at the addresses of the Hub and the second host, with tokens and whether they have access.
    pub(crate) fn new(
        addresses: [SocketAddr; 2],
        tokens: Vec<(String, bool)>,
        page_size: usize,
        resolve_cache: bool,
    ) -> Self {
        Self {
            endpoints: addresses.map(|address| format!("http://{address}")),
            tokens: tokens.into_iter().collect(),
            page_size,
            resolve_cache,
            repos: Mutex::default(),
            urls: Mutex::default(),
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

    pub(crate) fn set_url_uses(&self, uses: Option<usize>) {
        self.urls().uses = uses;
    }

    pub(crate) fn expire_urls(&self) {
        self.urls().expire();
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
                let location = self.endpoints[1].clone() + &self.urls().sign(&id, path, &file.content);
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

    fn urls(&self) -> MutexGuard<'_, SignedUrls> {
        self.urls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl server::Site for Site {
    fn file(&self, host: Host, request: &Request) -> Option<(String, String)> {
        match host {
            Host::Hub => match target::parse(&request.segments())? {
                (id, Wanted::File { path, .. } | Wanted::CachedFile { path, .. }) => Some((id, path)),
                _ => None,
            },
            Host::Cdn => self.urls().file(request),
        }
    }

    fn answer(&self, host: Host, request: &Request) -> Response {
        match host {
            Host::Hub => self.hub(request).unwrap_or_else(|refusal| refusal),
            Host::Cdn => self.urls().answer(request),
        }
    }
}
