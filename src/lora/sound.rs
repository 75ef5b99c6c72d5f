//! Whether an adapter is whole: adapters are plain data, which anybody can put together.

use llm_local_core::{
    LoraAdapter,
    lora::{ReplacedRows, ReplacementTensor},
};

use super::{floats, message::shape_text, outline::ModuleOutline};

/// Checks that nothing of the adapter lacks values, has too many, or has some that are not finite. The error names the
/// module or tensor.
pub(super) fn check(adapter: &LoraAdapter) -> Result<(), String> {
    let LoraAdapter { modules, replacements, rows, .. } = adapter;
    for module in modules {
        let name = &module.name;
        if let Some(defect) = ModuleOutline::from(module).defect {
            return Err(format!("`{name}` {defect}"));
        }
        if !module.scale.is_finite() || module.scale == 0.0 {
            return Err(format!("`{name}` has the scale {}; expected a finite number other than 0", module.scale));
        }
        let vectors = [("magnitude", &module.magnitude), ("bias", &module.bias)];
        let broken = vectors.iter().find(|(_, v)| v.as_ref().is_some_and(|v| v.iter().any(|x| !x.is_finite())));
        let factor = [("A", &module.a), ("B", &module.b)].into_iter();
        let found =
            factor.filter(|(_, values)| floats::first_non_finite(values).is_some()).map(|(what, _)| what).next();
        if let Some(what) = found.or(broken.map(|(what, _)| *what)) {
            return Err(format!("the {what} of `{name}` has values that are not finite"));
        }
    }
    replaced(replacements, rows)?;
    let full = replacements.iter().map(|t| (&t.name, &t.values)).chain(rows.iter().map(|t| (&t.name, &t.values)));
    for (name, values) in full {
        if floats::first_non_finite(values).is_some() {
            return Err(format!("what replaces `{name}` has values that are not finite"));
        }
    }
    Ok(())
}

/// Checks that what replaces tensors and rows has the values that it says; the error names the tensor.
pub(super) fn replaced(replacements: &[ReplacementTensor], rows: &[ReplacedRows]) -> Result<(), String> {
    for tensor in replacements {
        let elements = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements != Some(tensor.values.len()) || tensor.values.is_empty() {
            return Err(format!(
                "the tensor that replaces `{}` has the shape {} and {} values",
                tensor.name,
                shape_text(&tensor.shape),
                tensor.values.len()
            ));
        }
    }
    let whole = |tensor: &&ReplacedRows| {
        let count = tensor.rows.len();
        count > 0 && !tensor.values.is_empty() && tensor.values.len().is_multiple_of(count)
    };
    match rows.iter().find(|tensor| !whole(tensor)) {
        Some(tensor) => Err(format!("the values that replace rows of `{}` are no whole rows", tensor.name)),
        None => Ok(()),
    }
}
