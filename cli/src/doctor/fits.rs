//! Which models fit.

use llm_local::{ArtifactRef, Engine, Error, ModelSpec, core::Want, memory::MemoryStatus, store::MERGED_SCHEME};

use super::found::Known;
use crate::args;

/// The models that were asked for, then those that are kept.
pub(super) struct Models {
    pub(super) models: Vec<Fit>,
    /// Why it is not known which are kept.
    pub(super) unlisted: Option<String>,
}

/// Whether a model fits.
pub(super) struct Fit {
    /// Its ref.
    pub(super) model: String,
    /// Whether it was asked for by name.
    pub(super) asked: bool,
    pub(super) verdict: Verdict,
}

/// Whether there is memory for a model, in bytes.
pub(super) enum Verdict {
    /// There is.
    Fits { required: u64, room: Option<u64>, context_length: usize, reason: String },
    /// There is not.
    Short(Short),
    /// It cannot be told, or cannot be run for another reason.
    Unknown(String),
}

/// What is missing.
pub(super) struct Short {
    /// With the context that the model would have, where that is known.
    pub(super) wanted: Option<u64>,
    /// With the shortest one that is chosen by itself.
    pub(super) required: u64,
    pub(super) available: u64,
    /// What models may take on its device, whoever has it now.
    pub(super) budget: Option<u64>,
    /// The longest context that would fit if it were asked for.
    pub(super) largest_context: Option<usize>,
}

impl Short {
    /// Whether it would fit if nothing else took memory.
    pub(super) fn fits_alone(&self) -> bool {
        self.budget.is_some_and(|budget| self.required <= budget)
    }
}

/// Judges the models at `references` by the first engine, and all that are kept by the second.
pub(super) async fn all((engine, offline): (&Engine, &Engine), status: &MemoryStatus, references: &[String]) -> Models {
    let mut models = Vec::new();
    for text in references {
        let (model, verdict) = match args::model(text) {
            Ok(reference) => (reference.to_string(), judge(engine, status, &reference).await),
            Err(error) => (text.clone(), Verdict::Unknown(error.to_string())),
        };
        models.push(Fit { model, asked: true, verdict });
    }
    let (kept, unlisted) = match kept(offline) {
        Ok(kept) => (kept, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    for reference in kept {
        let model = reference.to_string();
        if models.iter().all(|other| other.model != model) {
            let verdict = judge(offline, status, &reference).await;
            models.push(Fit { model, asked: false, verdict });
        }
    }
    Models { models, unlisted }
}

/// The models that are kept, each once. What was merged of others is not a model that can be asked for.
fn kept(engine: &Engine) -> Known<Vec<ArtifactRef>> {
    let kept = engine.store().list().map_err(|error| error.to_string())?.artifacts.into_iter();
    let models = kept.filter(|kept| kept.want == Want::Model && kept.reference.scheme() != MERGED_SCHEME);
    let mut references: Vec<_> = models.map(|model| model.reference).collect();
    references.dedup();
    Ok(references)
}

async fn judge(engine: &Engine, status: &MemoryStatus, reference: &ArtifactRef) -> Verdict {
    let spec = ModelSpec::new(reference.clone());
    match engine.plan(&spec).await {
        Ok(plan) => match plan.model {
            Some(model) => Verdict::Fits {
                required: model.required,
                room: model.room,
                context_length: model.context_length,
                reason: model.context_reason,
            },
            None => Verdict::Unknown("nothing of it is on this machine, and its headers cannot be asked for".into()),
        },
        Err(Error::InsufficientMemory { required, available, largest_context, .. }) => {
            let plan = engine.estimate(&spec).await.ok();
            let device = plan.as_ref().and_then(|plan| {
                status.devices.iter().find(|d| d.backend == plan.backend && d.device.id == plan.device.id)
            });
            Verdict::Short(Short {
                wanted: plan.as_ref().and_then(|plan| plan.model.as_ref()).map(|model| model.required),
                required,
                available,
                budget: device.and_then(|device| device.budget),
                largest_context,
            })
        }
        Err(error) => Verdict::Unknown(error.to_string()),
    }
}
