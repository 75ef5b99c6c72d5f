//! From a spec to everything that a load needs, without reading a weight: resolve → plan → fetch → adapt.

use std::{collections::BTreeSet, sync::Arc};

use llm_local_core::{
    Allowance, ArtifactRef, Error, FetchContext, InferenceBackend, LoadOptions, LoraAdapter, ModelSpec, ProgressEvent,
    Resolution, Result,
};
use llm_local_source_common::{
    store::Hold,
    transfer::{Files, Job},
};

use super::{
    Inner,
    fitting::{Planned, Purpose},
    identity::Identity,
    judge::{Base, Judged, Weights},
    locking::Proven,
    resolve::Pin,
    route::Route,
};
use crate::plan::Plan;

/// The refs of a spec, pinned.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) resolution: Resolution,
    pub(super) base: Pin,
    pub(super) adapters: Vec<Pin>,
}

/// Everything that a load needs.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) weights: Weights,
    pub(super) identity: Identity,
    /// What goes into the model: the adapters of the spec, or what they are combined into.
    pub(super) adapters: Vec<(Arc<LoraAdapter>, f32)>,
    /// What is let pass of each.
    pub(super) allow: Vec<BTreeSet<Allowance>>,
    pub(super) route: Route,
    pub(super) options: LoadOptions,
    pub(super) backend: Arc<dyn InferenceBackend>,
    /// Keeps the files from deletion.
    pub(super) holds: Vec<Hold>,
    /// What was held to the lock of the spec: it must be the same still once all was read. Nothing without a lock.
    pub(super) proven: Proven,
    /// What it takes.
    pub(super) memory: Planned,
}

impl Pinned {
    /// The base, then the adapters.
    pub(super) fn pins(&self) -> impl Iterator<Item = &Pin> {
        std::iter::once(&self.base).chain(&self.adapters)
    }

    /// As [`Pinned::pins`].
    pub(super) fn jobs(&self) -> Vec<Job> {
        self.pins().map(Pin::job).collect()
    }
}

impl Inner {
    /// What `spec` would do: resolve → plan. Where its files are wanted alone, a lack of memory is no error.
    pub(super) async fn plan(&self, spec: &ModelSpec, purpose: Purpose, cx: &FetchContext) -> Result<Plan> {
        let pinned = self.resolve(spec, cx).await?;
        let files = self.present(&pinned.jobs(), cx).await?;
        Ok(self.judge(spec, (&pinned, &files), purpose, cx).await?.plan)
    }

    /// Everything that a load of `spec` needs: resolve → plan → fetch → adapt. Of what is missing only heads are asked for
    /// until it is known that a backend can run the base, that the adapters fit it, and that there is memory for it.
    pub(super) async fn prepare(&self, spec: &ModelSpec, cx: &FetchContext, purpose: Purpose) -> Result<Prepared> {
        let pinned = self.resolve(spec, cx).await?;
        let jobs = pinned.jobs();
        // Held before it is looked for: what is there then stays there.
        let holds = self.hold(pinned.pins()).await?;
        let files = self.present(&jobs, cx).await?;
        // Before any of them is opened: what is opened then is what was held to the lock, or newer, which is seen.
        let proven = self.check_locked(spec, &jobs, &files).await?;
        let identity = |files: &Files| Identity::new(spec.id(), &pinned.base.manifest, files);
        // Before the base is opened, and compared then: what was opened is what this is of.
        let mut base = files[0].as_ref().map(identity).transpose()?;
        let mut judged = self.judge(spec, (&pinned, &files), purpose, cx).await?;
        let fetched = self.fetch_allowed(&jobs, cx).await?;
        let came = files.iter().zip(&fetched).map(|(before, now)| before.is_none().then(|| now.clone()));
        let proven = proven.and(self.check_locked(spec, &jobs, &came.collect::<Vec<_>>()).await?);
        if files.iter().any(Option::is_none) {
            let files: Vec<_> = fetched.into_iter().map(Some).collect();
            base = files[0].as_ref().map(identity).transpose()?;
            judged = self.judge(spec, (&pinned, &files), purpose, cx).await?;
        }
        let (Judged { plan, base: Some((Base::Here(weights), chosen, memory)), adapters, route }, Some(identity)) =
            (judged, base)
        else {
            return Err(Error::load(spec.id(), "its files are not on this machine after they were fetched"));
        };
        let (adapters, allow) = adapters.into_model(&weights.info).await?;
        identity.check_unchanged()?;
        for pin in pinned.pins() {
            self.note_selected(pin).await;
        }
        let (options, backend) = (chosen.options, chosen.resolution.backend.backend);
        Ok(Prepared { plan, weights, identity, adapters, allow, route, options, backend, holds, proven, memory })
    }

    /// The files of each of `jobs` that is all here, if the policy allows what came out of archives.
    async fn present(&self, jobs: &[Job], cx: &FetchContext) -> Result<Vec<Option<Files>>> {
        let mut files = Vec::new();
        for job in jobs {
            let here = self.transfer.present(job, cx).await?;
            if let Some(here) = &here {
                self.policy.check_unpacked(&job.manifest, here)?;
            }
            files.push(here);
        }
        Ok(files)
    }
}

/// Tells that `reference` is being resolved.
pub(super) fn resolving(reference: &ArtifactRef, cx: &FetchContext) {
    if let Some(progress) = &cx.progress {
        progress.on_progress(&ProgressEvent::resolving(reference.clone()));
    }
}
