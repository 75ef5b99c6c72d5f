//! Fetching, within what the policy allows of what comes out of archives.

use llm_local_core::{FetchContext, Result};
use llm_local_source_common::transfer::{Files, Job};

use super::Inner;

impl Inner {
    /// Makes every file of `jobs` present; somebody holds them. What comes out of an archive now and is refused is not kept
    /// ([`Transfer::with_check`](llm_local_source_common::transfer::Transfer::with_check)); what was here before stays.
    ///
    /// # Errors
    /// Those of [`Inner::make_room`] and of the transfer; [`llm_local_core::Error::NotAllowed`] for what is refused once it
    /// is unpacked; within [`llm_local_core::Error::AdapterMergeFailed`] for an adapter.
    pub(super) async fn fetch_allowed(&self, jobs: &[Job], cx: &FetchContext) -> Result<Vec<Files>> {
        self.make_room(jobs, cx).await?;
        let fetched = match self.transfer.fetch(jobs.to_vec(), cx).await {
            Err(error) => return Err(self.of_adapters(error, jobs, cx).await),
            Ok(fetched) => fetched,
        };
        for (job, files) in jobs.iter().zip(&fetched) {
            self.policy.check_unpacked(&job.manifest, files)?;
        }
        Ok(fetched)
    }
}
