//! The index of a sharded model. Where the list of files leaves a doubt which of them are needed, it is read before the
//! plan is made. It is asked for once, whoever wants it first: what was verified is kept, and is what the engine gets.

use std::path::PathBuf;

use bytes::Bytes;
use llm_local_core::{Error, ManifestFile, Result};
use llm_local_source_common::{
    disk::digest_bytes,
    network::{Failure, retrying},
};
use llm_local_weights::ShardIndex;

use crate::{api::Api, cache::RepoCache, reference::HubRef, refusal::Asked};

/// The index of a model at one commit.
pub(crate) struct Index<'a> {
    pub(crate) asked: &'a Asked,
    /// The repository, by its name of today.
    pub(crate) repo: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) at: &'a HubRef,
    /// Its entry, with the path below the folder of `at`.
    pub(crate) file: &'a ManifestFile,
}

impl Index<'_> {
    /// It, from the cache if it is there, else from the Hub, and then it is kept.
    ///
    /// # Errors
    /// As [`Index::fetch`]; [`Error::LoadFailed`] and [`Error::UnsupportedModelFormat`] for an index that cannot be used.
    pub(crate) async fn read(&self, api: &Api, cache: &RepoCache) -> Result<ShardIndex> {
        let path = match cache.index(self.commit, self.at, self.file) {
            Some((path, _)) => path,
            None => {
                let content = retrying(api.network(), &self.asked.reference, || self.fetch(api)).await?;
                self.keep(cache, &content)?
            }
        };
        ShardIndex::read(&path)
    }

    /// Its bytes, from the cache if it is there, else from the Hub, and then it is kept if it can be. The engine, which wants
    /// them, tries again.
    ///
    /// # Errors
    /// As [`Index::fetch`].
    pub(crate) async fn bytes(&self, api: &Api, cache: &RepoCache) -> Result<Bytes> {
        if let Some((_, content)) = cache.index(self.commit, self.at, self.file) {
            return Ok(content.into());
        }
        let content = self.fetch(api).await.map_err(|failure| failure.error)?;
        if let Err(error) = self.keep(cache, &content) {
            tracing::warn!(%error, repo = self.repo, "the index could not be kept in the cache, and is asked for again");
        }
        Ok(content.into())
    }

    /// It, as the Hub has it, verified.
    ///
    /// # Errors
    /// What the Hub says when it refuses; [`Error::LoadFailed`] for a size that none has, and [`Error::IntegrityFailed`]
    /// if it twice has other bytes than its list promises.
    async fn fetch(&self, api: &Api) -> Result<Vec<u8>, Failure> {
        let path = self.at.in_repo(&self.file.path);
        if self.file.size > ShardIndex::LARGEST {
            let (size, most) = (self.file.size, ShardIndex::LARGEST);
            let reason = format!("its index `{path}` has {size} bytes; expected at most {most}");
            return Err(Error::load(&self.asked.reference, reason).into());
        }
        let mut again = false;
        loop {
            let content = api.file(self.asked, self.repo, self.commit, &path, self.file.size as usize).await?;
            match self.verify(&content) {
                Err(Error::IntegrityFailed { .. }) if !again => again = true,
                verified => return Ok(verified.map(|()| content)?),
            }
        }
    }

    fn keep(&self, cache: &RepoCache, content: &[u8]) -> Result<PathBuf> {
        cache.write_index(self.commit, self.at, self.file, content)
    }

    /// Checks that `content` is what the Hub's list says of it.
    fn verify(&self, content: &[u8]) -> Result<()> {
        let what = || format!("`{}` of {}", self.at.in_repo(&self.file.path), self.asked.reference);
        let Some(expected) = self.file.digest else {
            return Err(Error::unsupported(what(), "the Hub's list has no digest of it"));
        };
        let found = digest_bytes(content, Some(&expected))?;
        if found == expected {
            return Ok(());
        }
        Err(Error::IntegrityFailed { what: what(), expected: expected.to_string(), found: found.to_string() })
    }
}
