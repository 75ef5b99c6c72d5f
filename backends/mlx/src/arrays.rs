//! Bytes into arrays, and back.

use llm_local_core::{Error, FloatType, Result, TensorData};
use mlx_rs::{
    Array, ArrayElement, Dtype,
    error::{AsSliceError, Exception},
};

use crate::errors::{load_error, no_memory};

/// MLX's name of a float type; f32 of one that it does not have.
pub(crate) fn mlx_dtype(t: FloatType) -> Dtype {
    match t {
        FloatType::F64 => Dtype::Float64,
        FloatType::F16 => Dtype::Float16,
        FloatType::Bf16 => Dtype::Bfloat16,
        _ => Dtype::Float32,
    }
}

/// The float type that MLX calls so; of what is no float, that which MLX widens it to.
pub(crate) fn float_type(t: Dtype) -> FloatType {
    match t {
        Dtype::Float64 => FloatType::F64,
        Dtype::Float16 => FloatType::F16,
        Dtype::Bfloat16 => FloatType::Bf16,
        _ => FloatType::F32,
    }
}

/// The data of the tensor `name`, which is in `float`, as an array of this shape.
///
/// # Errors
/// [`Error::LoadFailed`] if it is not as long as the shape is large, [`Error::OutOfMemory`].
pub(crate) fn from_data(name: &str, data: TensorData<'_>, shape: &[usize], float: FloatType) -> Result<Array> {
    of_elements(name, data, shape, mlx_dtype(float), float.size())
}

/// Packed integers of the tensor `name`, as u32 in an array of this shape.
///
/// # Errors
/// As [`from_data`].
pub(crate) fn from_packed(name: &str, data: TensorData<'_>, shape: &[usize]) -> Result<Array> {
    of_elements(name, data, shape, Dtype::Uint32, size_of::<u32>())
}

fn of_elements(name: &str, data: TensorData<'_>, shape: &[usize], dtype: Dtype, size: usize) -> Result<Array> {
    let bytes = shape.iter().try_fold(size, |n, d| n.checked_mul(*d));
    data.check_len(name, bytes.unwrap_or(usize::MAX))?;
    let made = match &data {
        TensorData::Borrowed(bytes) => of_bytes(bytes, shape, dtype, size),
        TensorData::Bytes(bytes) => of_bytes(bytes, shape, dtype, size),
        TensorData::F32(values) if dtype == Dtype::Float32 => copied(values, shape, dtype),
        TensorData::Half(values) if size == size_of::<u16>() => copied(values, shape, dtype),
        other => {
            let reason = format!("its data came in a form that is not known here, of {} bytes", other.byte_len());
            return Err(Error::load(format!("tensor `{name}`"), reason));
        }
    };
    made.map_err(|e| load_error(&format!("tensor `{name}`"), "MLX has no array for it", e))
}

/// An array of f32 with these values.
///
/// # Errors
/// That of an allocator that said no, and one if the shape has another number of elements.
pub(crate) fn from_f32(values: &[f32], shape: &[usize]) -> mlx_rs::error::Result<Array> {
    copied(values, shape, Dtype::Float32)
}

/// Bytes may lie anywhere in a file, and not as elements must: they are copied as bytes, and that copy is then seen as
/// elements.
fn of_bytes(bytes: &[u8], shape: &[usize], dtype: Dtype, size: usize) -> mlx_rs::error::Result<Array> {
    let mut in_bytes = shape.to_vec();
    match in_bytes.last_mut() {
        Some(last) => *last *= size,
        None => in_bytes.push(size),
    }
    let elements = copied(bytes, &in_bytes, Dtype::Uint8)?.view_dtype(dtype)?;
    let elements = if shape.is_empty() { elements.reshape(&[])? } else { elements };
    // It shares the copy's memory, and lets go of the array of bytes.
    elements.eval()?;
    Ok(elements)
}

/// An array with a copy of `values`, which are elements of `dtype` by their bits.
fn copied<T: Copy>(values: &[T], shape: &[usize], dtype: Dtype) -> mlx_rs::error::Result<Array> {
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let lengths = shape.iter().map(|d| i32::try_from(*d)).collect::<std::result::Result<Vec<_>, _>>();
    let (Some(elements), Ok(lengths)) = (elements, lengths) else {
        return Err(Exception::custom(format!("the shape {shape:?} is beyond what MLX counts in 32 bits")));
    };
    if elements != values.len() {
        return Err(Exception::custom(format!("the shape {shape:?} has {elements} elements, not {}", values.len())));
    }
    check_room(size_of_val(values))?;
    // SAFETY: MLX reads as many elements as the shape has, which is how many there are, each of the size of `T`: both are
    // checked here and by `dtype_of`. It copies them before it returns. (`Array::from_slice`, which is safe, counts the bytes
    // of a shape in 32 bits, and panics for tensors of 2 GiB, which embeddings are.)
    let array = unsafe { Array::from_raw_data(values.as_ptr().cast(), &lengths, of_size::<T>(dtype)?) };
    // An array that could not be made has no content, and MLX's error is not told by whoever makes it, but by this.
    if array.as_ptr().ctx.is_null() {
        let error = array.eval().err();
        return Err(if elements == 0 { error.unwrap_or_else(|| no_memory(0)) } else { no_memory(size_of_val(values)) });
    }
    Ok(array)
}

/// `dtype`, if its elements are as large as `T`.
fn of_size<T>(dtype: Dtype) -> mlx_rs::error::Result<Dtype> {
    let size = match dtype {
        Dtype::Uint8 => 1,
        Dtype::Float16 | Dtype::Bfloat16 => 2,
        Dtype::Float32 | Dtype::Uint32 => 4,
        Dtype::Float64 => 8,
        other => return Err(Exception::custom(format!("no array of {other:?} is made of bits"))),
    };
    if size == size_of::<T>() { Ok(dtype) } else { Err(Exception::custom(format!("{dtype:?} has {size} bytes"))) }
}

/// Asks the system for as much first: MLX's allocator for the processor writes through the null pointer that it gets where there
/// is no memory (`CommonAllocator::malloc`, MLX 0.32). Metal's says so itself.
fn check_room(bytes: usize) -> mlx_rs::error::Result<()> {
    if cfg!(target_vendor = "apple") {
        return Ok(());
    }
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| no_memory(bytes))
}

/// All elements in order, in f32. Computes what is not computed yet.
///
/// # Errors
/// MLX's.
pub(crate) fn to_f32(array: &Array) -> mlx_rs::error::Result<Vec<f32>> {
    elements::<f32>(&array.as_dtype(Dtype::Float32)?)
}

/// All elements in order, as their bytes, little-endian. Computes what is not computed yet.
///
/// # Errors
/// MLX's.
pub(crate) fn to_bytes(array: &Array) -> mlx_rs::error::Result<Vec<u8>> {
    if array.size() == 0 {
        return Ok(Vec::new());
    }
    // MLX runs on little-endian machines alone.
    let flat = array.reshape(&[-1])?.contiguous()?;
    elements::<u8>(&flat.view_dtype(Dtype::Uint8)?)
}

/// All elements in order.
fn elements<T: ArrayElement + Clone>(array: &Array) -> mlx_rs::error::Result<Vec<T>> {
    if array.size() == 0 {
        return Ok(Vec::new());
    }
    let in_order = array.contiguous()?;
    match in_order.try_as_slice::<T>() {
        Ok(elements) => Ok(elements.to_vec()),
        Err(AsSliceError::Exception(error)) => Err(error),
        Err(error) => Err(Exception::custom(error.to_string())),
    }
}

#[cfg(test)]
mod tests;
