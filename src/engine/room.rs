//! The store, as the way of a spec needs it: what is used stays, and what comes has room.

use llm_local_core::{Error, FetchContext, Result, Want};
use llm_local_source_common::{store::Hold, transfer::Job};

use super::{Inner, Pin};
use crate::blocking::blocking;

impl Inner {
    /// Holds what is in the store or comes into it. A path's files are their owner's.
    pub(crate) async fn hold(&self, pins: impl IntoIterator<Item = &Pin>) -> Result<Vec<Hold>> {
        let store = self.transfer.store().clone();
        let stored: Vec<_> = pins.into_iter().filter(|pin| !pin.is_where_it_lies()).map(Pin::job).collect();
        if stored.is_empty() {
            return Ok(Vec::new());
        }
        let hold = move |Job { source, manifest, .. }: &Job| {
            let held = source.placement(manifest).and_then(|placement| store.hold(manifest, placement.as_ref()));
            match manifest.want {
                Want::Adapter => held.map_err(|e| e.into_adapter(&manifest.reference)),
                _ => held,
            }
        };
        blocking("store", move || stored.iter().map(hold).collect()).await
    }

    /// `error`, as the adapter's that it is about: where there is too little room, and of what is to come all is adapters'.
    pub(crate) async fn of_adapters(&self, error: Error, jobs: &[Job], cx: &FetchContext) -> Error {
        if !matches!(error, Error::InsufficientStorage { .. }) {
            return error;
        }
        let mut adapter = None;
        for job in jobs {
            // Who cannot tell what is missing has nothing to say of room either.
            let Ok(missing) = self.transfer.unpublished_bytes(std::slice::from_ref(job), cx).await else {
                return error;
            };
            match job.manifest.want {
                _ if missing == 0 => {}
                Want::Adapter => adapter = adapter.or(Some(&job.manifest.reference)),
                _ => return error,
            }
        }
        match adapter {
            Some(reference) => error.into_adapter(reference),
            None => error,
        }
    }

    /// Evicts what was not used for longest, if the quota leaves too little room for what is missing of `jobs`. They are
    /// held, so nothing of them goes.
    ///
    /// # Errors
    /// [`Error::InsufficientStorage`] and the others of [`crate::Store::evict`]; within [`Error::AdapterMergeFailed`] if only
    /// adapters need the room.
    pub(crate) async fn make_room(&self, jobs: &[Job], cx: &FetchContext) -> Result<()> {
        match self.make_room_for(jobs, cx).await {
            Err(error) => Err(self.of_adapters(error, jobs, cx).await),
            Ok(()) => Ok(()),
        }
    }

    async fn make_room_for(&self, jobs: &[Job], cx: &FetchContext) -> Result<()> {
        let Some(quota) = self.quota else { return Ok(()) };
        let missing = self.transfer.unpublished_bytes(jobs, cx).await?;
        // Offline nothing can come.
        if missing == 0 || cx.offline {
            return Ok(());
        }
        let store = self.transfer.store().clone();
        blocking("store", move || {
            let deleted = store.evict(quota, missing)?;
            if deleted.files > 0 {
                tracing::info!(artifacts = deleted.artifacts, bytes = deleted.bytes, "evicted to keep the quota");
            }
            Ok(())
        })
        .await
    }
}
