//! Values multiplied, in the type they are stored in where that is exact.

use std::borrow::Cow;

use half::{bf16, f16};
use llm_local_core::lora::Floats;

/// Each value times `factor`: in their type if all products are exact in it, else in f32, each rounded once. `None` if one
/// is beyond f32.
pub(super) fn multiplied(values: &Floats, factor: f64) -> Option<Cow<'_, Floats>> {
    if factor == 1.0 {
        return Some(Cow::Borrowed(values));
    }
    let product = |value: f64| value * factor;
    let exact = match values {
        Floats::F32(_) => None,
        Floats::F16(v) => {
            let one = |bits: &u16| {
                let product = product(f16::from_bits(*bits).to_f64());
                let stored = f16::from_f64(product);
                (stored.to_f64() == product).then_some(stored.to_bits())
            };
            v.iter().map(one).collect::<Option<_>>().map(Floats::F16)
        }
        Floats::Bf16(v) => {
            let one = |bits: &u16| {
                let product = product(bf16::from_bits(*bits).to_f64());
                let stored = bf16::from_f64(product);
                (stored.to_f64() == product).then_some(stored.to_bits())
            };
            v.iter().map(one).collect::<Option<_>>().map(Floats::Bf16)
        }
        other => unreachable!("{} is not a type of `Floats`", other.float_type()),
    };
    let multiplied = exact.unwrap_or_else(|| {
        let wide = crate::lora::floats::widened(values);
        Floats::F32(wide.into_iter().map(|value| product(f64::from(value)) as f32).collect())
    });
    crate::lora::floats::first_non_finite(&multiplied).is_none().then_some(Cow::Owned(multiplied))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_keep_a_type_and_other_factors_make_f32_of_it() {
        let one = f16::from_f64(1.0 + 1.0 / 1024.0).to_bits();
        let values = Floats::F16(vec![one, 0]);
        let by = |factor| multiplied(&values, factor).map(Cow::into_owned);
        assert_eq!(multiplied(&values, 1.0), Some(Cow::Borrowed(&values)));
        assert_eq!(by(-4.0), Some(Floats::F16(vec![f16::from_f64(-4.0 - 4.0 / 1024.0).to_bits(), 0x8000])));
        assert_eq!(by(3.0), Some(Floats::F32(vec![(3.0 + 3.0 / 1024.0) as f32, 0.0])));
        // The smallest step of a value this small cannot be halved, and nothing above 65504 is there.
        assert_eq!(by(1.0 / 65536.0 / 512.0).unwrap().float_type(), llm_local_core::FloatType::F32);
        assert_eq!(by(65536.0).unwrap().float_type(), llm_local_core::FloatType::F32);
        assert_eq!(by(1e60), None);
        let narrow = Floats::Bf16(vec![bf16::from_f64(1.5).to_bits()]);
        assert_eq!(multiplied(&narrow, 0.5), Some(Cow::Owned(Floats::Bf16(vec![bf16::from_f64(0.75).to_bits()]))));
    }
}
