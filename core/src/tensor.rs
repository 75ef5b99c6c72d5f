//! Tensors by name: how weights reach a backend.

use std::fmt;

use crate::{Error, Result};

/// Tensors by name. The merge of an adapter is a `TensorSource` around another one.
pub trait TensorSource: Send + Sync {
    /// What there is. The order is stable, and each name stands there once.
    fn entries(&self) -> &[TensorEntry];

    /// The data of the tensor `name`, row-major.
    ///
    /// Without `want` in the encoding it is stored in; with `want` in that float type, little-endian, whatever float
    /// it is stored in. A part of a tensor (scales, biases) is read by its own name.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] if there is no such tensor, or [`Error::Unsupported`] if it cannot be given as `want`.
    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>>;

    /// Writes the data of the tensor `name` into `out`: what [`TensorSource::read`] gives, but into memory that the caller
    /// has, such as a part of a larger matrix. Afterwards `out` is complete, or there was an error and it holds anything.
    ///
    /// The default copies what `read` gives. Sources that compute what they give override it, and save the copy.
    ///
    /// # Errors
    /// Those of [`TensorSource::read`]; [`Error::LoadFailed`] if the data does not have the length of `out`, in bytes.
    fn read_into(&self, name: &str, want: Option<FloatType>, out: &mut [u8]) -> Result<()> {
        self.read(name, want)?.write_to(name, out)
    }

    /// Whether what reading leaves behind depends on the order of the reads. A backend reads such a source on one thread, in
    /// an order that is the same for each load of a model; others it may read on several at a time.
    fn depends_on_order(&self) -> bool {
        false
    }

    /// The entry of the tensor `name`. Sources with many tensors override the default, a linear search.
    fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.entries().iter().find(|e| e.name == name)
    }
}

const _: fn(&dyn TensorSource) = |_| {};

/// One tensor of a [`TensorSource`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorEntry {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its logical shape, outermost dimension first: (out, in) for a linear layer, in GGUF too.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub encoding: Encoding,
    /// Names of the tensors that belong to its encoding: scales and biases of [`Encoding::MlxAffine`], in this order. They are
    /// entries of their own.
    pub parts: Vec<String>,
}

impl TensorEntry {
    /// A tensor without parts.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, encoding: Encoding) -> Self {
        Self { name: name.into(), shape, encoding, parts: Vec::new() }
    }

    /// Number of elements, or `None` if that overflows.
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// Bytes as stored, without its parts; `None` on overflow, or if rows are not whole blocks of a quantized encoding.
    pub fn stored_bytes(&self) -> Option<usize> {
        let elements = self.elements()?;
        let bits = |bits: usize| elements.checked_mul(bits).filter(|b| b % 8 == 0).map(|b| b / 8);
        match self.encoding {
            Encoding::Float(t) => elements.checked_mul(t.size()),
            Encoding::Int(t) => elements.checked_mul(t.size()),
            Encoding::Ggml(t) => {
                let (block, bytes) = t.block();
                let row = self.shape.last().copied().unwrap_or(1);
                (row % block == 0).then_some(elements / block).and_then(|n| n.checked_mul(bytes))
            }
            Encoding::MlxAffine { bits: b, .. } => bits(b as usize),
        }
    }
}

/// A shape as messages have it: `(128, 8)`.
pub fn shape_text(shape: &[usize]) -> String {
    let dimensions: Vec<_> = shape.iter().map(usize::to_string).collect();
    format!("({})", dimensions.join(", "))
}

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// Plain floats.
    Float(FloatType),
    /// Plain integers.
    Int(IntType),
    /// A quantized block format of ggml.
    Ggml(GgmlType),
    /// MLX's affine quantization: `bits` per weight packed into u32, one scale and bias per `group_size` weights.
    MlxAffine {
        /// Bits per weight.
        bits: u8,
        /// Weights that share a scale and a bias.
        group_size: u32,
    },
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(t) => t.fmt(f),
            Self::Int(t) => t.fmt(f),
            Self::Ggml(t) => t.fmt(f),
            Self::MlxAffine { bits, group_size } => write!(f, "mlx-affine({bits} bits, group {group_size})"),
        }
    }
}

/// A float type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FloatType {
    /// 64-bit.
    F64,
    /// 32-bit.
    F32,
    /// 16-bit IEEE.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

macro_rules! int_types {
    ($($variant:ident $name:literal $size:literal,)*) => {
        /// An integer type.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum IntType { $(#[doc = concat!("`", $name, "`.")] $variant,)* }

        impl IntType {
            /// Bytes per element.
            pub const fn size(self) -> usize {
                match self { $(Self::$variant => $size,)* }
            }
        }

        impl fmt::Display for IntType {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $name,)* })
            }
        }
    };
}

int_types! {
    Bool "bool" 1, U8 "u8" 1, I8 "i8" 1, U16 "u16" 2, I16 "i16" 2, U32 "u32" 4, I32 "i32" 4, U64 "u64" 8, I64 "i64" 8,
}

macro_rules! ggml_types {
    ($($variant:ident $name:literal $id:literal $block:literal $bytes:literal,)*) => {
        /// A quantized block format of ggml (`ggml.h`, `enum ggml_type`; sizes from `ggml-common.h`). Plain floats and
        /// integers of GGUF files are [`Encoding::Float`] and [`Encoding::Int`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types)] // ggml's own names
        #[non_exhaustive]
        pub enum GgmlType { $(#[doc = concat!("`", $name, "`.")] $variant,)* }

        impl GgmlType {
            /// Elements per block, and bytes per block.
            pub const fn block(self) -> (usize, usize) {
                match self { $(Self::$variant => ($block, $bytes),)* }
            }

            /// The number of this type in GGUF files.
            pub const fn id(self) -> u32 {
                match self { $(Self::$variant => $id,)* }
            }

            /// The type with the number `id`, if it is a quantized one and known.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$variant),)* _ => None }
            }
        }

        impl fmt::Display for GgmlType {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $name,)* })
            }
        }
    };
}

ggml_types! {
    Q4_0 "Q4_0" 2 32 18, Q4_1 "Q4_1" 3 32 20, Q5_0 "Q5_0" 6 32 22, Q5_1 "Q5_1" 7 32 24,
    Q8_0 "Q8_0" 8 32 34, Q8_1 "Q8_1" 9 32 36, Q2_K "Q2_K" 10 256 84, Q3_K "Q3_K" 11 256 110,
    Q4_K "Q4_K" 12 256 144, Q5_K "Q5_K" 13 256 176, Q6_K "Q6_K" 14 256 210, Q8_K "Q8_K" 15 256 292,
    IQ2_XXS "IQ2_XXS" 16 256 66, IQ2_XS "IQ2_XS" 17 256 74, IQ3_XXS "IQ3_XXS" 18 256 98,
    IQ1_S "IQ1_S" 19 256 50, IQ4_NL "IQ4_NL" 20 32 18, IQ3_S "IQ3_S" 21 256 110, IQ2_S "IQ2_S" 22 256 82,
    IQ4_XS "IQ4_XS" 23 256 136, IQ1_M "IQ1_M" 29 256 56, TQ1_0 "TQ1_0" 34 256 54, TQ2_0 "TQ2_0" 35 256 66,
    MXFP4 "MXFP4" 39 32 17, NVFP4 "NVFP4" 40 64 36, Q1_0 "Q1_0" 41 128 18,
}

/// The data of a tensor, row-major, little-endian.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum TensorData<'a> {
    /// Bytes of the source, in the type asked for. They may be unaligned.
    Borrowed(&'a [u8]),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats of the type asked for, as bits.
    Half(Vec<u16>),
    /// Bytes in the encoding of the entry.
    Bytes(Vec<u8>),
}

impl TensorData<'_> {
    /// Bytes that the data has.
    pub fn byte_len(&self) -> usize {
        match self {
            Self::Borrowed(b) => b.len(),
            Self::F32(v) => v.len() * 4,
            Self::Half(v) => v.len() * 2,
            Self::Bytes(v) => v.len(),
        }
    }

    /// Checks that the data, of the tensor `name`, has `expected` bytes.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] if it has not.
    pub fn check_len(&self, name: &str, expected: usize) -> Result<()> {
        let found = self.byte_len();
        if found == expected {
            return Ok(());
        }
        Err(Error::load(format!("tensor `{name}`"), format!("its data has {found} bytes; {expected} were expected")))
    }

    /// Writes the data, of the tensor `name`, into `out`, little-endian.
    ///
    /// # Errors
    /// That of [`TensorData::check_len`], if `out` has another length; nothing is written then.
    pub fn write_to(&self, name: &str, out: &mut [u8]) -> Result<()> {
        self.check_len(name, out.len())?;
        self.copy_to(out);
        Ok(())
    }

    /// Writes the data into `out`, little-endian.
    ///
    /// # Panics
    /// If `out` does not have [`TensorData::byte_len`] bytes.
    pub fn copy_to(&self, out: &mut [u8]) {
        assert_eq!(out.len(), self.byte_len(), "bytes of a tensor into memory of another length");
        match self {
            Self::Borrowed(b) => out.copy_from_slice(b),
            Self::Bytes(v) => out.copy_from_slice(v),
            Self::F32(v) => out.as_chunks_mut().0.iter_mut().zip(v).for_each(|(out, v)| *out = v.to_le_bytes()),
            Self::Half(v) => out.as_chunks_mut().0.iter_mut().zip(v).for_each(|(out, v)| *out = v.to_le_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_bytes_follow_the_encoding_and_never_overflow() {
        let entry = |shape: &[usize], encoding| TensorEntry::new("t", shape.to_vec(), encoding);
        assert_eq!(entry(&[3, 64], Encoding::Ggml(GgmlType::Q4_0)).stored_bytes(), Some(3 * 2 * 18));
        assert_eq!(entry(&[64, 3], Encoding::Ggml(GgmlType::Q4_0)).stored_bytes(), None);
        assert_eq!(entry(&[2, 3], Encoding::Float(FloatType::Bf16)).stored_bytes(), Some(12));
        let affine = Encoding::MlxAffine { bits: 4, group_size: 64 };
        assert_eq!(entry(&[2, 64], affine).stored_bytes(), Some(64));
        assert_eq!(entry(&[usize::MAX, 2], Encoding::Float(FloatType::F32)).stored_bytes(), None);
        assert_eq!(entry(&[], Encoding::Float(FloatType::F32)).stored_bytes(), Some(4));
    }

    #[test]
    fn a_shape_of_any_number_of_dimensions_is_shown() {
        let shapes: [&[usize]; 3] = [&[], &[8], &[128, 8]];
        assert_eq!(shapes.map(shape_text), ["()", "(8)", "(128, 8)"]);
    }

    #[test]
    fn data_of_every_form_is_copied_as_little_endian_bytes() {
        let copied = |data: TensorData<'_>| {
            let mut out = vec![0; data.byte_len()];
            data.copy_to(&mut out);
            out
        };
        assert_eq!(copied(TensorData::F32(vec![1.5, -2.0])), [0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0]);
        assert_eq!(copied(TensorData::Half(vec![0x3e00, 0x1234])), [0, 0x3e, 0x34, 0x12]);
        assert_eq!(copied(TensorData::Borrowed(&[1, 2, 3])), [1, 2, 3]);
        assert_eq!(copied(TensorData::Bytes(vec![4, 5])), [4, 5]);
    }

    #[test]
    fn data_of_another_length_than_the_memory_for_it_is_an_error_that_names_both() {
        struct Two;
        impl TensorSource for Two {
            fn entries(&self) -> &[TensorEntry] {
                &[]
            }
            fn read(&self, _: &str, _: Option<FloatType>) -> Result<TensorData<'_>> {
                Ok(TensorData::F32(vec![1.0, 2.0]))
            }
        }
        let error = Two.read_into("w", None, &mut [0; 6]).unwrap_err().to_string();
        assert!(error.contains("`w`") && error.contains("8 bytes") && error.contains("6 were"), "{error}");
        assert!(Two.read_into("w", None, &mut [0; 8]).is_ok());
    }

    #[test]
    fn ggml_ids_round_trip() {
        for id in 0..64 {
            if let Some(t) = GgmlType::from_id(id) {
                assert_eq!(t.id(), id);
            }
        }
        assert_eq!(GgmlType::from_id(12), Some(GgmlType::Q4_K));
        assert_eq!(GgmlType::from_id(40).map(GgmlType::block), Some((64, 36)));
        assert_eq!(GgmlType::from_id(41).map(GgmlType::block), Some((128, 18)));
        // Files of a fork give 42 another block size than ggml does.
        assert_eq!(GgmlType::from_id(42), None);
    }
}
