//! f16 to f32 and back, eight at a time where the processor has an instruction for that.
//!
//! The conversions of the crate `half` find out for each slice whether it has, and then call a function for every eight
//! values: five times as slow.

use bytemuck::Pod;
use half::f16;

/// Writes the values of f16 into `out`, exactly.
///
/// # Panics
/// If `out` has another length than `bits`.
pub fn widen_f16(bits: &[u16], out: &mut [f32]) {
    widen(bits, |bits| bits, out);
}

/// The same of little-endian bytes, which may be unaligned.
///
/// # Panics
/// If `out` has another length than `bytes`.
pub fn widen_f16_bytes(bytes: &[[u8; 2]], out: &mut [f32]) {
    widen(bytes, u16::from_le_bytes, out);
}

fn widen<T: Pod>(stored: &[T], bits: impl Fn(T) -> u16, out: &mut [f32]) {
    assert_eq!(stored.len(), out.len(), "as many f32 as f16");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: The processor has AVX and F16C.
    let done = if vectors::are_there() { unsafe { vectors::widen(stored, out) } } else { 0 };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    for (stored, out) in stored[done..].iter().zip(&mut out[done..]) {
        *out = f16::from_bits(bits(*stored)).to_f32();
    }
}

/// Writes the bits of the f16 that is nearest to each value, of two the even one; infinity beyond the largest.
///
/// # Panics
/// If `out` has another length than `values`.
pub fn narrow_to_f16(values: &[f32], out: &mut [u16]) {
    assert_eq!(values.len(), out.len(), "as many f16 as f32");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: The processor has AVX and F16C.
    let done = if vectors::are_there() { unsafe { vectors::narrow(values, out) } } else { 0 };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    for (value, out) in values[done..].iter().zip(&mut out[done..]) {
        *out = f16::from_f32(*value).to_bits();
    }
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::{__m128i, __m256, _MM_FROUND_TO_NEAREST_INT, _mm256_cvtph_ps, _mm256_cvtps_ph};

    use bytemuck::{Pod, cast};

    /// Whether the processor has what the functions below are compiled for.
    pub(super) fn are_there() -> bool {
        is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c")
    }

    /// Converts whole eights of little-endian f16, and tells how many values these are.
    #[target_feature(enable = "avx,f16c")]
    pub(super) fn widen<T: Pod>(stored: &[T], out: &mut [f32]) -> usize {
        let (stored, out) = (bytemuck::cast_slice::<T, [u8; 2]>(stored).as_chunks::<8>().0, out.as_chunks_mut::<8>().0);
        for (stored, out) in stored.iter().zip(&mut *out) {
            *out = cast::<__m256, _>(_mm256_cvtph_ps(cast::<_, __m128i>(*stored)));
        }
        8 * stored.len().min(out.len())
    }

    /// Converts whole eights, and tells how many values these are.
    #[target_feature(enable = "avx,f16c")]
    pub(super) fn narrow(values: &[f32], out: &mut [u16]) -> usize {
        let (values, out) = (values.as_chunks::<8>().0, out.as_chunks_mut::<8>().0);
        for (values, out) in values.iter().zip(&mut *out) {
            *out = cast(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(cast(*values)));
        }
        8 * values.len().min(out.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_widened_to_its_value_from_any_place() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let bytes: Vec<[u8; 2]> = bits.iter().map(|bits| bits.to_le_bytes()).collect();
        let same = |found: &[f32], from: usize| {
            bits[from..].iter().zip(found).all(|(bits, found)| {
                let value = f16::from_bits(*bits).to_f32();
                found.to_bits() == value.to_bits() || found.is_nan() && value.is_nan()
            })
        };
        for from in [0, 3] {
            let mut out = vec![-1.0; bits.len() - from];
            widen_f16(&bits[from..], &mut out);
            assert!(same(&out, from));
            out.fill(-1.0);
            widen_f16_bytes(&bytes[from..], &mut out);
            assert!(same(&out, from));
        }
    }

    #[test]
    fn values_are_narrowed_as_half_narrows_them() {
        // Each f16, and what is below, at and above the middle between it and the next.
        let around = |bits| {
            let value = f16::from_bits(bits).to_f32().to_bits();
            [0, 0xfff, 0x1000, 0x1001, 0x1fff].map(|low| f32::from_bits(value | low))
        };
        let mut values: Vec<f32> = (0..=u16::MAX).flat_map(around).filter(|value| !value.is_nan()).collect();
        // Those that are between f16's smallest, and beyond its largest.
        values.extend((0..200).map(|i| f32::from_bits(0x3300_0000 + i * 0x1_2345)));
        values.extend([65519.996, 65520.0, -65520.0, 1e9, f32::MAX, f32::MIN, f32::INFINITY]);
        let mut out = vec![1; values.len()];
        narrow_to_f16(&values, &mut out);
        for (value, found) in values.iter().zip(out) {
            assert_eq!(found, f16::from_f32(*value).to_bits(), "{value:e}");
        }
        let mut out = [7; 3];
        narrow_to_f16(&[f32::NAN; 3], &mut out);
        assert!(out.iter().all(|bits| f16::from_bits(*bits).is_nan()));
    }
}
