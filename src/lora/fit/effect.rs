//! What can be told of an adapter that fits only by its values.

use llm_local_core::{LoraAdapter, LoraModule, lora::AdapterFeature};

use crate::lora::{floats, message::all_of, targets::BaseModules};

/// Why the values of an adapter that fits would do nothing, if that is so: the merge would add nothing but zeros. Parts for
/// the tensors `unused` do nothing whatever they hold.
pub(super) fn without_effect(adapter: &LoraAdapter, weight: f32, unused: &[String]) -> Option<String> {
    let is_used = |name: &String| !unused.contains(name);
    let is_zero = |m: &LoraModule| {
        let scale = m.scale * f64::from(weight);
        let has_bias = m.bias.iter().flatten().any(|b| (f64::from(*b) * scale) as f32 != 0.0);
        m.magnitude.is_none() && !has_bias && pair_is_zero(m, scale)
    };
    let modules: Vec<_> = adapter.modules.iter().filter(|module| is_used(&module.weight_name())).collect();
    let replaces = adapter.replacements.iter().any(|replaced| is_used(&replaced.name))
        || adapter.rows.iter().any(|rows| is_used(&rows.name));
    (!replaces && !modules.is_empty() && modules.iter().all(|module| is_zero(module))).then(|| {
        format!(
            "its delta is too small for f32 and becomes 0 in {}, so it would do nothing; its scale is {:e} and its \
             weight {weight}: are `lora_alpha` and the weight right?",
            all_of(modules.len(), "module"),
            modules[0].scale
        )
    })
}

fn pair_is_zero(module: &LoraModule, scale: f64) -> bool {
    let Some(experts) = module.experts else {
        return floats::scaled_product_is_zero(&module.a, &module.b, module.rank, scale);
    };
    let one = |values: &llm_local_core::lora::Floats, expert: usize| {
        let count = values.len() / experts;
        let mut own = vec![0.0; count];
        floats::scale_into(values, expert * count, 1.0, &mut own);
        own.into()
    };
    (0..experts).all(|expert| {
        floats::scaled_product_is_zero(&one(&module.a, expert), &one(&module.b, expert), module.rank, scale)
    })
}

/// Why an adapter that says it keeps the head tied does not, if that is so: what it has for both must be the same.
pub(super) fn parts_tie(adapter: &LoraAdapter) -> Option<String> {
    if !adapter.features.contains(&AdapterFeature::WeightTying) {
        return None;
    }
    let module = |name: &str| name.strip_suffix(".weight").unwrap_or(name).to_owned();
    let find = |is: fn(&str) -> bool| {
        let pair = adapter.modules.iter().find(|m| is(&m.name));
        let whole = adapter.replacements.iter().find(|r| is(&module(&r.name)));
        (pair, whole)
    };
    let (embedding, head) = (find(BaseModules::is_embedding), find(BaseModules::is_head));
    let pairs_differ = matches!((embedding.0, head.0), (Some(x), Some(y))
        if (&x.a, &x.b, x.scale, &x.magnitude) != (&y.a, &y.b, y.scale, &y.magnitude));
    let tensors_differ =
        matches!((embedding.1, head.1), (Some(x), Some(y)) if (&x.shape, &x.values) != (&y.shape, &y.values));
    (pairs_differ || tensors_differ).then(|| {
        "it keeps the output head tied to the embedding (`ensure_weight_tying`), but what it has for the two differs; \
         they are one tensor, so save the adapter again from one state"
            .into()
    })
}
