//! Tensors that are refused.

use super::refused;
use crate::lora::testing::TestAdapter;

#[test]
fn tensors_that_are_no_whole_pair_of_float_matrices_are_refused_by_name() {
    let q = |factor: &str| TestAdapter::key(2, "q_proj", factor);
    let named = |factor: &str, adapter: &str| q(factor).replace(".weight", &format!(".{adapter}.weight"));
    refused(
        "no B",
        |t| {
            t.remove(&q("lora_B"));
        },
        &[&q("lora_B"), "is missing", "only lora_A"],
    );
    refused(
        "no A",
        |t| {
            t.remove(&q("lora_A"));
        },
        &[&q("lora_A"), "is missing", "only lora_B"],
    );
    refused("none", |t| t.tensors.clear(), &["no tensors"]);
    refused(
        "same factor",
        |t| {
            t.tensor(named("lora_A", "default"), &[2, 128]);
        },
        &["same factor", &q("lora_A")],
    );
    let words = ["different adapters", "lora_A.pirate.weight"];
    refused("two adapters", |t| t.at(&q("lora_A")).0 = named("lora_A", "pirate"), &words);
    let extra = "base_model.model.model.norm.weight";
    refused(
        "full weight",
        |t| {
            t.tensor(extra, &[128]);
        },
        &[extra, "modules_to_save"],
    );
    let extra = "base_model.model.model.embed_tokens.lora_embedding_A";
    refused(
        "embedding",
        |t| {
            t.tensor(extra, &[2, 896]);
        },
        &["model.embed_tokens.lora_embedding_B` is missing", "only lora_embedding_A"],
    );
    let extra = "base_model.model.model.layers.2.self_attn.q_proj.lora_magnitude_vector";
    refused(
        "magnitude",
        |t| {
            t.tensor(extra, &[128]);
        },
        &[extra, "`use_dora` is not set"],
    );
    let extra = "base_model.model.model.layers.2.self_attn.q_proj.lora_B.bias";
    refused(
        "bias",
        |t| {
            t.tensor(extra, &[128]);
        },
        &[extra, "`lora_bias` is not set"],
    );
    let bare = "model.layers.2.self_attn.q_proj.lora_A.weight";
    refused("no prefix", |t| t.at(&q("lora_A")).0 = bare.into(), &[bare, "base_model.model."]);
    for (dtype, size, name) in [("I64", 8, "i64"), ("U8", 1, "u8"), ("F64", 8, "f64"), ("BOOL", 1, "bool")] {
        let change = |t: &mut TestAdapter| {
            let tensor = t.at(&q("lora_A"));
            (tensor.1, tensor.3) = (dtype, vec![1; 256 * size]);
        };
        refused(dtype, change, &[&q("lora_A"), name, "expected floats"]);
    }
    let reshape = |shape: &'static [usize]| move |t: &mut TestAdapter| t.at(&q("lora_A")).2 = shape.to_vec();
    refused("vector", reshape(&[256]), &[&q("lora_A"), "(256)", "2 dimensions"]);
    refused("convolution", reshape(&[2, 128, 1, 1]), &[&q("lora_A"), "convolution"]);
    refused("transposed A", reshape(&[128, 2]), &[&q("lora_A"), "(128, 2)", "expected (2, in)"]);
    refused("empty", |t| (t.at(&q("lora_A")).2, t.at(&q("lora_A")).3) = (vec![2, 0], Vec::new()), &["(2, 0)", "empty"]);
    let ranks = |t: &mut TestAdapter| {
        t.remove(&q("lora_A")).remove(&q("lora_B"));
        t.pair("model.layers.2.self_attn.q_proj", 3, 128, 128);
    };
    refused("a pair of another rank", ranks, &["(3, 128)", "rank 3", "expected (2, in)", "(128, 3)"]);
}
