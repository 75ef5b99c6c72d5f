//! Whether a model is one of the architectures here, and can be run.

use std::collections::HashMap;

use candle_core::Device;
use llm_local_core::{ComputeDtype, DeviceInfo, Encoding, LoadOptions, ModelFormat, ModelInfo, TensorEntry};
use serde_json::Value;

use super::{
    description::Description,
    families::{FAMILIES, Family},
    fields::Fields,
};
use crate::device::Devices;

/// A model that can be run, and everything decided about how.
#[derive(Debug)]
pub(crate) struct Supported {
    /// The model's id, for messages.
    pub(super) id: String,
    pub(super) description: Description,
    /// Where it will be.
    pub(super) device: Device,
    /// The same, for people.
    pub(super) device_info: DeviceInfo,
}

impl Supported {
    /// The longest context in which what is computed is right, in tokens.
    pub(crate) fn max_context(&self) -> usize {
        self.description.max_context
    }
}

/// Decides everything about running `info`, or says which field or tensor cannot be run; `None` if it is of none of the
/// architectures here.
pub(crate) fn check(info: &ModelInfo, o: &LoadOptions, devices: &Devices) -> Option<Result<Supported, String>> {
    let ModelFormat::Safetensors { config } = &info.format else { return None };
    let config = config.as_object()?;
    let name = config.get("model_type")?.as_str()?;
    let family = FAMILIES.iter().find(|f| f.name == name)?;
    Some(devices.find(o.device.as_deref()).and_then(|opened| {
        let description = describe(family, &Fields::new(config), config.get("architectures"), &info.tensors, o.dtype)?;
        Ok(Supported {
            id: info.id.clone(),
            description,
            device: opened.device.clone(),
            device_info: opened.info.clone(),
        })
    }))
}

fn describe(
    family: &Family,
    fields: &Fields<'_>,
    classes: Option<&Value>,
    tensors: &[TensorEntry],
    dtype: ComputeDtype,
) -> Result<Description, String> {
    if let Some(classes) = classes.filter(|c| !c.is_null())
        && classes.as_array().is_none_or(|all| all.iter().any(|class| class != family.class))
    {
        return Err(fields.wrong("architectures", &format!("[{:?}]", family.class)));
    }
    let description = (family.describe)(fields, tensors.len())?;
    fields.nothing_overlooked(family.class)?;
    check_tensors(&description, tensors)?;
    match dtype {
        ComputeDtype::Auto | ComputeDtype::F32 => Ok(description),
        other => Err(format!(
            "dtype is {}; candle-transformers' {} rounds positions to the dtype, and is right in f32 alone: ask for f32 or \
             auto",
            format!("{other:?}").to_lowercase(),
            family.name
        )),
    }
}

/// Checks that every tensor is there, in its shape and as floats, and that no other waits to be ignored.
fn check_tensors(d: &Description, tensors: &[TensorEntry]) -> Result<(), String> {
    let mut left: HashMap<&str, &TensorEntry> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    for (name, shape) in &d.tensors {
        let Some(entry) = left.remove(name.as_str()) else {
            return Err(format!("the tensor {name} is missing; a {} with {} layers has it", d.name, d.sizes.layers));
        };
        if &entry.shape != shape {
            return Err(format!("the tensor {name} has the shape {:?}; the config makes it {shape:?}", entry.shape));
        }
        if !matches!(entry.encoding, Encoding::Float(_)) {
            return Err(format!("the tensor {name} is stored as {}; only floats can be run", entry.encoding));
        }
    }
    // Old checkpoints store the rotary frequencies, which follow from the config.
    let extra = left.into_keys().filter(|name| !name.ends_with(".rotary_emb.inv_freq")).min();
    match extra {
        Some(name) => Err(format!("the tensor {name} is no part of a {}; it would be ignored", d.name)),
        None => Ok(()),
    }
}
