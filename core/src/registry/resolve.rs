//! Which source and backend a spec gets, and why each other candidate was passed over.

use std::{fmt, sync::Arc};

use super::{PluginKind, Registry};
use crate::{
    AdapterSource, BackendPreference, Capabilities, DeviceInfo, Error, InferenceBackend, LoadOptions, ModelInfo,
    ModelSource, ModelSpec, Result, Support,
};

/// Which source and backend a spec gets.
#[non_exhaustive]
pub struct Resolution {
    /// The source of the base.
    pub model_source: Arc<dyn ModelSource>,
    /// The source of each adapter, in the spec's order.
    pub adapter_sources: Vec<Arc<dyn AdapterSource>>,
    /// The backend and its device.
    pub backend: BackendChoice,
    /// Every other candidate, with why it was passed over.
    pub passed_over: Vec<PassedOver>,
}

/// The backend that a spec gets.
#[derive(Clone)]
#[non_exhaustive]
pub struct BackendChoice {
    /// The backend.
    pub backend: Arc<dyn InferenceBackend>,
    /// The device it will use.
    pub device: DeviceInfo,
    /// What it can do with the model; `None` while the model is not known yet.
    pub capabilities: Option<Capabilities>,
}

/// A candidate that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PassedOver {
    /// Its name space.
    pub kind: PluginKind,
    /// A backend's name, a source's scheme.
    pub name: String,
    /// The device by its id, if it is one of a backend's devices that was passed over and not the whole backend.
    pub device: Option<String>,
    /// Why.
    pub reason: Reason,
}

/// Why a candidate was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A source of another scheme than the ref's.
    Scheme,
    /// The spec names another backend.
    NotPreferred,
    /// It cannot run on this machine, and why.
    Unavailable(String),
    /// It does not have the device that the spec names; these it has.
    Device(Vec<String>),
    /// It cannot run the model, and why.
    Unsupported(String),
    /// It could, but another comes first.
    LowerPriority,
}

impl PassedOver {
    fn new(kind: PluginKind, name: &str, reason: Reason) -> Self {
        Self { kind, name: name.to_owned(), device: None, reason }
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind.as_str(), self.name)?;
        if let Some(device) = &self.device {
            write!(f, " on {device}")?;
        }
        f.write_str(": ")?;
        match &self.reason {
            Reason::Scheme => f.write_str("knows refs of another scheme"),
            Reason::NotPreferred => f.write_str("the spec names another backend"),
            Reason::Unavailable(why) => f.write_str(why),
            Reason::Device(have) => write!(f, "does not have the device the spec names; it has {}", have.join(", ")),
            Reason::Unsupported(why) => f.write_str(why),
            Reason::LowerPriority => f.write_str("could run it, but comes later"),
        }
    }
}

impl fmt::Debug for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolution")
            .field("source", &self.model_source.scheme())
            .field("backend", &self.backend.backend.name())
            .field("device", &self.backend.device.id)
            .field("passed_over", &self.passed_over)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// The source plus backend that `spec` gets before anything is known of the model: by scheme, preference, device
    /// and priority. What [`Registry::resolve_for`] adds is whether the backend supports the model.
    ///
    /// # Errors
    /// [`Error::NotRegistered`], [`Error::NoBackend`]; for an adapter's source [`Error::AdapterMergeFailed`].
    pub fn resolve(&self, spec: &ModelSpec) -> Result<Resolution> {
        self.resolution(spec, None)
    }

    /// The source plus backend that `spec` gets for the model that `info` describes, loaded as `options` says. Of the
    /// backend's devices it is the first that can run the model, unless the spec names one.
    ///
    /// # Errors
    /// As [`Registry::resolve`].
    pub fn resolve_for(&self, spec: &ModelSpec, info: &ModelInfo, options: &LoadOptions) -> Result<Resolution> {
        self.resolution(spec, Some((info, options)))
    }

    fn resolution(&self, spec: &ModelSpec, model: Option<(&ModelInfo, &LoadOptions)>) -> Result<Resolution> {
        let model_source = self.model_source(&spec.base)?;
        let adapter_sources =
            spec.adapters.iter().map(|a| self.adapter_source(&a.reference)).collect::<Result<Vec<_>>>()?;
        let mut passed_over: Vec<_> = self
            .model_sources
            .keys()
            .filter(|scheme| *scheme != spec.base.scheme())
            .map(|scheme| PassedOver::new(PluginKind::ModelSource, scheme, Reason::Scheme))
            .collect();
        passed_over.extend(
            self.adapter_sources
                .keys()
                .filter(|scheme| {
                    !spec.adapters.is_empty() && spec.adapters.iter().all(|a| a.reference.scheme() != **scheme)
                })
                .map(|scheme| PassedOver::new(PluginKind::AdapterSource, scheme, Reason::Scheme)),
        );
        if let BackendPreference::Named(name) = &spec.backend {
            self.lookup(&self.backends, PluginKind::Backend, name)?;
        }
        let mut chosen = None;
        for entry in self.backend_entries() {
            let whole = |reason| vec![(None, reason)];
            let reasons = match &spec.backend {
                BackendPreference::Named(name) if *name != entry.name => whole(Reason::NotPreferred),
                _ => match try_backend(entry.get(&self.context), spec, model) {
                    Ok((choice, refused)) if chosen.is_none() => {
                        chosen = Some(choice);
                        refused
                    }
                    Ok(_) => whole(Reason::LowerPriority),
                    Err(reasons) => reasons,
                },
            };
            passed_over.extend(reasons.into_iter().map(|(device, reason)| PassedOver {
                device,
                ..PassedOver::new(PluginKind::Backend, &entry.name, reason)
            }));
        }
        match chosen {
            Some(backend) => Ok(Resolution { model_source, adapter_sources, backend, passed_over }),
            None => Err(Error::NoBackend {
                model: spec.id(),
                reasons: passed_over
                    .iter()
                    .filter(|p| p.kind == PluginKind::Backend)
                    .map(ToString::to_string)
                    .collect(),
            }),
        }
    }
}

/// Why devices were passed over, by their ids; without an id it is the whole backend.
type Reasons = Vec<(Option<String>, Reason)>;

/// The backend with the first device that can run the model, and why those before it cannot.
fn try_backend(
    backend: Result<Arc<dyn InferenceBackend>>,
    spec: &ModelSpec,
    model: Option<(&ModelInfo, &LoadOptions)>,
) -> Result<(BackendChoice, Reasons), Reasons> {
    let unavailable = |e: Error| vec![(None, Reason::Unavailable(e.to_string()))];
    let backend = backend.map_err(unavailable)?;
    let devices = backend.devices().map_err(unavailable)?;
    let mut refused = Vec::new();
    for device in devices.iter().filter(|d| spec.device.as_ref().is_none_or(|id| d.id == *id)) {
        let support = model.map(|(info, options)| backend.supports(info, &options.clone().with_device(&device.id)));
        let capabilities = match support {
            None => None,
            Some(Support::Yes(capabilities)) => Some(capabilities),
            Some(Support::No(why)) => {
                refused.push((Some(device.id.clone()), Reason::Unsupported(why)));
                continue;
            }
        };
        let device = device.clone();
        return Ok((BackendChoice { backend, device, capabilities }, refused));
    }
    match refused.first() {
        None => Err(vec![(None, Reason::Device(devices.into_iter().map(|d| d.id).collect()))]),
        // What every device says is not about the devices.
        Some((_, first)) if refused.iter().all(|(_, reason)| reason == first) => Err(vec![(None, first.clone())]),
        Some(_) => Err(refused),
    }
}
