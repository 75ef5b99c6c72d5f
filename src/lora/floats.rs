//! Stored floats to f32 and back, and what is asked about them.

use half::f16;
use llm_local_core::{FloatType, TensorData, lora::Floats};

/// Takes tensor data of the type `stored` over, in that type. The error continues a sentence that starts with the
/// tensor's name.
pub(super) fn own(data: TensorData<'_>, stored: FloatType) -> Result<Floats, String> {
    Ok(match (stored, data) {
        (FloatType::F32, TensorData::F32(values)) => Floats::F32(values),
        (FloatType::F16, TensorData::Half(bits)) => Floats::F16(bits),
        (FloatType::Bf16, TensorData::Half(bits)) => Floats::Bf16(bits),
        (FloatType::F32, TensorData::Borrowed(bytes)) => Floats::F32(f32s(bytes).collect()),
        (FloatType::F32, TensorData::Bytes(bytes)) => Floats::F32(f32s(&bytes).collect()),
        (FloatType::F16, TensorData::Borrowed(bytes)) => Floats::F16(u16s(bytes).collect()),
        (FloatType::F16, TensorData::Bytes(bytes)) => Floats::F16(u16s(&bytes).collect()),
        (FloatType::Bf16, TensorData::Borrowed(bytes)) => Floats::Bf16(u16s(bytes).collect()),
        (FloatType::Bf16, TensorData::Bytes(bytes)) => Floats::Bf16(u16s(&bytes).collect()),
        (stored, _) => return Err(format!("is stored as {stored}, which cannot be taken over as it came")),
    })
}

fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))
}

fn u16s(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b))
}

/// `count` values, of which `from` says what index each comes from; 0 where it says none.
pub(super) fn gathered(values: &Floats, count: usize, from: impl Fn(usize) -> Option<usize>) -> Floats {
    fn pick<T: Copy + Default>(values: &[T], count: usize, from: impl Fn(usize) -> Option<usize>) -> Vec<T> {
        (0..count).map(|i| from(i).map_or_else(T::default, |index| values[index])).collect()
    }
    match values {
        Floats::F32(v) => Floats::F32(pick(v, count, from)),
        Floats::F16(v) => Floats::F16(pick(v, count, from)),
        Floats::Bf16(v) => Floats::Bf16(pick(v, count, from)),
        other => unreachable!("{} is not a type of `Floats`", other.float_type()),
    }
}

/// Writes the floats from index `start` on into `out`, as f32 and each times `factor`. The product is taken in f64 and
/// rounded once.
pub(super) fn scale_into(values: &Floats, start: usize, factor: f64, out: &mut [f32]) {
    let range = start..start + out.len();
    let scaled = |value: f32| (f64::from(value) * factor) as f32;
    match values {
        Floats::F32(v) => out.iter_mut().zip(&v[range]).for_each(|(out, v)| *out = scaled(*v)),
        Floats::F16(v) => out.iter_mut().zip(&v[range]).for_each(|(out, v)| *out = scaled(f16::from_bits(*v).to_f32())),
        Floats::Bf16(v) => out.iter_mut().zip(&v[range]).for_each(|(out, v)| *out = scaled(widen_bf16(*v))),
        other => unreachable!("{} is not a type of `Floats`", other.float_type()),
    }
}

/// One of the floats as f32.
fn at(values: &Floats, index: usize) -> f32 {
    match values {
        Floats::F32(v) => v[index],
        Floats::F16(v) => f16::from_bits(v[index]).to_f32(),
        Floats::Bf16(v) => widen_bf16(v[index]),
        other => unreachable!("{} is not a type of `Floats`", other.float_type()),
    }
}

/// Where the first NaN or infinite value is, and what it is.
pub(super) fn first_non_finite(values: &Floats) -> Option<(usize, f32)> {
    (0..values.len()).map(|i| (i, at(values, i))).find(|(_, v)| !v.is_finite())
}

/// Whether `B @ A` is zero for each of so many experts, with A of shape (experts, rank, in) and B of shape (experts, out,
/// rank), because for each rank the row of A or the column of B is. (That terms of several ranks cancel exactly is left
/// aside.) A pair of matrices is that of one expert.
pub(super) fn stacked_product_is_zero(a: &Floats, b: &Floats, experts: usize, rank: usize) -> bool {
    let pairs = experts * rank;
    let (columns, rows) = (a.len() / pairs, b.len() / pairs);
    let a_is_zero = |e: usize, k: usize| (0..columns).all(|c| at(a, (e * rank + k) * columns + c) == 0.0);
    let b_is_zero = |e: usize, k: usize| (0..rows).all(|r| at(b, (e * rows + r) * rank + k) == 0.0);
    (0..experts).all(|e| (0..rank).all(|k| a_is_zero(e, k) || b_is_zero(e, k)))
}

/// A matrix of `columns` columns, its rows and columns exchanged.
pub(super) fn transposed(values: &Floats, columns: usize) -> Floats {
    fn exchange<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
        let rows = values.len() / columns;
        (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
    }
    match values {
        Floats::F32(v) => Floats::F32(exchange(v, columns)),
        Floats::F16(v) => Floats::F16(exchange(v, columns)),
        Floats::Bf16(v) => Floats::Bf16(exchange(v, columns)),
        other => unreachable!("{} is not a type of `Floats`", other.float_type()),
    }
}

/// All of them as f32, exactly.
pub(super) fn widened(values: &Floats) -> Vec<f32> {
    (0..values.len()).map(|i| at(values, i)).collect()
}

/// Whether `scale * (B @ A)`, with A of shape (rank, in) and B of shape (out, rank), is zero in the arithmetic of the merge, which rounds
/// `scale * B` to f32 and multiplies in f32: each term is 0, or too small for an f32.
pub(super) fn scaled_product_is_zero(a: &Floats, b: &Floats, rank: usize, scale: f64) -> bool {
    let (columns, rows) = (a.len() / rank, b.len() / rank);
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |most, v| most.max(v.abs()));
    (0..rank).all(|k| {
        let b = largest(&mut (0..rows).map(|r| at(b, r * rank + k)));
        let a = largest(&mut (0..columns).map(|c| at(a, k * columns + c)));
        (f64::from(b) * scale) as f32 * a == 0.0
    })
}

/// Exact: bfloat16 is the upper half of f32.
pub(super) fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to nearest, ties to even; values beyond bfloat16 become infinite. Not for NaN.
///
/// Unlike the conversion of `half`, it has no branch (that one is for NaN), so that a loop of it is vectorized.
pub(super) fn narrow_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let odd = (bits >> 16) & 1;
    (bits.wrapping_add(0x7fff + odd) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn bfloat16_conversions_are_those_of_half() {
        for bits in 0..=u16::MAX {
            let wide = bf16::from_bits(bits).to_f32();
            assert!(widen_bf16(bits) == wide || wide.is_nan() && widen_bf16(bits).is_nan());
            if wide.is_nan() {
                continue;
            }
            // Below, at and above the middle between two neighbours, where rounding decides.
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(wide.to_bits() | low);
                if !value.is_nan() {
                    assert_eq!(narrow_bf16(value), bf16::from_f32(value).to_bits(), "{value}");
                }
            }
        }
    }

    #[test]
    fn a_product_is_zero_when_each_rank_has_a_zero_row_or_column() {
        let zero =
            |a: &[f32], b: &[f32]| stacked_product_is_zero(&Floats::F32(a.to_vec()), &Floats::F32(b.to_vec()), 1, 2);
        assert!(zero(&[0., 0., 1., 2.], &[3., 0., 4., 0.]));
        assert!(zero(&[1., 2., 3., 4.], &[0., -0., 0., 0.]));
        assert!(!zero(&[0., 1e-30, 1., 2.], &[3., 0., 4., 0.]));
        assert!(stacked_product_is_zero(&Floats::Bf16(vec![0x3f80]), &Floats::F16(vec![0x8000]), 1, 1));
    }

    #[test]
    fn a_stacked_product_is_zero_when_that_of_each_expert_is() {
        // Two experts of rank 1: A (2, 1, 2), B (2, 3, 1).
        let zero = |a: [f32; 4], b: [f32; 6]| {
            stacked_product_is_zero(&Floats::F32(a.to_vec()), &Floats::F32(b.to_vec()), 2, 1)
        };
        assert!(zero([0., 0., 1., 2.], [5., 6., 7., 0., 0., 0.]));
        assert!(!zero([0., 0., 1., 2.], [5., 6., 7., 0., 0., 8.]));
        assert!(!zero([0., 3., 1., 2.], [5., 6., 7., 0., 0., 0.]));
    }

    #[test]
    fn a_matrix_is_transposed_in_the_type_it_is_stored_in() {
        let matrix = Floats::F32(vec![1., 2., 3., 4., 5., 6.]);
        assert_eq!(transposed(&matrix, 3), Floats::F32(vec![1., 4., 2., 5., 3., 6.]));
        assert_eq!(transposed(&transposed(&matrix, 3), 2), matrix);
        assert_eq!(transposed(&Floats::Bf16(vec![1, 2, 3]), 1), Floats::Bf16(vec![1, 2, 3]));
        assert_eq!(transposed(&Floats::F16(vec![1, 2, 3, 4]), 2), Floats::F16(vec![1, 3, 2, 4]));
    }

    #[test]
    fn a_scaled_product_is_zero_when_every_term_is_too_small_for_f32() {
        let zero = |a: f32, b: f32, scale| {
            scaled_product_is_zero(&Floats::F32(vec![0.0, a]), &Floats::F32(vec![1.0, b]), 2, scale)
        };
        assert!(!zero(-0.5, 0.5, -1e-40));
        assert!(zero(0.5, 0.5, 1e-46));
        assert!(zero(1e-30, 1e-30, 1.0) && !zero(1e-30, 1e-30, 1e20));
        // The merge rounds `scale * B` first: a large A does not bring it back.
        assert!(zero(1e30, 1.0, 1e-60));
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found() {
        assert_eq!(first_non_finite(&Floats::F32(vec![0., f32::MAX])), None);
        assert_eq!(first_non_finite(&Floats::F16(vec![0, 0x7bff, 0x7c00])), Some((2, f32::INFINITY)));
        assert!(first_non_finite(&Floats::Bf16(vec![0x7fc0])).unwrap().1.is_nan());
    }
}
