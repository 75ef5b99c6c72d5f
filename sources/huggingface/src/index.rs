//! The index of a sharded model. It is read before the plan is made, since it says which files are needed.

use llm_local_core::{Digest, Error, ManifestFile, Result};
use llm_local_weights::ShardIndex;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::{
    api::{Api, Info},
    cache::RepoCache,
    reference::HubRef,
    refusal::Asked,
};

/// Bytes that an index may have; that of a model with 100,000 tensors has about 9 MB.
const LIMIT: usize = 64 << 20;

/// The index `file` of the commit that `info` names: from the cache if it is there, else from the Hub, and then it is
/// kept.
///
/// # Errors
/// What the Hub says when it refuses; [`Error::IntegrityFailed`] for other bytes than its list promises,
/// [`Error::LoadFailed`] and [`Error::UnsupportedModelFormat`] for an index that cannot be used.
pub(crate) async fn read(
    api: &Api,
    cache: &RepoCache,
    asked: &Asked,
    info: &Info,
    at: &HubRef,
    file: &ManifestFile,
) -> Result<ShardIndex> {
    if let Some(path) = cache.index(&info.commit, at, file) {
        return ShardIndex::read(&path);
    }
    let path = at.in_repo(&file.path);
    let size = usize::try_from(file.size).ok().filter(|size| *size <= LIMIT).ok_or_else(|| {
        let reason = format!("its index `{path}` has {} bytes; expected at most {LIMIT}", file.size);
        Error::load(&asked.reference, reason)
    })?;
    let content = api.file(asked, &info.repo, &info.commit, &path, size).await?;
    verify(&content, file, || format!("`{path}` of {}", asked.reference))?;
    ShardIndex::read(&cache.write_index(&info.commit, at, file, &content)?)
}

/// Checks that `content` is what the Hub's list says of `file`.
fn verify(content: &[u8], file: &ManifestFile, what: impl FnOnce() -> String) -> Result<()> {
    let (expected, found) = match file.digest {
        Some(expected @ Digest::Sha256(_)) => (expected, Digest::Sha256(Sha256::digest(content).into())),
        Some(expected @ Digest::GitSha1(_)) => {
            let blob = Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content);
            (expected, Digest::GitSha1(blob.finalize().into()))
        }
        _ => return Err(Error::unsupported(what(), "the Hub's list has no digest of it that is known here")),
    };
    if found == expected {
        return Ok(());
    }
    Err(Error::IntegrityFailed { what: what(), expected: expected.to_string(), found: found.to_string() })
}
