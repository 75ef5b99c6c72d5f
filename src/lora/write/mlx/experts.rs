//! Experts that have pairs one by one, which mlx-lm stacks (`sanitize` in its `models/mixtral.py`, `models/qwen2_moe.py`).

use std::{borrow::Cow, collections::BTreeMap};

use llm_local_core::{LoraAdapter, LoraModule, lora::Floats};

use crate::lora::{fit::Expert, write::names::Names};

/// `adapter` with the pairs of experts stacked, and a note of what is not known of them. The error names the module and what
/// mlx-lm cannot express.
pub(in crate::lora::write) fn stacked<'a>(
    adapter: Cow<'a, LoraAdapter>,
    base: Option<&Names<'_>>,
) -> Result<(Cow<'a, LoraAdapter>, Option<String>), String> {
    let mut switches: BTreeMap<String, BTreeMap<usize, &LoraModule>> = BTreeMap::new();
    for module in adapter.modules.iter().filter(|module| !module.is_parameter) {
        if let Some(expert) = Expert::of(&module.name) {
            switches.entry(expert.switch()).or_default().insert(expert.index, module);
        }
    }
    if switches.is_empty() {
        return Ok((adapter, None));
    }
    let count = |name: &str| base.and_then(|base| base.experts(name));
    let modules =
        switches.iter().map(|(name, experts)| switch(name, experts, count(name))).collect::<Result<Vec<_>, _>>()?;
    let untold = switches.iter().find(|(name, _)| count(name).is_none());
    let note = untold.map(|(name, experts)| {
        format!(
            "`{name}` has pairs of {} experts, and whether the base has more, of which mlx-lm wants pairs too, is not known",
            experts.len()
        )
    });
    let mut all = adapter.into_owned();
    all.modules.retain(|module| module.is_parameter || Expert::of(&module.name).is_none());
    all.modules.extend(modules);
    all.modules.sort_by(|x, y| x.name.cmp(&y.name));
    Ok((Cow::Owned(all), note))
}

/// The pairs of all experts as the one of `name`, of which the base has `count`, if that is known.
fn switch(name: &str, experts: &BTreeMap<usize, &LoraModule>, count: Option<usize>) -> Result<LoraModule, String> {
    let refused = |module: &LoraModule, why: &str| {
        Err(format!("`{}` is of one expert, and mlx-lm has `{name}` of all of them: {why}", module.name))
    };
    let mut pairs = experts.iter().zip(0..);
    let ((_, first), _) = pairs.clone().next().expect("an entry is made with its first expert");
    if let Some(((_, module), missing)) = pairs.find(|((index, _), at)| *index != at) {
        return refused(module, &format!("there is no pair of expert {missing}"));
    }
    if let Some(count) = count.filter(|count| *count != experts.len()) {
        let found = experts.len();
        let why = match found < count {
            true => format!("there is no pair of expert {found}, and the base has {count}"),
            false => format!("the base has {count} experts, and there are pairs of {found}; it is for another base"),
        };
        return refused(first, &why);
    }
    for module in experts.values() {
        if module.magnitude.is_some() || module.bias.is_some() || module.transposed {
            return refused(
                module,
                "a magnitude (DoRA), a bias (lora_bias) or fan_in_fan_out is not of stacked experts",
            );
        }
        let shape = |m: &LoraModule| (m.rank, m.in_features, m.out_features, m.a.float_type(), m.b.float_type());
        if shape(module) != shape(first) || module.scale != first.scale {
            return refused(module, "they must have one rank, one shape, one scale and one type");
        }
    }
    let shape = (first.rank, first.in_features, first.out_features);
    let (a, b) = (joined(experts.values().map(|m| &m.a)), joined(experts.values().map(|m| &m.b)));
    Ok(LoraModule::of_experts(name, experts.len(), shape, a, b, first.scale))
}

/// Values of one type, one after another.
fn joined<'a>(all: impl Iterator<Item = &'a Floats>) -> Floats {
    let mut all = all.cloned();
    let first = all.next().unwrap_or(Floats::F32(Vec::new()));
    all.fold(first, |joined, next| match (joined, next) {
        (Floats::F32(mut x), Floats::F32(y)) => {
            x.extend(y);
            Floats::F32(x)
        }
        (Floats::F16(mut x), Floats::F16(y)) => {
            x.extend(y);
            Floats::F16(x)
        }
        (Floats::Bf16(mut x), Floats::Bf16(y)) => {
            x.extend(y);
            Floats::Bf16(x)
        }
        (x, y) => unreachable!("{} and {} were compared before", x.float_type(), y.float_type()),
    })
}
