//! Tensor headers against what a backend reads.

use llm_local_core::{Encoding, FloatType, TensorEntry, model::Layout};

use super::*;

/// Floats, and what MLX packed in 4 bits.
const READABLE: Readable = Readable {
    backend: "test",
    reads: |_, encoding| matches!(encoding, Encoding::Float(_) | Encoding::MlxAffine { bits: 4, .. }),
    said: |_| "floats, and weights that MLX packed in 4 bits",
};

#[track_caller]
fn refused(tensors: &[TensorEntry], c: &DecoderConfig, parts: &[&str]) {
    let why = check_tensors(c, Layout::HuggingFace, tensors, &READABLE).expect_err(parts[0]);
    for part in parts {
        assert!(why.contains(part), "lacks {part:?}: {why}");
    }
}

#[test]
fn what_a_weight_is_packed_with_is_part_of_the_model() {
    const SCALES: &str = "model.layers.0.mlp.up_proj.scales";
    let packed = checkpoint("tiny-llama-mlx-4bit", None).info;
    let c = described(&packed).unwrap();
    check_tensors(c, Layout::HuggingFace, &packed.tensors, &READABLE).unwrap();
    assert!(matches!(first_matrix(&packed, c, Layout::HuggingFace), Some(Encoding::MlxAffine { bits: 4, .. })));
    let mut tensors = packed.tensors.to_vec();
    tensors.retain(|t| t.name != SCALES);
    refused(&tensors, c, &[SCALES, "is missing", "model.layers.0.mlp.up_proj.weight is packed with it"]);
    let mut tensors = packed.tensors.to_vec();
    tensors.iter_mut().for_each(|t| t.parts.clear());
    refused(&tensors, c, &["is no part of this"]);
}

#[test]
fn what_a_backend_does_not_read_is_refused_with_what_it_reads() {
    let packed = checkpoint("tiny-llama-mlx-8bit", None).info;
    let c = described(&packed).unwrap();
    let parts = ["stored as mlx-affine(8 bits, group 64); test reads floats, and weights that MLX packed in 4 bits"];
    refused(&packed.tensors, c, &parts);
    let why = check_not_packed("test", &packed.tensors).unwrap_err();
    assert!(why.contains("which test does not compute with; use a backend that runs MLX"), "{why}");
    let dense = checkpoint("tiny-llama", None).info;
    check_not_packed("test", &dense.tensors).unwrap();
    check_tensors(described(&dense).unwrap(), Layout::HuggingFace, &dense.tensors, &READABLE).unwrap();
    let first = first_matrix(&dense, described(&dense).unwrap(), Layout::HuggingFace);
    assert!(matches!(first, Some(Encoding::Float(FloatType::Bf16 | FloatType::F32))), "{first:?}");
}
