//! Tensors of pairs.

use std::borrow::Cow;

use llm_local_core::{LoraModule, lora::Floats};

use crate::lora::{floats, targets::BaseModules, write::files::Tensor};

/// The tensors of `module`, with `b` for its B, padded with zeros to `rank`.
pub(super) fn tensors<'a>(module: &'a LoraModule, b: Cow<'a, Floats>, rank: usize) -> Vec<Tensor<'a>> {
    let LoraModule { name, rank: own, in_features, out_features, .. } = module;
    let (own, inputs, outputs) = (*own, *in_features, *out_features);
    let (mut a, mut b) = (Cow::Borrowed(&module.a), b);
    let count = module.experts.unwrap_or(1);
    if own != rank {
        a = Cow::Owned(floats::gathered(&a, count * rank * inputs, |i| {
            let (expert, k, column) = (i / (rank * inputs), i / inputs % rank, i % inputs);
            (k < own).then_some((expert * own + k) * inputs + column)
        }));
        b = Cow::Owned(floats::gathered(&b, count * outputs * rank, |i| {
            let (row, k) = (i / rank, i % rank);
            (k < own).then_some(row * own + k)
        }));
    }
    let key = |part: &str| format!("{name}.{part}");
    let mut tensors = match module.experts {
        Some(experts) => vec![
            Tensor::new(key("lora_a"), &[experts, rank, inputs], a),
            Tensor::new(key("lora_b"), &[experts, outputs, rank], b),
        ],
        // Rows of lora_a are looked up there: delta = lora_a @ lora_b.
        None if BaseModules::is_embedding(name) => {
            vec![Tensor::new(key("lora_a"), &[outputs, rank], b), Tensor::new(key("lora_b"), &[rank, inputs], a)]
        }
        None => vec![
            Tensor::new(key("lora_a"), &[inputs, rank], Cow::Owned(floats::transposed(&a, inputs))),
            Tensor::new(key("lora_b"), &[rank, outputs], Cow::Owned(floats::transposed(&b, rank))),
        ],
    };
    if let Some(magnitude) = &module.magnitude {
        tensors.push(Tensor::vector(key("m"), magnitude));
    }
    tensors
}
