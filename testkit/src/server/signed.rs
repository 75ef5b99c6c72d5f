//! Signed URLs, which are good for some requests.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Content, Subject, digest};

/// The URLs that were signed.
#[derive(Debug, Default)]
pub(crate) struct SignedUrls(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    issued: BTreeMap<String, (Signed, Option<usize>)>,
    uses: Option<usize>,
}

/// What a signed URL leads to.
#[derive(Debug, Clone)]
pub(crate) struct Signed {
    pub(crate) subject: Subject,
    pub(crate) content: Content,
    path: String,
}

/// Why a URL leads to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsigned {
    /// The signature is not there, or that of another URL.
    Mismatch,
    Expired,
}

impl SignedUrls {
    /// A signature for the URL with this path, which leads to `content`.
    pub(crate) fn sign(&self, path: &str, subject: Subject, content: &Content) -> String {
        let mut state = self.state();
        let signature = digest::sha1_of([path, &state.issued.len().to_string()]);
        let signed = Signed { subject, content: content.clone(), path: path.to_owned() };
        let uses = state.uses;
        state.issued.insert(signature.clone(), (signed, uses));
        signature
    }

    /// Uses the URL with this path and signature once.
    pub(crate) fn redeem(&self, path: &str, signature: Option<String>) -> Result<Signed, Unsigned> {
        let mut state = self.state();
        let issued = signature.and_then(|signature| state.issued.get_mut(&signature));
        let (signed, uses_left) = issued.filter(|(signed, _)| signed.path == path).ok_or(Unsigned::Mismatch)?;
        match uses_left {
            Some(0) => return Err(Unsigned::Expired),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(signed.clone())
    }

    /// The file that the URL with this signature leads to, expired or not.
    pub(crate) fn subject(&self, signature: &str) -> Option<Subject> {
        self.state().issued.get(signature).map(|(signed, _)| signed.subject.clone())
    }

    /// Sets for how many requests each URL that is signed from now on is good.
    pub(super) fn set_uses(&self, uses: Option<usize>) {
        self.state().uses = uses;
    }

    /// Lets all of them expire.
    pub(super) fn expire(&self) {
        self.state().issued.values_mut().for_each(|(_, uses_left)| *uses_left = Some(0));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
