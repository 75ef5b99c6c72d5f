//! Tensors of pairs, and the flags that all pairs have or none.

use std::borrow::Cow;

use llm_local_core::{LoraModule, lora::Floats};

use super::{PREFIX, parameters};
use crate::lora::{floats, targets::BaseModules, write::files::Tensor};

/// What the config says once for all pairs.
pub(super) struct Flags {
    pub(super) dora: bool,
    pub(super) lora_bias: bool,
    pub(super) fan_in_fan_out: bool,
    /// The version of PEFT that would have saved it so: before 0.19 it took experts' stacked weights for
    /// (experts, in, out), since then for (experts, out, in).
    pub(super) version: &'static str,
}

impl Flags {
    /// Those of `modules`. The error names the module and what PEFT cannot express.
    pub(super) fn of(modules: &[LoraModule]) -> Result<Self, String> {
        let linear = |module: &&LoraModule| !module.is_parameter && !BaseModules::is_embedding(&module.name);
        let stacked = |module: &&LoraModule| module.experts.is_some();
        for module in modules {
            check(module)?;
        }
        let dora = all_or_none(modules, |_| true, "DoRA", |module| module.magnitude.is_some())?;
        let lora_bias = all_or_none(modules, |_| true, "lora_bias", |module| module.bias.is_some())?;
        let of_layers = |module: &&LoraModule| linear(module) && !BaseModules::is_head(&module.name);
        let fan_in_fan_out = all_or_none(modules, of_layers, "fan_in_fan_out", |module| module.transposed)?;
        let experts = all_or_none(modules, stacked, "experts stored as (in, out)", |module| module.transposed)?;
        let parameter = modules.iter().find(|module| module.is_parameter);
        for (one, first, other, second) in [
            (dora, "DoRA", lora_bias, "lora_bias"),
            (dora, "DoRA", parameter.is_some(), "target_parameters"),
            (lora_bias, "lora_bias", parameter.is_some(), "target_parameters"),
            (fan_in_fan_out, "fan_in_fan_out", parameter.is_some(), "target_parameters"),
        ] {
            if one && other {
                let name = &parameter.unwrap_or(&modules[0]).name;
                return Err(format!("{first} and {second} (`{name}`) are used together, which PEFT does not know"));
            }
        }
        Ok(Self { dora, lora_bias, fan_in_fan_out, version: if experts { "0.18.1" } else { "0.21.2" } })
    }
}

/// Whether the pairs among `modules` that `are` of a kind use a feature; the error is that only some do.
fn all_or_none(
    modules: &[LoraModule],
    are: impl Fn(&&LoraModule) -> bool,
    feature: &str,
    uses: impl Fn(&LoraModule) -> bool,
) -> Result<bool, String> {
    let with = modules.iter().filter(&are).find(|module| uses(module));
    let without = modules.iter().filter(&are).find(|module| !uses(module));
    match (with, without) {
        (Some(with), Some(without)) => Err(format!(
            "`{}` uses {feature} and `{}` does not, and PEFT has it for all pairs or for none",
            with.name, without.name
        )),
        (with, _) => Ok(with.is_some()),
    }
}

/// Whether PEFT has such a pair at all.
fn check(module: &LoraModule) -> Result<(), String> {
    let name = &module.name;
    let is_embedding = !module.is_parameter && BaseModules::is_embedding(name);
    if module.experts.is_some() && !module.is_parameter {
        return Err(format!(
            "`{name}` is a module of stacked experts, of which PEFT has pairs only as bare parameters (target_parameters)"
        ));
    }
    if is_embedding && module.transposed != module.magnitude.is_some() {
        return Err(format!(
            "`{name}` is an embedding with {}, which PEFT does not know",
            if module.transposed {
                "a transposed pair and no magnitude"
            } else {
                "DoRA by rows, where PEFT's goes by columns"
            }
        ));
    }
    if module.transposed && (BaseModules::is_head(name) || module.is_parameter && module.experts.is_none()) {
        return Err(format!(
            "`{name}` is stored as (in, out), which `fan_in_fan_out` says neither of heads nor of bare parameters"
        ));
    }
    Ok(())
}

/// The tensors of `modules`, which [`Flags::of`] let pass.
pub(super) fn tensors(modules: &[LoraModule]) -> Result<Vec<Tensor<'_>>, String> {
    let mut tensors = Vec::new();
    for module in modules.iter().filter(|module| !module.is_parameter) {
        add(&module.name, module, &mut tensors);
    }
    for (path, module) in parameters::nested(modules)? {
        add(&path, module, &mut tensors);
    }
    Ok(tensors)
}

fn add<'a>(path: &str, module: &'a LoraModule, tensors: &mut Vec<Tensor<'a>>) {
    let LoraModule { rank, in_features, out_features, experts, a, b, .. } = module;
    let (rank, inputs, outputs, count) = (*rank, *in_features, *out_features, experts.unwrap_or(1));
    let key = |part: &str| format!("{PREFIX}{path}.{part}");
    let borrowed = |values: &'a Floats| Cow::Borrowed(values);
    if !module.is_parameter && BaseModules::is_embedding(&module.name) {
        let (a, b, vocab, dim) = if module.transposed {
            (borrowed(a), borrowed(b), inputs, outputs)
        } else {
            let turned = (floats::transposed(b, rank), floats::transposed(a, inputs));
            (Cow::Owned(turned.0), Cow::Owned(turned.1), outputs, inputs)
        };
        tensors.push(Tensor::new(key("lora_embedding_A"), &[rank, vocab], a));
        tensors.push(Tensor::new(key("lora_embedding_B"), &[dim, rank], b));
    } else {
        let b = match experts {
            None => borrowed(b),
            // (experts, out, r) as (out, r * experts), with the experts innermost.
            Some(experts) => Cow::Owned(floats::gathered(b, b.len(), |i| {
                let (output, k, expert) = (i / (rank * experts), i / experts % rank, i % experts);
                Some((expert * outputs + output) * rank + k)
            })),
        };
        tensors.push(Tensor::new(key("lora_A.weight"), &[count * rank, inputs], borrowed(a)));
        tensors.push(Tensor::new(key("lora_B.weight"), &[outputs, rank * count], b));
    }
    if let Some(magnitude) = &module.magnitude {
        tensors.push(Tensor::vector(key("lora_magnitude_vector"), magnitude));
    }
    if let Some(bias) = &module.bias {
        tensors.push(Tensor::vector(key("lora_B.bias"), bias));
    }
}
