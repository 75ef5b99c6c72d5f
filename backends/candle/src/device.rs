//! The devices that work here.

use std::{
    cell::OnceCell,
    panic::{AssertUnwindSafe, catch_unwind},
};

use candle_core::{DType, Device, Tensor};
use llm_local_core::{DeviceInfo, DeviceKind, DeviceMemory, Error, Result};

use crate::{backend::NAME, dtype::Floats};

/// The id of the Apple GPU.
pub(crate) const METAL: &str = "metal";

/// What ids of NVIDIA GPUs begin with, before a colon and a number.
pub(crate) const CUDA: &str = "cuda";

/// A device that a probe has shown to work.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    /// What is told of it.
    pub(crate) info: DeviceInfo,
    /// The device itself.
    pub(crate) device: Device,
    /// What it computes with.
    pub(crate) floats: Floats,
}

/// Devices that a probe has shown to work, best first; the CPU is always the last.
#[derive(Debug)]
pub(crate) struct Devices(Vec<Opened>);

impl Devices {
    /// Opens every kind that is compiled in and keeps those that compute. Each NVIDIA GPU is opened, in the driver's order,
    /// which `CUDA_VISIBLE_DEVICES` bounds and changes.
    pub(crate) fn probe() -> Self {
        let mut devices = Vec::new();
        if cfg!(feature = "metal") {
            devices.extend(open(METAL, DeviceKind::Metal, "Apple GPU", || Device::new_metal(0)));
        }
        for index in 0..cuda_devices() {
            let id = format!("{CUDA}:{index}");
            devices.extend(open(&id, DeviceKind::Cuda, "NVIDIA GPU", || Device::new_cuda(index)));
        }
        let info = DeviceInfo::new("cpu", DeviceKind::Cpu, "CPU");
        devices.push(Opened { info, device: Device::Cpu, floats: Floats::Cpu });
        Self(devices)
    }

    /// Descriptions, best first.
    pub(crate) fn infos(&self) -> Vec<DeviceInfo> {
        self.0.iter().map(|opened| opened.info.clone()).collect()
    }

    /// The device `id`, or without one the best.
    pub(crate) fn find(&self, id: Option<&str>) -> Result<&Opened, String> {
        let found = match id {
            None => self.0.first(),
            Some(id) => self.0.iter().find(|opened| opened.info.id == id),
        };
        found.ok_or_else(|| {
            let ids: Vec<_> = self.0.iter().map(|opened| opened.info.id.as_str()).collect();
            format!("the device is {}; candle has {} here", id.unwrap_or_default(), ids.join(", "))
        })
    }

    /// The memory of the device `id`, where it has its own or may use less of the machine's than there is.
    pub(crate) fn memory(&self, id: &str) -> Result<Option<DeviceMemory>> {
        let failed = |why: String| Error::backend_unavailable(NAME, format!("the memory of {id} is not known: {why}"));
        let opened = self.find(Some(id)).map_err(failed)?;
        memory(&opened.device).map_err(|error| failed(error.to_string()))
    }
}

thread_local! {
    /// The id of the device whose model the thread owns.
    static OWNED: OnceCell<String> = const { OnceCell::new() };
}

/// Says that the calling thread owns a model on the device `id`.
pub(crate) fn own(id: &str) {
    // A thread owns one model, and says so once.
    OWNED.with(|owned| {
        owned.get_or_init(|| id.to_owned());
    });
}

/// The id of the device of `kind` ([`METAL`], [`CUDA`]) that the calling thread computes on, or the kind alone.
pub(crate) fn here(kind: &str) -> String {
    let owned = OWNED.with(|owned| owned.get().cloned());
    owned.filter(|id| id.split(':').next() == Some(kind)).unwrap_or_else(|| kind.to_owned())
}

/// Gives back to the system what candle and the driver keep of `device`'s freed memory: Metal's buffers are kept for the next
/// tensors of their size, CUDA's memory in a pool, each until the device was waited for. A model that was unloaded would
/// else be in its memory until another one computes.
pub(crate) fn release(device: &Device) {
    if !device.is_cpu()
        && let Err(error) = device.synchronize()
    {
        tracing::warn!(%error, "the device does not give back what was freed");
    }
}

/// How many NVIDIA GPUs there are; none without a driver, or where it fails.
fn cuda_devices() -> usize {
    #[cfg(feature = "cuda")]
    {
        use candle_core::cuda::cudarc::driver::CudaContext;
        let why = match catch_unwind(CudaContext::device_count) {
            Ok(Ok(count)) => return usize::try_from(count).unwrap_or(0),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its driver panicked".to_owned(),
        };
        tracing::warn!(%why, "candle finds no NVIDIA GPU; others remain");
    }
    0
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
fn open(id: &str, kind: DeviceKind, name: &str, open: impl FnOnce() -> candle_core::Result<Device>) -> Option<Opened> {
    let probed = catch_unwind(AssertUnwindSafe(|| {
        let device = open()?;
        computes(&device, DType::F32)?;
        Ok::<_, candle_core::Error>(device)
    }));
    let why = match probed {
        Ok(Ok(device)) => {
            let bf16 = computes_bf16(&device);
            let info = described(id, kind, name, &device, bf16);
            return Some(Opened { info, device, floats: Floats::Gpu { bf16 } });
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "its driver panicked".to_owned(),
    };
    tracing::warn!(device = id, %why, "candle cannot use this device; others remain");
    None
}

/// Lets `device` compute with `dtype`: casts, an operation, and a product, which another library has on CUDA.
fn computes(device: &Device, dtype: DType) -> candle_core::Result<()> {
    let one = Tensor::ones((2, 2), DType::F32, device)?.to_dtype(dtype)?;
    let four = (&one + &one)?.matmul(&one)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if four != [4.0; 4] {
        candle_core::bail!("it computes 2 + 2 = {four:?} in {dtype:?}");
    }
    Ok(())
}

/// Whether `device` computes in bf16: NVIDIA's GPUs do from compute capability 8.0 on, Apple's from macOS 14 and iOS 17 on, which
/// have Metal 3.1. candle has no kernels for it elsewhere, which shows in the first.
fn computes_bf16(device: &Device) -> bool {
    catch_unwind(AssertUnwindSafe(|| computes(device, DType::BF16))).is_ok_and(|computed| computed.is_ok())
}

/// What is told of a device, its memory with it where it is its own: Apple's GPUs share the machine's.
fn described(id: &str, kind: DeviceKind, name: &str, device: &Device, bf16: bool) -> DeviceInfo {
    let mut name = driver_name(device).unwrap_or_else(|| name.to_owned());
    if !bf16 {
        name.push_str(", no bf16");
    }
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

/// What the driver calls a GPU, where it has several.
fn driver_name(device: &Device) -> Option<String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => gpu.cuda_stream().context().name().ok(),
        _ => None,
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

    #[test]
    fn what_a_device_computes_with_is_found_by_computing() {
        assert!(computes(&Device::Cpu, DType::F32).is_ok());
        // The CPU has no product of integers.
        assert!(computes(&Device::Cpu, DType::U8).is_err());
        let opened = open("x", DeviceKind::Cuda, "x", || Ok(Device::Cpu)).unwrap();
        let bf16 = computes_bf16(&Device::Cpu);
        assert_eq!(opened.floats, Floats::Gpu { bf16 });
        assert_eq!(opened.info.name, if bf16 { "x" } else { "x, no bf16" });
    }

    #[test]
    fn a_thread_names_the_device_whose_model_it_owns() {
        let owns = |id: &'static str| {
            std::thread::spawn(move || {
                own(id);
                (here(CUDA), here(METAL))
            })
        };
        assert_eq!(owns("cuda:1").join().unwrap(), ("cuda:1".into(), "metal".into()));
        assert_eq!(owns("metal").join().unwrap(), ("cuda".into(), "metal".into()));
        assert_eq!((here(CUDA), here(METAL)), ("cuda".into(), "metal".into()));
    }
}
