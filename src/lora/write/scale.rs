//! Scales that differ, where the format has one for all.

use std::borrow::Cow;

use llm_local_core::{LoraModule, lora::Floats};

use super::gather::multiplied;

/// The number that most of `numbers` are, and of several such the first.
pub(super) fn most_common(numbers: &[f64]) -> Option<f64> {
    let count = |number: &f64| numbers.iter().filter(|other| *other == number).count();
    let mut best = None;
    for number in numbers {
        let count = count(number);
        if best.is_none_or(|(most, _)| count > most) {
            best = Some((count, *number));
        }
    }
    best.map(|(_, number)| number)
}

/// The B of each of `modules`, multiplied by its factor, and a note of those whose type that changed.
pub(super) fn folded<'a>(
    modules: &'a [LoraModule],
    factor: impl Fn(&LoraModule) -> f64,
    what: &str,
) -> Result<(Vec<Cow<'a, Floats>>, Option<String>), String> {
    let (mut factors, mut widened) = (Vec::with_capacity(modules.len()), Vec::new());
    for module in modules {
        let by = factor(module);
        let b = multiplied(&module.b, by).ok_or_else(|| {
            format!(
                "`{}` has the scale {}, which {what} cannot hold beside the others: multiplied by {by}, its B is beyond \
                 f32",
                module.name, module.scale
            )
        })?;
        if b.float_type() != module.b.float_type() {
            widened.push(module.name.as_str());
        }
        factors.push(b);
    }
    let note = (!widened.is_empty()).then(|| {
        format!(
            "{what} has one scale or alpha for all modules, so B of {} is multiplied by the rest of its own and stored as f32",
            crate::lora::message::some_of(&widened)
        )
    });
    Ok((factors, note))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_most_modules_have_is_taken_and_of_several_the_first() {
        assert_eq!(most_common(&[]), None);
        assert_eq!(most_common(&[2.0, 1.0, 1.0]), Some(1.0));
        assert_eq!(most_common(&[3.0, 1.0, 1.0, 3.0, 2.0]), Some(3.0));
    }
}
