//! What memory there is, what is promised of it, and to whom.

use std::time::Duration;

use llm_local_core::{DeviceInfo, Registry, registry::PluginKind};

use super::{Memory, ledger::Phase, measure::promised, pressure::PressureLevel};

/// What memory there is for models, and who has it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MemoryStatus {
    /// What the system says of the machine and of this process; `None` where it says nothing.
    pub system: Option<super::SystemMemory>,
    /// How short memory is, as far as the monitor has heard.
    pub level: PressureLevel,
    /// Whether [`Engine::start_monitoring`](crate::Engine::start_monitoring) is on.
    pub monitoring: bool,
    /// The devices of all backends that can run here.
    pub devices: Vec<DeviceStatus>,
    /// The models that are loaded, being loaded or leaving, in the order of their loads.
    pub models: Vec<ResidentStatus>,
}

/// Memory of a device for models, in bytes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeviceStatus {
    /// The backend's name.
    pub backend: String,
    /// The device.
    pub device: DeviceInfo,
    /// What applies: physical memory, or what a control group leaves of it, or the device's own. `None` where nobody knows;
    /// models are not bounded then.
    pub usable: Option<u64>,
    /// The tightest budget: what models may be promised in all.
    pub budget: Option<u64>,
    /// What models on this device were promised.
    pub promised: u64,
    /// What a load could have, once all idle models are gone.
    pub room: Option<u64>,
    /// The context that a model has here whose spec asks for none, in tokens, if it was made for so many and they fit.
    pub context_length: u32,
    /// How many models are on it.
    pub models: usize,
}

/// A model that has memory, or was promised some.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ResidentStatus {
    /// The model's id.
    pub model: String,
    /// The device's id.
    pub device: String,
    /// What it is doing.
    pub phase: ResidentPhase,
    /// Bytes that it was promised.
    pub promised: u64,
    /// Bytes that it holds by its own account.
    pub held: u64,
    /// Requests that are running.
    pub in_use: usize,
    /// Whether it is pinned.
    pub pinned: bool,
    /// How long ago it was used last.
    pub idle: Duration,
    /// How long it stays when nobody uses it; `None` for as long as nobody needs its memory.
    pub keep_alive: Option<Duration>,
}

/// What a model in the ledger is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResidentPhase {
    /// It is being loaded.
    Loading,
    /// It takes requests.
    Ready,
    /// It is being unloaded.
    Leaving,
    /// Its backend could not unload it, and nobody knows when its memory is back.
    Stuck,
}

impl Memory {
    /// The status with the devices of `registry`.
    pub(super) fn status(&self, registry: &Registry, monitoring: bool) -> MemoryStatus {
        let held = self.held();
        let models = {
            let (ledger, now) = (self.ledger(), self.now());
            let status = |(id, resident): (u64, &super::ledger::Resident)| ResidentStatus {
                model: resident.demand.model.clone(),
                device: resident.demand.device.clone(),
                phase: match resident.phase {
                    Phase::Loading => ResidentPhase::Loading,
                    Phase::Ready => ResidentPhase::Ready,
                    Phase::Leaving => ResidentPhase::Leaving,
                    Phase::Stuck => ResidentPhase::Stuck,
                },
                promised: resident.demand.bytes,
                held: held.get(&id).copied().unwrap_or(0),
                in_use: resident.leases.len(),
                pinned: resident.pins > 0,
                idle: now.saturating_sub(resident.used),
                keep_alive: resident.keeps,
            };
            ledger.residents().map(status).collect()
        };
        let plugins = registry.plugins();
        let names = plugins.iter().filter(|plugin| plugin.kind == PluginKind::Backend).map(|plugin| &plugin.name);
        let backends = names.filter_map(|name| registry.backend(name).ok());
        let mut devices = Vec::new();
        for backend in backends {
            for device in backend.devices().unwrap_or_default() {
                let measured = self.measure(&*backend, &device);
                let (count, bytes) = promised(&self.ledger(), &device.id);
                devices.push(DeviceStatus {
                    backend: backend.name().to_owned(),
                    usable: measured.usable,
                    budget: measured.bounds.iter().map(|bound| bound.limit).min(),
                    promised: bytes,
                    room: self.room(&*backend, &device).bytes,
                    context_length: self.policy().context_tiers.row(measured.usable).tokens,
                    models: count,
                    device,
                });
            }
        }
        let system = self.probe().read().ok();
        MemoryStatus { system, level: self.level(), monitoring, devices, models }
    }
}
