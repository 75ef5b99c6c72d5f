//! What MLX says of a device, which mlx-rs 0.33 does not ask.

use std::ffi::CStr;

use mlx_rs::{
    DeviceType,
    error::{Exception, Result},
    memory,
};

/// MLX's table of what is known of a device.
struct Info(mlx_sys::mlx_device_info);

impl Drop for Info {
    fn drop(&mut self) {
        // SAFETY: it was made by `mlx_device_info_new`, and nobody else frees it.
        unsafe { mlx_sys::mlx_device_info_free(self.0) };
    }
}

impl Info {
    fn of(device: DeviceType) -> Result<Self> {
        // Where no handler of mlx-rs is set, MLX ends the process with its first error. Any call of mlx-rs sets it.
        memory::active_memory()?;
        // SAFETY: it takes nothing.
        let mut info = Self(unsafe { mlx_sys::mlx_device_info_new() });
        // SAFETY: both were made by MLX, and the device is freed once, behind its use.
        let failed = unsafe {
            let device = mlx_sys::mlx_device_new_type(device.into(), 0);
            let failed = mlx_sys::mlx_device_info_get(&raw mut info.0, device);
            mlx_sys::mlx_device_free(device);
            failed
        };
        if failed == 0 { Ok(info) } else { Err(Exception::custom("MLX does not know this device")) }
    }

    fn has(&self, key: &CStr, as_text: bool) -> bool {
        let (mut exists, mut is_text) = (false, false);
        // SAFETY: the table lives, the key ends with a zero, and what is written to is a `bool` of this call.
        let failed = unsafe {
            mlx_sys::mlx_device_info_has_key(&raw mut exists, self.0, key.as_ptr()) != 0
                || (exists && mlx_sys::mlx_device_info_is_string(&raw mut is_text, self.0, key.as_ptr()) != 0)
        };
        !failed && exists && is_text == as_text
    }
}

/// The number `key` of a device, if MLX knows it.
///
/// # Errors
/// MLX's.
pub(crate) fn number(device: DeviceType, key: &CStr) -> Result<Option<u64>> {
    let info = Info::of(device)?;
    let mut value = 0usize;
    // SAFETY: as in `has`, which has said that there is a number of this name.
    let found =
        info.has(key, false) && unsafe { mlx_sys::mlx_device_info_get_size(&raw mut value, info.0, key.as_ptr()) } == 0;
    Ok(found.then_some(value as u64))
}

/// The text `key` of a device, if MLX knows it.
///
/// # Errors
/// MLX's.
pub(crate) fn text(device: DeviceType, key: &CStr) -> Result<Option<String>> {
    let info = Info::of(device)?;
    let mut value = std::ptr::null();
    // SAFETY: as in `has`, which has said that there is a text of this name.
    let found = info.has(key, true)
        && unsafe { mlx_sys::mlx_device_info_get_string(&raw mut value, info.0, key.as_ptr()) } == 0;
    if !found || value.is_null() {
        return Ok(None);
    }
    // SAFETY: it is a text of MLX's that ends with a zero, and belongs to the table, which lives until the end of this call.
    Ok(Some(unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned()))
}

#[cfg(all(test, not(target_vendor = "apple")))]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_the_processor_is_told_by_its_kind() {
        assert!(text(DeviceType::Cpu, c"device_name").unwrap().is_some_and(|name| !name.is_empty()));
        assert_eq!(number(DeviceType::Cpu, c"device_name").unwrap(), None);
        assert_eq!(text(DeviceType::Cpu, c"no_such_key").unwrap(), None);
    }
}
