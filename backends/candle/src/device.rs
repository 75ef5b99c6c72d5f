//! The devices that work here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Device, Tensor};
use llm_local_core::{DeviceInfo, DeviceKind, DeviceMemory, Error, Result};

use crate::backend::NAME;

/// The id of the Apple GPU.
pub(crate) const METAL: &str = "metal";

/// The id of the first NVIDIA GPU.
pub(crate) const CUDA: &str = "cuda:0";

/// Devices that a probe has shown to work, best first; the CPU is always the last.
#[derive(Debug)]
pub(crate) struct Devices(Vec<(DeviceInfo, Device)>);

impl Devices {
    /// Opens every kind that is compiled in and keeps those that compute.
    pub(crate) fn probe() -> Self {
        let mut devices = Vec::new();
        if cfg!(feature = "metal") {
            devices.extend(open(METAL, DeviceKind::Metal, "Apple GPU", || Device::new_metal(0)));
        }
        if cfg!(feature = "cuda") {
            devices.extend(open(CUDA, DeviceKind::Cuda, "NVIDIA GPU", || Device::new_cuda(0)));
        }
        devices.push((DeviceInfo::new("cpu", DeviceKind::Cpu, "CPU"), Device::Cpu));
        Self(devices)
    }

    /// Descriptions, best first.
    pub(crate) fn infos(&self) -> Vec<DeviceInfo> {
        self.0.iter().map(|(info, _)| info.clone()).collect()
    }

    /// The device `id`, or without one the best.
    pub(crate) fn find(&self, id: Option<&str>) -> Result<&(DeviceInfo, Device), String> {
        let found = match id {
            None => self.0.first(),
            Some(id) => self.0.iter().find(|(info, _)| info.id == id),
        };
        found.ok_or_else(|| {
            let ids: Vec<_> = self.0.iter().map(|(info, _)| info.id.as_str()).collect();
            format!("the device is {}; candle has {} here", id.unwrap_or_default(), ids.join(", "))
        })
    }

    /// The memory of the device `id`, where it has its own or may use less of the machine's than there is.
    pub(crate) fn memory(&self, id: &str) -> Result<Option<DeviceMemory>> {
        let failed = |why: String| Error::backend_unavailable(NAME, format!("the memory of {id} is not known: {why}"));
        let (_, device) = self.find(Some(id)).map_err(failed)?;
        memory(device).map_err(|error| failed(error.to_string()))
    }
}

/// The memory of a device; none for the processor.
///
/// CUDA says what is free of all that the GPU has, whoever took the rest. Metal says what the system recommends that this process
/// takes of the memory that it shares with the processor, and what it has taken: what other processes have taken is not in it,
/// but the system's own figures have it.
fn memory(device: &Device) -> candle_core::Result<Option<DeviceMemory>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => {
            use candle_core::cuda::WrapErr;
            let (free, total) = gpu.cuda_stream().context().mem_get_info().w()?;
            Ok(Some(DeviceMemory::new(total as u64, free as u64)))
        }
        #[cfg(feature = "metal")]
        Device::Metal(gpu) => {
            let total = gpu.recommended_max_working_set_size() as u64;
            Ok(Some(DeviceMemory::new(total, total.saturating_sub(gpu.current_allocated_size() as u64))))
        }
        // Without their features there is no GPU.
        _ => Ok(None),
    }
}

/// Opens a GPU and lets it compute. A driver that is missing or broken shows in either; some drivers panic.
fn open(
    id: &str,
    kind: DeviceKind,
    name: &str,
    open: impl FnOnce() -> candle_core::Result<Device>,
) -> Option<(DeviceInfo, Device)> {
    let probed = catch_unwind(AssertUnwindSafe(|| {
        let device = open()?;
        let two = (Tensor::ones(1, DType::F32, &device)? + 1.0)?.to_vec1::<f32>()?;
        if two != [2.0] {
            candle_core::bail!("it computes 1 + 1 = {two:?}");
        }
        Ok(device)
    }));
    let why = match probed {
        Ok(Ok(device)) => return Some((described(id, kind, name, &device), device)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "its driver panicked".to_owned(),
    };
    tracing::warn!(device = id, %why, "candle cannot use this device; others remain");
    None
}

/// What is told of a device, its memory with it where it is its own: Apple's GPUs share the machine's.
fn described(id: &str, kind: DeviceKind, name: &str, device: &Device) -> DeviceInfo {
    let info = DeviceInfo::new(id, kind, name);
    match memory(device) {
        Ok(Some(memory)) if kind == DeviceKind::Cuda => info.with_memory(memory.total),
        Ok(_) => info,
        Err(error) => {
            tracing::warn!(device = id, %error, "the device does not say how much memory it has");
            info
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there_and_an_unknown_device_is_answered_with_those_that_are() {
        let devices = Devices::probe();
        assert_eq!(devices.infos().last().unwrap().id, "cpu");
        assert!(devices.find(Some("cpu")).is_ok());
        let why = devices.find(Some("tpu:3")).unwrap_err();
        assert!(why.contains("tpu:3") && why.contains("cpu"), "{why}");
    }

    #[test]
    fn the_processor_has_no_memory_of_its_own_and_an_unknown_device_is_an_error_that_names_it() {
        let devices = Devices::probe();
        assert_eq!(devices.memory("cpu").unwrap(), None);
        assert_eq!(devices.infos().last().unwrap().memory, None);
        let error = devices.memory("tpu:3").unwrap_err();
        assert_eq!(error.code(), "backend_unavailable");
        assert!(error.to_string().contains("tpu:3") && error.to_string().contains("cpu"), "{error}");
    }

    #[test]
    fn a_device_that_fails_or_panics_is_left_out() {
        assert!(open("x", DeviceKind::Cuda, "x", || candle_core::bail!("no driver")).is_none());
        assert!(open("x", DeviceKind::Cuda, "x", || panic!("no library")).is_none());
        assert!(open("x", DeviceKind::Cpu, "x", || Ok(Device::Cpu)).is_some());
    }
}
