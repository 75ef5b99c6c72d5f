//! Whether a spec can be run: decided by the files that are here, and by the heads of those that are not.

use std::sync::Arc;

use llm_local_core::{Error, FetchContext, ModelFormat, ModelInfo, ModelSpec, Result, TensorSource, TextFiles};
use llm_local_source_common::transfer::Files;
use llm_local_weights::Checkpoint;

use super::{
    Inner, Pin,
    choose::Chosen,
    fitting::{Adapted, Planned, Purpose},
    prepare::Pinned,
    route::Route,
    together::{Known, Together},
};
use crate::{
    blocking::blocking,
    lora::{AdapterOutline, ReadOptions},
    plan::Plan,
};

/// What is known of a spec that can be run, as far as that can be told yet.
pub(super) struct Judged {
    pub(super) plan: Plan,
    /// The base with its backend, and what the model takes there; `None` if nothing could be told of it.
    pub(super) base: Option<(Base, Chosen, Planned)>,
    /// The adapters, as far as they are known.
    pub(super) adapters: Together,
    /// How these get into the model.
    pub(super) route: Route,
}

/// The base.
pub(super) enum Base {
    /// Its files are here.
    Here(Weights),
    /// They are not, and these are their heads.
    Elsewhere(Arc<ModelInfo>),
}

/// The base's description, its text files, and its tensors unless an engine elsewhere has them.
pub(super) struct Weights {
    pub(super) info: Arc<ModelInfo>,
    pub(super) tensors: Option<Arc<dyn TensorSource>>,
    pub(super) text: TextFiles,
}

impl Inner {
    /// Judges `spec`, of whose base and adapters these `files` are here. Reads no weight of the base, and fetches nothing.
    ///
    /// # Errors
    /// What keeps it from being run: first what is wrong with the base or keeps all backends from it, then what is wrong
    /// with an adapter.
    pub(super) async fn judge(
        &self,
        spec: &ModelSpec,
        (pinned, files): (&Pinned, &[Option<Files>]),
        purpose: Purpose,
        cx: &FetchContext,
    ) -> Result<Judged> {
        let mut plan = Plan::new(spec, &pinned.base, &pinned.adapters, files, &pinned.resolution);
        let base = match &files[0] {
            Some(files) => Some(Base::Here(open(spec.id(), files.clone()).await?)),
            None => self.peek_model(spec, &pinned.resolution, &pinned.base.job(), cx).await?.map(Base::Elsewhere),
        };
        let mut chosen = match &base {
            Some(base) => Some(self.choose(spec, base.info())?),
            None => None,
        };
        let adapters = self.adapters(spec, &pinned.adapters, &files[1..], cx).await?;
        let mut route = Route::Merged;
        let mut memory = None;
        if let (Some(base), Some(chosen)) = (&base, &mut chosen) {
            base.check(spec, chosen)?;
            let (outlines, report) = adapters.fit(base.info(), &self.adapter_limits)?;
            let dequantized;
            (route, dequantized) = Route::new(spec.adapter_policy, &outlines, &report, chosen)?;
            let info = route.info(&report, base.info());
            if !Arc::ptr_eq(&info, base.info()) {
                *chosen = self.choose(spec, &info)?;
            }
            let adapted = Adapted { info: &info, base: base.info(), route, report: &report };
            let tiers = &self.memory.policy().context_tiers;
            let planned = chosen.fit(&adapted, tiers, purpose).map_err(|error| match &dequantized {
                Some(dequantized) => dequantized.short(&report, error),
                None => error,
            })?;
            plan.set_model(chosen.planned(&adapted, &planned), &chosen.resolution);
            memory = Some(planned);
        }
        let base = base.zip(chosen).zip(memory).map(|((base, chosen), memory)| (base, chosen, memory));
        Ok(Judged { plan, base, adapters, route })
    }

    /// The adapters `pins`, those that are here and the outlines of the others.
    async fn adapters(
        &self,
        spec: &ModelSpec,
        pins: &[Pin],
        files: &[Option<Files>],
        cx: &FetchContext,
    ) -> Result<Together> {
        let names = || pins.iter().map(|pin| pin.reference.to_string()).collect::<Vec<_>>().join(" + ");
        self.adapter_limits.check_count(pins.len(), names)?;
        // All by their heads first, so that nothing is read that is above the limits.
        let (mut outlines, mut told) = (Vec::new(), Vec::new());
        for ((pin, files), spec) in pins.iter().zip(files).zip(&spec.adapters) {
            let options = ReadOptions::from(spec);
            let outline = match files.clone() {
                Some(files) => self.outline_here(&pin.reference, files, options).await?,
                None => self.peek_adapter(&pin.job(), &options, cx).await?,
            };
            if let Some(outline) = &outline {
                told.push((pin.reference.to_string(), outline.clone()));
                self.adapter_limits.check(told.iter().map(|(reference, outline)| (reference.as_str(), outline)))?;
            }
            outlines.push(outline);
        }
        let mut known = Vec::new();
        for (((pin, files), spec), outline) in pins.iter().zip(files).zip(&spec.adapters).zip(outlines) {
            let (adapter, outline) = match files.clone() {
                Some(files) => {
                    let adapter = Arc::new(self.read_adapter(&pin.reference, files, ReadOptions::from(spec)).await?);
                    let outline = AdapterOutline::from(&*adapter);
                    (Some(adapter), Some(outline))
                }
                None => (None, outline),
            };
            known.extend(outline.map(|outline| Known {
                outline,
                adapter,
                weight: spec.weight,
                allow: spec.allow.clone(),
            }));
        }
        Ok(Together { known, asked: pins.len(), combination: spec.combination })
    }
}

impl Base {
    fn info(&self) -> &Arc<ModelInfo> {
        match self {
            Self::Here(weights) => &weights.info,
            Self::Elsewhere(info) => info,
        }
    }

    /// Checks that there are weights for whoever needs them.
    fn check(&self, spec: &ModelSpec, chosen: &Chosen) -> Result<()> {
        let Self::Here(Weights { tensors: None, .. }) = self else { return Ok(()) };
        if chosen.capabilities.needs_weights {
            let backend = chosen.resolution.backend.backend.name();
            let reason = format!("its source lists no files, and backend `{backend}` needs weights");
            return Err(Error::load(spec.id(), reason));
        }
        match spec.adapters.first() {
            Some(adapter) => {
                Err(Error::adapter(&adapter.reference, "the base has no weights on this machine to merge it into"))
            }
            None => Ok(()),
        }
    }
}

/// A base and an adapter, pinned, and as much of the base as is here.
pub(crate) struct Looked {
    pub(crate) base: Pin,
    pub(crate) adapter: Pin,
    pub(crate) info: Arc<ModelInfo>,
    /// `None` for a base that is not on this machine.
    pub(crate) tensors: Option<Arc<dyn TensorSource>>,
    /// The base's files, if they are here.
    pub(crate) files: Option<Files>,
}

impl Inner {
    /// Looks at the headers of the base of `spec`, which has one adapter.
    ///
    /// # Errors
    /// As [`Inner::judge`], of the base alone; [`Error::NotFound`] for one of which nothing can be told before it is here.
    pub(crate) async fn look(&self, spec: &ModelSpec, cx: &FetchContext) -> Result<Looked> {
        let Pinned { resolution, base, mut adapters } = self.resolve(spec, cx).await?;
        let job = base.job();
        let files = self.transfer.present(&job, cx).await?;
        let (info, tensors) = match &files {
            Some(files) => {
                let Weights { info, tensors, .. } = open(spec.id(), files.clone()).await?;
                (info, tensors)
            }
            None => {
                let reason = "its headers cannot be read before it is on this machine; download it first";
                let info = self.peek_model(spec, &resolution, &job, cx).await?;
                (info.ok_or_else(|| Error::not_found(spec.base.to_string(), reason))?, None)
            }
        };
        let adapter = adapters.pop().ok_or_else(|| Error::invalid_spec("adapters", "it is empty; expected one"))?;
        Ok(Looked { base, adapter, info, tensors, files })
    }
}

/// Reads the headers of the base. A base without files is run by an engine elsewhere.
async fn open(id: String, files: Files) -> Result<Weights> {
    if files.is_empty() {
        let info = Arc::new(ModelInfo::new(id, ModelFormat::Remote, Vec::new()));
        return Ok(Weights { info, tensors: None, text: TextFiles::default() });
    }
    let Checkpoint { info, tensors, text, .. } = blocking("checkpoint", move || Checkpoint::open(&id, &files)).await?;
    Ok(Weights { info, tensors: Some(tensors), text })
}
