//! What is set before the start.

use super::{Access, GitHub, Repository, routes::Options};

/// What a server is started with.
#[derive(Debug, Clone)]
#[must_use = "a server runs once it is started"]
pub struct GitHubBuilder {
    pub(super) repositories: Vec<Repository>,
    pub(super) options: Options,
}

impl GitHubBuilder {
    /// Adds a repository.
    pub fn with_repository(mut self, repository: Repository) -> Self {
        self.repositories.push(repository);
        self
    }

    /// Adds a token. One that was not added is refused, with `401 Bad credentials`.
    pub fn with_token(mut self, token: impl Into<String>, access: Access) -> Self {
        self.options.tokens.insert(token.into(), access);
        self
    }

    /// Sets how many requests the API answers without a token, and with each of the tokens. The default is 60 and 5000,
    /// as the real one has them. Nothing refills by the clock: see [`GitHub::refill_rate_limit`].
    pub fn with_rate_limit(mut self, anonymous: u64, with_token: u64) -> Self {
        self.options.rate_limit = (anonymous, with_token);
        self
    }

    /// Sets the status of an answer where no request is left: 403, the default, or 429.
    pub fn with_rate_limit_status(mut self, status: u16) -> Self {
        self.options.rate_limit_status = status;
        self
    }

    /// Sets whether the API sends the bytes of an asset itself, with 200, in place of a redirect to the object store:
    /// clients are to be ready for both. It is off by default.
    pub fn with_assets_from_the_api(mut self, on: bool) -> Self {
        self.options.assets_from_the_api = on;
        self
    }

    /// Sets whether downloads are counted in `download_count`. It is off by default: the real one counts them some time
    /// later. The count is in the JSON of the release, so its ETag changes with each download.
    pub fn with_download_counts(mut self, on: bool) -> Self {
        self.options.download_counts = on;
        self
    }

    /// Starts it, on three free ports of 127.0.0.1. The digests of all assets are computed here.
    ///
    /// # Panics
    /// If no port can be bound, or a file on the disk whose digest is to be told cannot be read.
    pub fn start(self) -> GitHub {
        GitHub::serving(self.repositories, self.options)
    }
}
