//! Fetching, within what the policy allows of what comes out of archives.

use llm_local_core::{FetchContext, Result, Want};
use llm_local_source_common::{
    store::Hold,
    transfer::{Files, Job},
};

use super::Inner;
use crate::blocking::blocking;

impl Inner {
    /// Makes every file of `jobs` present, which `holds` keep there. What came out of an archive and is refused is deleted,
    /// unless it was here before.
    ///
    /// # Errors
    /// Those of [`Inner::make_room`] and of the transfer; [`llm_local_core::Error::NotAllowed`] for what is refused once it
    /// is unpacked; within [`llm_local_core::Error::AdapterMergeFailed`] for an adapter.
    pub(super) async fn fetch_allowed(
        &self,
        jobs: &[Job],
        holds: Vec<Hold>,
        cx: &FetchContext,
    ) -> Result<(Vec<Files>, Vec<Hold>)> {
        self.make_room(jobs, cx).await?;
        let mut new = Vec::new();
        for job in jobs {
            new.push(self.is_new(job).await?);
        }
        let fetched = match self.transfer.fetch(jobs.to_vec(), cx).await {
            Err(error) => return Err(self.of_adapters(error, jobs, cx).await),
            fetched => fetched?,
        };
        for ((job, files), new) in jobs.iter().zip(&fetched).zip(new) {
            if let Err(error) = self.policy.check_unpacked(&job.manifest, files) {
                drop(holds);
                if new {
                    self.delete_refused(job).await;
                }
                return Err(error);
            }
        }
        Ok((fetched, holds))
    }

    /// Whether nothing is kept or known of what is in `job`, and it is judged once it is unpacked.
    async fn is_new(&self, job: &Job) -> Result<bool> {
        if job.manifest.unpack.is_empty() {
            return Ok(false);
        }
        let (store, manifest) = (self.transfer.store().clone(), job.manifest.clone());
        let is_known = move || {
            let (reference, want) = (&manifest.reference, manifest.want);
            let kept = store.kept(reference, want)?.iter().any(|kept| kept.manifest.revision == manifest.revision);
            // To delete it would forget what the files of the version were, too.
            let remembered = store.remembered(reference, want)?;
            Ok(kept || manifest.version.is_some_and(|version| remembered.contains(&version)))
        };
        let known = blocking("store", is_known).await;
        match job.manifest.want {
            Want::Adapter => known.map_err(|e| e.into_adapter(&job.manifest.reference)),
            _ => known,
        }
        .map(|known| !known)
    }

    /// Deletes what was refused. That it cannot be is not what is wrong.
    async fn delete_refused(&self, job: &Job) {
        let (store, manifest) = (self.transfer.store().clone(), job.manifest.clone());
        let delete = move || store.delete_kept(&manifest.reference, manifest.want, &manifest.revision).map(drop);
        if let Err(error) = blocking("store", delete).await {
            let reference = &job.manifest.reference;
            tracing::warn!(%reference, %error, "what the policy refused is still there, and is not used");
        }
    }
}
