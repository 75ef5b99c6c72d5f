//! Who may see what.

use std::collections::BTreeMap;

use super::{super::repo::Repo, refusal, target::Wanted};
use crate::server::{Request, Response};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visitor {
    Anonymous,
    WithToken { access: bool },
}

impl Visitor {
    /// Who sends `request`, by the tokens that are known and whether they have access.
    pub(super) fn of(request: &Request, tokens: &BTreeMap<String, bool>) -> Result<Self, Response> {
        let Some(authorization) = request.header("authorization") else { return Ok(Self::Anonymous) };
        let access = authorization.strip_prefix("Bearer ").and_then(|token| tokens.get(token.trim()));
        access.map(|access| Self::WithToken { access: *access }).ok_or_else(refusal::invalid_credentials)
    }

    pub(super) fn has_token(self) -> bool {
        self != Self::Anonymous
    }

    pub(super) fn has_access(self) -> bool {
        self == Self::WithToken { access: true }
    }

    /// Whether the visitor may have `wanted` of `repo`.
    pub(super) fn may_see(self, repo: &Repo, wanted: &Wanted) -> Result<(), Response> {
        if repo.private && !self.has_access() {
            return Err(refusal::repo_not_found(self.has_token()));
        }
        if repo.disabled {
            return Err(refusal::disabled());
        }
        let is_file = matches!(wanted, Wanted::File { .. } | Wanted::CachedFile { .. });
        if repo.gated.is_some() && is_file && !self.has_access() {
            return Err(refusal::gated(&repo.id, self.has_token()));
        }
        Ok(())
    }
}
