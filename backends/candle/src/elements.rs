//! Tensor data into candle's tensors, and back.

use std::slice;

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16, vec::HalfBitsVecExt};
use llm_local_core::{Error, FloatType, Result, TensorData, TensorSource, model::RowOrder};

/// What a row of a tensor's data is made of: a float, or a byte of a block.
pub(crate) trait Element: Copy + 'static {
    /// Bytes of one.
    const SIZE: usize;

    /// One from as many little-endian bytes.
    fn from_le(bytes: &[u8]) -> Self;

    /// The elements of `data` if it came as such, else its bytes.
    fn elements<'a>(data: TensorData<'a>) -> Option<Elements<'a, Self>>;
}

/// A float that tensors can be read as.
pub(crate) trait Float: Element + WithDType {
    /// Its name in the contract.
    const FLOAT: FloatType;

    /// So many zeros, in memory that the system zeroes when it is first used.
    fn zeros(count: usize) -> Vec<Self>;
}

/// Data in one of the forms it comes in.
pub(crate) enum Elements<'a, T> {
    Owned(Vec<T>),
    Borrowed(&'a [u8]),
    Bytes(Vec<u8>),
}

impl Element for u8 {
    const SIZE: usize = 1;

    fn from_le(bytes: &[u8]) -> Self {
        bytes[0]
    }

    fn elements(data: TensorData<'_>) -> Option<Elements<'_, Self>> {
        match data {
            TensorData::Borrowed(bytes) => Some(Elements::Borrowed(bytes)),
            TensorData::Bytes(bytes) => Some(Elements::Owned(bytes)),
            _ => None,
        }
    }
}

macro_rules! float {
    ($type:ty, $float:ident, $variant:ident, $zero:expr, $convert:expr) => {
        impl Element for $type {
            const SIZE: usize = size_of::<$type>();

            fn from_le(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<$type>()];
                own.copy_from_slice(bytes);
                <$type>::from_le_bytes(own)
            }

            fn elements(data: TensorData<'_>) -> Option<Elements<'_, Self>> {
                match data {
                    TensorData::Borrowed(bytes) => Some(Elements::Borrowed(bytes)),
                    TensorData::Bytes(bytes) => Some(Elements::Bytes(bytes)),
                    TensorData::$variant(v) => Some(Elements::Owned($convert(v))),
                    _ => None,
                }
            }
        }

        impl Float for $type {
            const FLOAT: FloatType = FloatType::$float;

            fn zeros(count: usize) -> Vec<Self> {
                $convert(vec![$zero; count])
            }
        }
    };
}

float!(f32, F32, F32, 0f32, |v| v);
float!(f16, F16, Half, 0u16, |v: Vec<u16>| v.reinterpret_into::<f16>());
float!(bf16, Bf16, Half, 0u16, |v: Vec<u16>| v.reinterpret_into::<bf16>());

/// Floats one below another: each of `parts`, so many elements, by what `read` writes into its little-endian bytes.
pub(crate) fn stack<T: Float>(parts: &[usize], mut read: impl FnMut(usize, &mut [u8]) -> Result<()>) -> Result<Vec<T>> {
    let mut all = T::zeros(parts.iter().sum());
    let mut rest = &mut all[..];
    for (i, count) in parts.iter().enumerate() {
        let (part, after) = rest.split_at_mut(*count);
        rest = after;
        // SAFETY: these are the bytes of `part`, which is borrowed mutably for as long as they are. Floats are plain
        // numbers without padding, of which any bits are one, and bytes need no alignment.
        let bytes = unsafe { slice::from_raw_parts_mut(part.as_mut_ptr().cast::<u8>(), size_of_val(part)) };
        read(i, bytes)?;
        if cfg!(target_endian = "big") {
            for (number, bytes) in bytes.to_vec().chunks_exact(T::SIZE).enumerate() {
                part[number] = T::from_le(bytes);
            }
        }
    }
    Ok(all)
}

/// Appends the rows of `data`, each of `row` elements, to `all`; with `order` they come in that of GGUF files, and are put
/// back. Owned data that is all there is to be is moved.
pub(crate) fn append<T: Element>(
    all: &mut Vec<T>,
    name: &str,
    data: TensorData<'_>,
    row: usize,
    order: Option<RowOrder>,
) -> Result<()> {
    let elements = T::elements(data).ok_or_else(|| Error::load(name, "its data did not come in the type asked for"))?;
    match elements {
        Elements::Owned(v) if order.is_none() && all.capacity() == 0 => *all = v,
        Elements::Owned(v) => in_order(v.len() / row, order, |r| all.extend_from_slice(&v[r * row..(r + 1) * row])),
        Elements::Borrowed(bytes) => append_bytes(all, bytes, row, order),
        Elements::Bytes(bytes) => append_bytes(all, &bytes, row, order),
    }
    Ok(())
}

fn append_bytes<T: Element>(all: &mut Vec<T>, bytes: &[u8], row: usize, order: Option<RowOrder>) {
    let size = row * T::SIZE;
    all.reserve(bytes.len() / T::SIZE);
    match order {
        None => all.extend(bytes.chunks_exact(T::SIZE).map(T::from_le)),
        order => in_order(bytes.len() / size, order, |r| {
            all.extend(bytes[r * size..(r + 1) * size].chunks_exact(T::SIZE).map(T::from_le));
        }),
    }
}

fn in_order(rows: usize, order: Option<RowOrder>, mut take: impl FnMut(usize)) {
    for row in 0..rows {
        take(order.map_or(row, |order| order.stored(row)));
    }
}

/// The floats of the tensor `name`, as f32.
pub(crate) fn read_f32(source: &dyn TensorSource, name: &str) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    append::<f32>(&mut all, name, source.read(name, Some(FloatType::F32))?, 1, None)?;
    Ok(all)
}

/// candle's name of a float type; those it does not compute in are f32.
pub(crate) fn candle_dtype(t: FloatType) -> DType {
    match t {
        FloatType::F16 => DType::F16,
        FloatType::Bf16 => DType::BF16,
        _ => DType::F32,
    }
}

/// The contract's name of one that [`candle_dtype`] gave.
pub(crate) fn float_type(t: DType) -> FloatType {
    match t {
        DType::F16 => FloatType::F16,
        DType::BF16 => FloatType::Bf16,
        _ => FloatType::F32,
    }
}

/// The elements of `t`, row-major, in their own type.
pub(crate) fn little_endian(t: &Tensor) -> candle_core::Result<Vec<u8>> {
    let t = t.flatten_all()?.to_device(&Device::Cpu)?;
    Ok(match t.dtype() {
        DType::F16 => t.to_vec1::<f16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::BF16 => t.to_vec1::<bf16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => t.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Element>(data: TensorData<'_>, row: usize, order: Option<RowOrder>) -> Vec<T> {
        let mut all = Vec::new();
        append::<T>(&mut all, "t", data, row, order).unwrap();
        all
    }

    #[test]
    fn data_in_any_form_becomes_the_same_numbers() {
        let numbers = [1.5f32, -2.0, 0.25, 96.0];
        let bits: Vec<u16> = numbers.iter().map(|x| f16::from_f32(*x).to_bits()).collect();
        let half: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
        let mut full: Vec<u8> = vec![0]; // one byte in front, so that the numbers are not aligned
        full.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        for data in
            [TensorData::F32(numbers.to_vec()), TensorData::Borrowed(&full[1..]), TensorData::Bytes(full[1..].to_vec())]
        {
            assert_eq!(read::<f32>(data, 2, None), numbers);
        }
        for data in [TensorData::Half(bits), TensorData::Borrowed(&half), TensorData::Bytes(half.clone())] {
            assert_eq!(read::<f16>(data, 2, None), numbers.map(f16::from_f32));
        }
        assert!(append::<f32>(&mut Vec::new(), "t", TensorData::Half(vec![0]), 1, None).is_err());
    }

    #[test]
    fn rows_of_permuted_heads_are_put_back_whole() {
        // Two heads of four dimensions, rows of two bytes: 0 2 1 3 is how llama.cpp's converter stores 0 1 2 3.
        let stored: Vec<u8> = [0, 2, 1, 3, 4, 6, 5, 7].iter().flat_map(|r| [10 * r, 10 * r + 1]).collect();
        let back: Vec<u8> = (0..8).flat_map(|r| [10 * r, 10 * r + 1]).collect();
        let order = Some(RowOrder::new(4));
        assert_eq!(read::<u8>(TensorData::Borrowed(&stored), 2, order), back);
        assert_eq!(read::<u8>(TensorData::Bytes(stored.clone()), 2, order), back);
        let floats = |bytes: &[u8]| bytes.iter().map(|b| f32::from(*b)).collect::<Vec<_>>();
        assert_eq!(read::<f32>(TensorData::F32(floats(&stored)), 2, order), floats(&back));
    }

    #[test]
    fn parts_are_read_into_their_places() {
        fn stacked<T: Float>(numbers: [f32; 3], le: impl Fn(f32) -> Vec<u8>) -> Vec<T> {
            let parts = [2, 0, 1];
            let from = [0, 2, 2];
            let read = |i: usize, out: &mut [u8]| {
                assert!(out.iter().all(|byte| *byte == 0), "{out:?}");
                out.copy_from_slice(
                    &numbers[from[i]..from[i] + parts[i]].iter().flat_map(|x| le(*x)).collect::<Vec<_>>(),
                );
                Ok(())
            };
            stack(&parts, read).unwrap()
        }
        let numbers = [1.5, -2.0, 0.25];
        assert_eq!(stacked::<f32>(numbers, |x| x.to_le_bytes().to_vec()), numbers);
        assert_eq!(stacked::<f16>(numbers, |x| f16::from_f32(x).to_le_bytes().to_vec()), numbers.map(f16::from_f32));
        assert_eq!(stacked::<bf16>(numbers, |x| bf16::from_f32(x).to_le_bytes().to_vec()), numbers.map(bf16::from_f32));
        let broken = |i: usize, _: &mut [u8]| if i == 1 { Err(Error::load("b", "it is broken")) } else { Ok(()) };
        assert!(stack::<f32>(&[1, 1, 1], broken).unwrap_err().to_string().contains("broken"));
    }

    #[test]
    fn parts_are_put_one_below_another() {
        let mut all = Vec::with_capacity(4);
        append::<f32>(&mut all, "a", TensorData::F32(vec![1.0, 2.0]), 1, None).unwrap();
        append::<f32>(&mut all, "b", TensorData::Borrowed(&3f32.to_le_bytes()), 1, None).unwrap();
        assert_eq!(all, [1.0, 2.0, 3.0]);
    }
}
