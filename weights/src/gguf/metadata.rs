//! The key-value pairs of a GGUF header.

use std::{io::Read, path::Path};

use gguf_rs_lib::format::{
    GGUF_MAX_METADATA_COUNT, GGUF_MAX_METADATA_KEY_LENGTH, GGUFValueType, MetadataArray, MetadataValue,
    endian::{read_u32, read_u64},
};
use llm_local_core::{
    Error, Result,
    model::{GgufMetadata, GgufValue},
};

use super::header::broken;

/// Array elements that one header may hold. The largest vocabularies need about two million; this bounds memory, since
/// an element of one byte in the file takes eight here.
const LARGEST_TOTAL: usize = 1 << 24;

/// Reads `count` pairs and leaves `rest` behind them.
pub(super) fn read(rest: &mut &[u8], count: u64, path: &Path) -> Result<GgufMetadata> {
    if count > GGUF_MAX_METADATA_COUNT {
        return Err(Error::load(
            path.display(),
            format!("it claims {count} metadata keys; at most {GGUF_MAX_METADATA_COUNT} are read"),
        ));
    }
    let mut metadata = GgufMetadata::default();
    let mut elements = 0;
    for at in 0..count {
        let what = || format!("metadata key {} of {count}", at + 1);
        let key = key(rest).map_err(|e| broken(path, &what(), &e))?;
        let what = || format!("the metadata key `{}`", key.escape_debug());
        let value = read_u32(rest)
            .and_then(GGUFValueType::from_u32)
            .and_then(|kind| MetadataValue::read_from(rest, kind))
            .map_err(|e| broken(path, &what(), &e))?;
        if let MetadataValue::Array(array) = &value {
            elements += array.values.len();
            if elements > LARGEST_TOTAL {
                return Err(Error::load(
                    path.display(),
                    format!("{}: arrays hold more than {LARGEST_TOTAL} elements together", what()),
                ));
            }
        }
        let value = plain(value).map_err(|reason| Error::load(path.display(), format!("{}: {reason}", what())))?;
        if metadata.insert(key.as_str(), value).is_some() {
            return Err(Error::load(path.display(), format!("{} stands there twice", what())));
        }
    }
    Ok(metadata)
}

fn key(rest: &mut &[u8]) -> gguf_rs_lib::Result<String> {
    let length = read_u64(rest)?;
    if length == 0 || length > GGUF_MAX_METADATA_KEY_LENGTH as u64 {
        return Err(gguf_rs_lib::GGUFError::Format(format!(
            "its name has {length} bytes; expected 1 to {GGUF_MAX_METADATA_KEY_LENGTH}"
        )));
    }
    let mut bytes = vec![0; length as usize];
    rest.read_exact(&mut bytes)?;
    String::from_utf8(bytes).map_err(|e| gguf_rs_lib::GGUFError::Format(format!("its name is not UTF-8: {e}")))
}

/// A value as the contract has it: one kind of integer, one of float.
fn plain(value: MetadataValue) -> Result<GgufValue, String> {
    use MetadataValue as V;
    Ok(match value {
        V::U8(n) => GgufValue::Int(n.into()),
        V::I8(n) => GgufValue::Int(n.into()),
        V::U16(n) => GgufValue::Int(n.into()),
        V::I16(n) => GgufValue::Int(n.into()),
        V::U32(n) => GgufValue::Int(n.into()),
        V::I32(n) => GgufValue::Int(n.into()),
        V::U64(n) => GgufValue::Int(n.into()),
        V::I64(n) => GgufValue::Int(n.into()),
        V::F32(x) => GgufValue::Float(x.into()),
        V::F64(x) => GgufValue::Float(x),
        V::Bool(b) => GgufValue::Bool(b),
        V::String(s) => GgufValue::String(s),
        V::Array(array) => plain_array(*array)?,
    })
}

fn plain_array(array: MetadataArray) -> Result<GgufValue, String> {
    use GGUFValueType as T;
    use MetadataValue as V;
    /// The values of an array, whose reader gave them all one type.
    fn all<T>(array: MetadataArray, one: impl Fn(V) -> Option<T>) -> Result<Vec<T>, String> {
        let kind = array.element_type;
        let values: Option<Vec<T>> = array.values.into_iter().map(one).collect();
        values.ok_or_else(|| format!("its array of {kind} has an element that does not fit"))
    }
    Ok(match array.element_type {
        T::String => GgufValue::Strings(all(array, |v| if let V::String(s) = v { Some(s) } else { None })?),
        T::Bool => GgufValue::Bools(all(array, |v| v.as_bool())?),
        T::F32 | T::F64 => GgufValue::Floats(all(array, |v| v.as_f64().map(|x| x as f32))?),
        T::Array => return Err("arrays of arrays are not read".into()),
        _ => GgufValue::Ints(all(array, |v| v.as_i64().or_else(|| i64::try_from(v.as_u64()?).ok()))?),
    })
}
