//! The widest vectors that the processor has, for loops that a compiler vectorizes: the crate is built for old ones.

use half::{f16, slice::HalfFloatSliceExt};

/// Loops, compiled once for each kind of vectors. Implementations, and what they call in their loops, are
/// `#[inline(always)]`, as only code that is inlined is compiled for those vectors.
pub(super) trait Loops {
    fn run<V: Vectors>(self, vectors: V);
}

/// What a compiler does not find by itself.
pub(super) trait Vectors: Copy {
    /// Writes as many floats as both have.
    fn widen(self, from: &[f16], to: &mut [f32]);
}

/// Runs `loops` with the widest vectors there are.
pub(super) fn run(loops: impl Loops) {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = x86::Avx2::new() {
        return x86::run(loops, avx2);
    }
    loops.run(Portable);
}

/// What the crate is built for.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Vectors for Portable {
    #[inline(always)]
    fn widen(self, from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};

    use half::f16;

    use super::{Loops, Vectors};

    /// That the processor has AVX2 and F16C.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(());

    impl Avx2 {
        pub(in super::super) fn new() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
        }
    }

    pub(super) fn run(loops: impl Loops, avx2: Avx2) {
        #[target_feature(enable = "avx2,f16c")]
        fn compiled_for(loops: impl Loops, avx2: Avx2) {
            loops.run(avx2);
        }
        // SAFETY: an `Avx2` is only made where the processor has both.
        unsafe { compiled_for(loops, avx2) }
    }

    impl Vectors for Avx2 {
        // `half` asks the processor again for every eight numbers: 2.4 µs instead of 1.0 for 8 rows of 1536 and their sums.
        #[inline(always)]
        fn widen(self, from: &[f16], to: &mut [f32]) {
            let (from, from_rest) = from.as_chunks::<8>();
            let (to, to_rest) = to.as_chunks_mut::<8>();
            for (from, to) in from.iter().zip(to) {
                // SAFETY: an `Avx2` is only made where the processor has F16C, and both arrays have the length of a vector,
                // which needs no alignment here.
                unsafe {
                    _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast::<__m128i>())))
                }
            }
            for (from, to) in from_rest.iter().zip(to_rest) {
                *to = from.to_f32();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct All<'a>(&'a [f16], &'a mut [f32]);

    impl Loops for All<'_> {
        #[inline(always)]
        fn run<V: Vectors>(self, vectors: V) {
            vectors.widen(self.0, self.1);
        }
    }

    #[test]
    fn every_kind_of_vectors_widens_every_number_alike() {
        let numbers: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|x| !x.is_nan()).collect();
        // One that is not whole vectors, and not aligned.
        for numbers in [&numbers[..], &numbers[3..40]] {
            let (mut widest, mut portable) = (vec![0f32; numbers.len()], vec![0f32; numbers.len()]);
            run(All(numbers, &mut widest));
            All(numbers, &mut portable).run(Portable);
            for ((x, widest), portable) in numbers.iter().zip(&widest).zip(&portable) {
                assert_eq!((widest.to_bits(), portable.to_bits()), (x.to_f32().to_bits(), x.to_f32().to_bits()), "{x}");
            }
        }
    }
}
