//! Who may see what.

use std::collections::BTreeMap;

use super::{
    super::{
        Access,
        published::{PublishedRelease, PublishedRepository},
    },
    refusal,
};
use crate::server::{Request, Response};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visitor<'a> {
    Anonymous,
    WithToken { token: &'a str, access: Access },
}

impl<'a> Visitor<'a> {
    /// Who sends `request`, by the tokens that are known. Both words for the scheme are good.
    pub(super) fn of(request: &'a Request, tokens: &BTreeMap<String, Access>) -> Result<Self, Response> {
        let Some(authorization) = request.header("authorization") else { return Ok(Self::Anonymous) };
        let (scheme, token) = authorization.split_once(' ').unwrap_or_default();
        let token = token.trim();
        let is_token = ["bearer", "token"].contains(&scheme.to_ascii_lowercase().as_str());
        let access = tokens.get(token).filter(|_| is_token).ok_or_else(refusal::bad_credentials)?;
        Ok(Self::WithToken { token, access: *access })
    }

    pub(super) fn token(self) -> Option<&'a str> {
        match self {
            Self::Anonymous => None,
            Self::WithToken { token, .. } => Some(token),
        }
    }

    /// Whether the visitor may know of `repository`.
    pub(super) fn may_read(self, repository: &PublishedRepository) -> bool {
        !repository.private || self.has(Access::Read)
    }

    /// Whether the visitor may know of `release`, in a repository that the visitor knows of.
    pub(super) fn may_see(self, release: &PublishedRelease) -> bool {
        !release.release.draft || self.has(Access::Push)
    }

    fn has(self, needed: Access) -> bool {
        matches!(self, Self::WithToken { access, .. } if access >= needed)
    }
}
