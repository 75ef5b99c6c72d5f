//! What mlx-lm says in config.json of the weights that it quantized.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::config_fields::shown;
use crate::Encoding;

/// MLX's affine quantization of a checkpoint, as its config.json says.
///
/// Which modules are quantized is told by their tensors: those that have scales. Of single modules config.json may say other
/// sizes than of the rest, or that they are not quantized (`mlx_lm.utils.load_model`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MlxQuantization {
    default: Encoding,
    /// By the module's name.
    modules: BTreeMap<String, Option<Encoding>>,
}

impl MlxQuantization {
    /// Bits per weight that MLX packs (`mlx.core.quantize`, mode `affine`).
    pub const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];

    /// How many weights share a scale and a bias, in MLX.
    pub const GROUP_SIZES: [u32; 3] = [32, 64, 128];

    /// Reads `quantization` and `quantization_config` of config.json; `None` if neither is there.
    ///
    /// # Errors
    /// A sentence that names the field, what it has and what to do, for weights that are quantized by anything but MLX's
    /// affine quantization: another quantizer (`quant_method`), another mode, or sizes that MLX does not have.
    pub fn from_config(config: &Value) -> Result<Option<Self>, String> {
        Self::read(|name| config.get(name))
    }

    /// [`Self::from_config`], by whoever gives a field of config.json.
    pub(super) fn read<'a>(get: impl Fn(&str) -> Option<&'a Value>) -> Result<Option<Self>, String> {
        let mut read: Option<(&str, Self)> = None;
        // mlx-lm writes both, with the same content.
        for name in ["quantization_config", "quantization"] {
            let Some(found) = get(name).filter(|found| !found.is_null()) else { continue };
            let own = Self::field(name, found)?;
            match &read {
                Some((first, other)) if *other != own => {
                    return Err(format!(
                        "{name} and {first} say different things of how the weights are quantized; remove the one that is \
                         wrong"
                    ));
                }
                _ => read = Some((name, own)),
            }
        }
        Ok(read.map(|(_, own)| own))
    }

    /// How the weight of `module` is stored if it has scales; `None` if config.json says that it is not quantized.
    pub fn of(&self, module: &str) -> Option<Encoding> {
        self.modules.get(module).copied().unwrap_or(Some(self.default))
    }

    /// The modules that config.json says something of, each with how its weight is stored.
    pub fn named(&self) -> impl Iterator<Item = (&str, Option<Encoding>)> {
        self.modules.iter().map(|(name, encoding)| (name.as_str(), *encoding))
    }

    fn field(name: &str, found: &Value) -> Result<Self, String> {
        let by = match found.get("quant_method").and_then(Value::as_str) {
            Some(method) => method,
            None if name == "quantization" || found.get("group_size").is_some() => "MLX",
            None => "a method that it does not name",
        };
        let refused = |why: String| {
            format!(
                "the weights are quantized by {by} ({name} is {}), which is not supported{why}; use the model's dense \
                 safetensors checkpoint (bf16, f16 or f32), or a GGUF file of it",
                shown(found)
            )
        };
        let Some(fields) = found.as_object().filter(|_| by == "MLX") else { return Err(refused(String::new())) };
        let default = affine(fields, "").map_err(|why| refused(format!(": {why}")))?;
        let mut modules = BTreeMap::new();
        for (module, value) in fields.iter().filter(|(key, _)| !["bits", "group_size", "mode"].contains(&key.as_str()))
        {
            let encoding = match value {
                Value::Null => continue,
                Value::Bool(quantized) => quantized.then_some(default),
                Value::Object(own) => {
                    let own = affine(own, &format!("{module}.")).map_err(|why| refused(format!(": {why}")))?;
                    Some(own)
                }
                other => {
                    let why = format!(": {module} is {}; expected true, false or sizes of a module", shown(other));
                    return Err(refused(why));
                }
            };
            modules.insert(module.clone(), encoding);
        }
        Ok(Self { default, modules })
    }
}

/// The sizes in `fields`, which stand at `path` in the field.
fn affine(fields: &Map<String, Value>, path: &str) -> Result<Encoding, String> {
    if let Some(mode) = fields.get("mode").filter(|mode| !mode.is_null() && mode.as_str() != Some("affine")) {
        return Err(format!("{path}mode is {}; expected affine", shown(mode)));
    }
    let (bits, group_size) = (
        one_of(fields, path, "bits", &MlxQuantization::BITS)?,
        one_of(fields, path, "group_size", &MlxQuantization::GROUP_SIZES)?,
    );
    Ok(Encoding::MlxAffine { bits, group_size })
}

/// The number in the field `name`, if it is one of `known`.
fn one_of<N: Copy + Into<u64>>(fields: &Map<String, Value>, path: &str, name: &str, known: &[N]) -> Result<N, String> {
    let found = fields.get(name);
    let number = found.and_then(Value::as_u64);
    known.iter().copied().find(|known| number == Some((*known).into())).ok_or_else(|| {
        let known: Vec<_> = known.iter().map(|known| (*known).into().to_string()).collect();
        let found = found.map_or_else(|| "missing".to_owned(), shown);
        format!("{path}{name} is {found}; expected one of {}", known.join(", "))
    })
}
