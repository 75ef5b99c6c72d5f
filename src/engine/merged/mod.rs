//! Results of merges, kept in the store ([`EngineBuilder::keep_merged`](super::EngineBuilder::keep_merged)): the next load
//! of the same adapters on the same base reads them instead of merging again.
//!
//! | module | what it holds |
//! |---|---|
//! | `key` | what a result depends on |
//! | `keep` | a merge that is written down while a backend reads it |
//! | `kept` | a merge whose tensors are read from what was kept |
//!
//! Only tensors that a merge gives as floats are kept, each in the type in which the backend asked for it; all others, and
//! those that it asks for in another type, are computed or come from the base.

mod keep;
mod kept;
mod key;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use llm_local_core::{Encoding, Error, FloatType, Result, TensorEntry, TensorSource};
use llm_local_source_common::store::{Hold, Store};

pub(super) use self::key::KeyOfMerge;
use self::{keep::Writing, kept::Kept};
use super::{Identity, Inner};
use crate::{
    blocking::{Wanted, blocking, blocking_while_wanted},
    lora::MergedSource,
};

/// What is left to do for a result once a backend has read the tensors.
pub(super) enum Keeping {
    /// It was kept before, and is in use.
    Kept(Hold),
    /// It is being written.
    Writing(Arc<Writing>, Option<u64>),
}

impl Inner {
    /// The tensors of `merged`: from what is kept under `key`, or else computed while they are read, and then kept. What goes
    /// wrong with that is logged, and the merge goes on without.
    pub(super) async fn merged(
        &self,
        key: Option<KeyOfMerge>,
        merged: MergedSource,
    ) -> Result<(Arc<dyn TensorSource>, Option<Keeping>)> {
        let Some(key) = key else { return Ok((Arc::new(merged), None)) };
        let (store, quota) = (self.transfer.store().clone(), self.quota);
        blocking_while_wanted("merged", move |wanted| open(&store, quota, key, merged, wanted)).await
    }
}

fn open(
    store: &Store,
    quota: Option<u64>,
    KeyOfMerge { key, base, is_locked, float }: KeyOfMerge,
    merged: MergedSource,
    wanted: &Wanted,
) -> Result<(Arc<dyn TensorSource>, Option<Keeping>)> {
    if let Some((kept, hold)) = kept::find(store, &key, &merged, is_locked.then_some(wanted))? {
        return Ok((Arc::new(Kept { merged, kept }), Some(Keeping::Kept(hold))));
    }
    match store.begin_merge(&key, bytes(&merged, float), quota) {
        Ok(Some(writer)) => {
            let writing = Arc::new(Writing::new(merged, writer, key.reference().to_string(), base));
            Ok((writing.clone(), Some(Keeping::Writing(writing, quota))))
        }
        Ok(None) => {
            tracing::debug!(result = %key.reference(), "another load keeps this merge");
            Ok((Arc::new(merged), None))
        }
        Err(Error::Cancelled) => Err(Error::Cancelled),
        Err(error) => {
            not_kept(&key.reference().to_string(), &error);
            Ok((Arc::new(merged), None))
        }
    }
}

/// How many bytes a merge computes, whose tensors are asked for as `float`, or else as they are stored.
fn bytes(merged: &MergedSource, float: Option<FloatType>) -> u64 {
    let of = |(name, shape): (&str, &[usize])| {
        let encoding = float.map(Encoding::Float).or_else(|| Some(merged.entry(name)?.encoding))?;
        TensorEntry::new(name, shape.to_vec(), encoding).stored_bytes()
    };
    computed(merged).filter_map(of).map(|bytes| bytes as u64).sum()
}

impl Keeping {
    /// Publishes a result that was written, if the base, which `base` tells, is what it was. Gives what keeps it from
    /// deletion, if it is kept.
    pub(super) async fn finish(self, base: &Identity) -> Option<Hold> {
        let (writing, quota) = match self {
            Self::Kept(hold) => return Some(hold),
            Self::Writing(writing, quota) => (writing, quota),
        };
        let name = writing.name().to_owned();
        // The first also compares what the second leaves out, being written down: the device.
        let known = base.check_unchanged().and_then(|()| base.known_now());
        let kept = blocking("merged", move || writing.finish(known?, quota)).await;
        kept.unwrap_or_else(|error| {
            not_kept(&name, &error);
            None
        })
    }
}

/// The names of the tensors that a merge computes as floats, with their shapes.
fn computed(merged: &MergedSource) -> impl Iterator<Item = (&str, &[usize])> {
    let changed = merged.report().touched.iter().filter(|touched| !touched.adapters.is_empty());
    changed.filter_map(|touched| {
        let entry = merged.entry(&touched.name)?;
        matches!(entry.encoding, Encoding::Float(_)).then_some((entry.name.as_str(), entry.shape.as_slice()))
    })
}

fn not_kept(result: &str, error: &Error) {
    tracing::warn!(result, %error, "the result of this merge is not kept, and the next load merges again");
}
