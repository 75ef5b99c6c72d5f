//! The device that MLX computes on here.

use std::sync::OnceLock;

use llm_local_core::{DeviceInfo, DeviceKind, DeviceMemory, Error, Result};
use mlx_rs::{Array, Device, DeviceType, error::Exception};

use crate::{NAME, errors::said, info, memory, thread::MLX};

/// Whether MLX computes on Apple's GPU in this build, and on the processor otherwise.
pub(crate) const METAL: bool = cfg!(target_vendor = "apple");

/// The id of the device.
pub(crate) const ID: &str = if METAL { "metal" } else { "cpu" };

/// What kind it is.
pub(crate) const KIND: DeviceKind = if METAL { DeviceKind::Metal } else { DeviceKind::Cpu };

/// The device, once a probe has shown that it works. The first call computes something, on MLX's thread; later ones know.
///
/// # Errors
/// [`Error::BackendUnavailable`] with why.
pub(crate) fn device() -> Result<&'static DeviceInfo> {
    static PROBED: OnceLock<std::result::Result<DeviceInfo, String>> = OnceLock::new();
    let probed = PROBED.get_or_init(|| {
        let probed = pollster::block_on(MLX.call(|| probe(open))).map_err(|error| error.to_string()).flatten();
        if let Err(why) = &probed {
            tracing::warn!(device = ID, %why, "MLX cannot use this device");
        }
        probed
    });
    probed.as_ref().map_err(|why| Error::backend_unavailable(NAME, why.clone()))
}

/// The device `id`, or without one the only one. The error names those that there are.
pub(crate) fn find(id: Option<&str>) -> std::result::Result<&'static DeviceInfo, String> {
    match id {
        Some(id) if id != ID => Err(format!("the device is {id}; mlx has {ID} here")),
        _ => device().map_err(|error| error.to_string()),
    }
}

/// The memory of the device `id`: of Apple's GPUs what the system recommends that this process takes of the memory that they share
/// with the processor, and what MLX has not taken of that; what it only keeps for later is given back where it is needed. None
/// for the processor.
///
/// # Errors
/// [`Error::BackendUnavailable`] if it cannot be asked.
pub(crate) fn memory(id: &str) -> Result<Option<DeviceMemory>> {
    let failed = |why: String| Error::backend_unavailable(NAME, format!("the memory of {id} is not known: {why}"));
    find(Some(id)).map_err(failed)?;
    if !METAL {
        return Ok(None);
    }
    let total = recommended().map_err(failed)?;
    Ok(Some(DeviceMemory::new(total, total.saturating_sub(memory::now()?.active))))
}

/// Bytes that the system recommends the GPU's programs to take at most.
pub(crate) fn recommended() -> std::result::Result<u64, String> {
    const KEY: &std::ffi::CStr = c"max_recommended_working_set_size";
    match info::number(DeviceType::Gpu, KEY) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err("MLX does not say how large its working set should be at most".into()),
        Err(error) => Err(said(&error).to_owned()),
    }
}

/// What is told of the device that `open` opens and lets compute: a driver that is missing or broken shows in either.
fn probe(open: impl FnOnce() -> mlx_rs::error::Result<(DeviceType, f32)>) -> std::result::Result<DeviceInfo, String> {
    let (found, three) = open().map_err(|error| said(&error).to_owned())?;
    if matches!(found, DeviceType::Gpu) != METAL {
        return Err(format!(
            "MLX computes on {found:?} here, where {ID} is expected; it was built for another machine"
        ));
    }
    if three != 3.0 {
        return Err(format!("the device computes 1 + 2 = {three}"));
    }
    let name = info::text(found, c"device_name").ok().flatten();
    Ok(DeviceInfo::new(ID, KIND, name.unwrap_or_else(|| if METAL { "Apple GPU" } else { "CPU" }.into())))
}

/// MLX's default device, and what it computes of 1 + 2.
fn open() -> mlx_rs::error::Result<(DeviceType, f32)> {
    let found = Device::try_default()?.get_type()?;
    let sum = Array::from_f32(1.0).add(Array::from_f32(2.0))?;
    let three = sum.try_item_cast::<f32>().map_err(|error| Exception::custom(error.to_string()))?;
    Ok((found, three))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_device_and_an_unknown_one_is_answered_with_it() {
        let device = device().unwrap();
        assert_eq!((device.id.as_str(), device.kind, device.memory), (ID, KIND, None));
        assert_eq!(find(None), find(Some(ID)));
        let why = find(Some("tpu:3")).unwrap_err();
        assert!(why.contains("tpu:3") && why.contains(ID), "{why}");
        let error = memory("tpu:3").unwrap_err();
        assert_eq!(error.code(), "backend_unavailable");
        assert_eq!(memory(ID).unwrap().is_some(), METAL);
    }

    #[test]
    fn a_device_that_fails_or_computes_something_else_is_not_used() {
        let right = if METAL { DeviceType::Gpu } else { DeviceType::Cpu };
        let other = if METAL { DeviceType::Cpu } else { DeviceType::Gpu };
        assert!(probe(|| Ok((right, 3.0))).is_ok());
        assert!(probe(|| Ok((right, 2.0))).unwrap_err().contains("1 + 2 = 2"));
        assert!(probe(|| Ok((other, 3.0))).unwrap_err().contains(ID));
        let error = probe(|| Err(Exception::custom("no metallib at /src/mlx.cpp:3"))).unwrap_err();
        assert_eq!(error, "no metallib");
    }
}
