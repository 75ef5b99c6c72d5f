//! Which backend runs a model, and what it is told.

use llm_local_core::{
    Capabilities, ContextLength, Error, LoadOptions, ModelInfo, ModelSpec, Resolution, Result, Support,
    registry::{PluginKind, resolve::Reason},
};

use super::Inner;
use crate::memory::{ContextBounds, ContextTiers, Room};

/// The backend for a model, and what it is told.
pub(super) struct Chosen {
    pub(super) resolution: Resolution,
    /// The context is the longest that may be, whatever memory is left.
    pub(super) options: LoadOptions,
    pub(super) capabilities: Capabilities,
    /// What there is of the device's memory.
    pub(super) room: Room,
    /// What the context is bounded by: what the spec asks for, and what the model was made for.
    pub(super) context: (ContextLength, Option<usize>),
}

impl Inner {
    /// The backend for the model that `info` describes.
    ///
    /// # Errors
    /// [`Error::NoBackend`] with what each says of it.
    pub(super) fn choose(&self, spec: &ModelSpec, info: &ModelInfo) -> Result<Chosen> {
        let context = (spec.context_length, info.decoder.as_ref().map(|d| d.max_positions).ok());
        let tiers = &self.memory.policy().context_tiers;
        // Of a device, nothing is known before there is one.
        let least = ContextBounds::new(context.0, context.1, tiers, None).context();
        let mut options = LoadOptions::new(least.tokens).with_dtype(spec.dtype).with_kv_cache(spec.kv_cache);
        let resolution = self.registry.resolve_for(spec, info, &options)?;
        let choice = &resolution.backend;
        let Some(capabilities) = choice.capabilities.clone() else {
            return Err(Error::load(spec.id(), format!("backend `{}` was not asked about it", choice.backend.name())));
        };
        options.device = Some(choice.device.id.clone());
        let room = self.memory.room(&*choice.backend, &choice.device);
        let mut chosen = Chosen { resolution, options, capabilities, room, context };
        chosen.options.context_length = chosen.bounds(tiers).context().tokens;
        Ok(chosen)
    }

    /// Refuses a model whose config no backend can run, whatever its tensors are. `by_config` is its description without
    /// them, and `resolution` what the spec gets before anything is known of the model.
    ///
    /// A backend cannot be asked for less than the whole, and may miss tensors in such a description. But one that repeats
    /// the error that the config itself gave has nothing against the tensors; if all do, the answer is known.
    ///
    /// # Errors
    /// As [`Inner::choose`].
    pub(super) fn refuse_by_config(
        &self,
        spec: &ModelSpec,
        resolution: &Resolution,
        by_config: &ModelInfo,
    ) -> Result<()> {
        let Err(Error::UnsupportedModelFormat { reason, .. }) = &by_config.decoder else { return Ok(()) };
        let most = by_config.decoder.as_ref().map(|d| d.max_positions).ok();
        let least = ContextBounds::new(spec.context_length, most, &self.memory.policy().context_tiers, None).context();
        let options = LoadOptions::new(least.tokens).with_dtype(spec.dtype).with_kv_cache(spec.kv_cache);
        let later = resolution.passed_over.iter();
        let later = later.filter(|p| p.kind == PluginKind::Backend && p.reason == Reason::LowerPriority);
        let mut candidates = vec![resolution.backend.backend.clone()];
        for passed in later {
            let Ok(backend) = self.registry.backend(&passed.name) else { return Ok(()) };
            candidates.push(backend);
        }
        for backend in candidates {
            let Ok(devices) = backend.devices() else { return Ok(()) };
            for device in devices.iter().filter(|d| spec.device.as_ref().is_none_or(|id| d.id == *id)) {
                match backend.supports(by_config, &options.clone().with_device(&device.id)) {
                    Support::No(why) if why == *reason => {}
                    _ => return Ok(()),
                }
            }
        }
        self.choose(spec, by_config).map(drop)
    }
}

impl Chosen {
    /// What the context is bounded by.
    pub(super) fn bounds(&self, tiers: &ContextTiers) -> ContextBounds<'_> {
        let (asked, model) = self.context;
        ContextBounds::new(asked, model, tiers, self.room.usable)
            .with_backend(self.resolution.backend.backend.name(), self.capabilities.max_context)
    }
}
