//! The devices that work here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Device, Tensor};
use llm_local_core::{DeviceInfo, DeviceKind};

/// Devices that a probe has shown to work, best first; the CPU is always the last.
#[derive(Debug)]
pub(crate) struct Devices(Vec<(DeviceInfo, Device)>);

impl Devices {
    /// Opens every kind that is compiled in and keeps those that compute.
    pub(crate) fn probe() -> Self {
        let mut devices = Vec::new();
        if cfg!(feature = "metal") {
            devices.extend(open("metal", DeviceKind::Metal, "Apple GPU", || Device::new_metal(0)));
        }
        if cfg!(feature = "cuda") {
            devices.extend(open("cuda:0", DeviceKind::Cuda, "NVIDIA GPU", || Device::new_cuda(0)));
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
        Ok(Ok(device)) => return Some((DeviceInfo::new(id, kind, name), device)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "its driver panicked".to_owned(),
    };
    tracing::warn!(device = id, %why, "candle cannot use this device; others remain");
    None
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
    fn a_device_that_fails_or_panics_is_left_out() {
        assert!(open("x", DeviceKind::Cuda, "x", || candle_core::bail!("no driver")).is_none());
        assert!(open("x", DeviceKind::Cuda, "x", || panic!("no library")).is_none());
        assert!(open("x", DeviceKind::Cpu, "x", || Ok(Device::Cpu)).is_some());
    }
}
