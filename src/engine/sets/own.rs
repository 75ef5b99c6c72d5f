//! The set that a model has where a request names none.

use std::sync::Arc;

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use llm_local_core::{Result, UsedAdapter};

/// A replacement of a model's own set, on its way through the line of requests.
type Change = Shared<BoxFuture<'static, Result<()>>>;

/// Behind the digest of a set that is merged into tensors which were quantized again: what is computed with those is not what
/// the same set computes otherwise.
const REQUANTIZED: &str = "+requantized";

/// What is in a set of adapters.
pub(crate) struct OwnSet {
    used: Vec<UsedAdapter>,
    /// As [`llm_local_core::AdapterSet::digest`], with [`REQUANTIZED`] behind it where that holds.
    digest: String,
    /// The tensors that it touches, of a set that is in the weights.
    touched: Vec<String>,
    /// What made it the model's own, and what was its own before and still is if that fails. A request that came behind the
    /// change in line runs with the one or the other, which is known before the request begins.
    change: Option<(Change, Arc<Self>)>,
}

impl OwnSet {
    /// The set of `used`, with this digest.
    pub(super) fn new(used: Vec<UsedAdapter>, digest: String) -> Self {
        Self { used, digest, touched: Vec::new(), change: None }
    }

    /// This set, merged into tensors that were quantized again.
    pub(super) fn requantized(mut self) -> Self {
        self.digest.push_str(REQUANTIZED);
        self
    }

    /// Whether it is made of the same adapters, however they got into the weights.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        let adapters = |digest| str::strip_suffix(digest, REQUANTIZED).unwrap_or(digest);
        adapters(&self.digest) == adapters(&other.digest)
    }

    /// This set, which is in the weights as `other` is.
    pub(super) fn as_is(&self, other: &Self) -> Self {
        Self { digest: other.digest.clone(), ..self.touching(other.touched.clone()) }
    }

    /// This set, which touches these tensors of the weights that it is merged into.
    pub(super) fn touching(&self, touched: Vec<String>) -> Self {
        Self { used: self.used.clone(), digest: self.digest.clone(), touched, change: self.change.clone() }
    }

    /// This set, once `change` makes it the model's own instead of `before`.
    pub(super) fn after(&self, change: Change, before: &Arc<Self>) -> Self {
        let change = Some((change, before.known()));
        Self { change, ..self.touching(self.touched.clone()) }
    }

    /// It, or what there is instead since it could not be set. It waits until that is known.
    pub(crate) async fn settled(self: &Arc<Self>) -> Arc<Self> {
        let mut own = self.clone();
        while let Some((change, before)) = &own.change {
            if change.clone().await.is_ok() {
                break;
            }
            let before = before.clone();
            own = before;
        }
        own
    }

    /// As [`OwnSet::settled`], as far as it is known now, and without what is over.
    fn known(self: &Arc<Self>) -> Arc<Self> {
        match &self.change {
            None => self.clone(),
            Some((change, before)) => match change.clone().now_or_never() {
                None => self.clone(),
                Some(Ok(())) => Arc::new(Self { change: None, ..self.touching(self.touched.clone()) }),
                Some(Err(_)) => before.known(),
            },
        }
    }

    /// Whether it is known already that there are no adapters in it.
    pub(crate) fn is_surely_empty(&self) -> bool {
        self.change.is_none() && self.used.is_empty()
    }

    /// The adapters, as statistics have them. Of a set that [is settled](OwnSet::settled).
    pub(crate) fn used(&self) -> &[UsedAdapter] {
        &self.used
    }

    /// The tensors that it touches, if it is merged into weights. Of a set that [is settled](OwnSet::settled).
    pub(super) fn touched(&self) -> &[String] {
        &self.touched
    }

    /// As [`crate::ModelDigest::adapters`]. Of a set that [is settled](OwnSet::settled).
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }
}
