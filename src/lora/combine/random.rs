//! The random numbers of torch's CPU generator.

use rand_mt::Mt;

/// torch's CPU generator after `torch.manual_seed`: MT19937 of the seed's low 32 bits (`aten/src/ATen/core/
/// MT19937RNGEngine.h`).
#[derive(Debug, Clone)]
pub(super) struct TorchRandom {
    engine: Mt,
    /// Small tensors of normal numbers take them in pairs, and keep the second of one for the next.
    has_normal: bool,
}

impl TorchRandom {
    pub(super) fn new(seed: u64) -> Self {
        Self { engine: Mt::new(seed as u32), has_normal: false }
    }

    /// One value of `torch.bernoulli` on floats: whether a uniform number of 24 bits is below `probability`
    /// (`DistributionsHelper.h`, `TransformationHelper.h`).
    pub(super) fn bernoulli(&mut self, probability: f32) -> bool {
        const BITS: u32 = 24;
        let uniform = (self.engine.next_u32() & ((1 << BITS) - 1)) as f32 / (1 << BITS) as f32;
        uniform < probability
    }

    /// Passes over what `uniform_`, or `bernoulli`, of so many f32 values takes.
    pub(super) fn skip_uniform(&mut self, count: usize) {
        (0..count).for_each(|_| {
            self.engine.next_u32();
        });
    }

    /// Passes over what `normal_` of so many f32 values takes (`native/cpu/DistributionTemplates.h`): one number a value and
    /// the last 16 again where they are no whole 16, or below 16 values two 64-bit numbers for two values.
    pub(super) fn skip_normal(&mut self, count: usize) {
        if count >= 16 {
            return self.skip_uniform(count + if count.is_multiple_of(16) { 0 } else { 16 });
        }
        for _ in 0..count {
            if !self.has_normal {
                self.skip_uniform(4);
            }
            self.has_normal = !self.has_normal;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_those_of_torch_bernoulli_for_the_seed() {
        // torch 2.9.0: torch.manual_seed(s); torch.bernoulli(torch.full((24,), 0.3)).
        for (seed, expected) in [SEED_0, SEED_7, SEED_AFTER_32_BITS] {
            let mut random = TorchRandom::new(seed);
            let mask: String = (0..24).map(|_| if random.bernoulli(0.3) { '1' } else { '0' }).collect();
            assert_eq!(mask, expected, "seed {seed}");
        }
    }

    #[test]
    fn normal_numbers_take_as_many_draws_as_in_torch() {
        // torch 2.9.0: torch.manual_seed(5); torch.randn(n) for each n; torch.rand(1) * 2**24.
        for (counts, expected) in NORMALS {
            let mut random = TorchRandom::new(5);
            counts.iter().for_each(|count| random.skip_normal(*count));
            assert_eq!(random.engine.next_u32() & 0xff_ffff, expected, "{counts:?}");
        }
    }

    const SEED_0: (u64, &str) = (0, "001100000000111000110000");
    const SEED_7: (u64, &str) = (7, "010010100000110001010000");
    const SEED_AFTER_32_BITS: (u64, &str) = ((1 << 32) + 7, "010010100000110001010000");
    const NORMALS: [(&[usize], u32); 7] = [
        (&[], 13929315),
        (&[32], 740989),
        (&[36], 6658724),
        (&[9], 11236789),
        (&[3, 2], 1214875),
        (&[3, 36, 1], 3732585),
        (&[1, 15], 740989),
    ];
}
