//! The tensors of a checkpoint.

use super::*;

#[test]
fn the_tensors_of_both_layouts_are_the_same_with_the_same_shapes() {
    let decoder = DecoderConfig { tied_embeddings: false, ..read(&config()) };
    let (hf, gguf) = (decoder.base_tensors(Layout::HuggingFace), decoder.base_tensors(Layout::Gguf));
    assert_eq!(hf.len(), 3 + 4 * 9);
    for (hf, gguf) in hf.iter().zip(&gguf) {
        let renamed = rename(decoder.architecture, &hf.name, Layout::HuggingFace, Layout::Gguf);
        assert_eq!(renamed.as_ref(), Some(&gguf.name));
        assert_eq!((&hf.shape, hf.role, hf.layer), (&gguf.shape, gguf.role, gguf.layer));
    }
    let shape = |name: &str| hf.iter().find(|t| t.name == name).unwrap().shape.clone();
    assert_eq!(shape("model.layers.3.self_attn.k_proj.weight"), [64, 128]);
    assert_eq!(shape("model.layers.0.mlp.down_proj.weight"), [128, 384]);
    assert_eq!(shape("lm_head.weight"), [896, 128]);
    let tied = DecoderConfig { tied_embeddings: true, ..decoder };
    assert_eq!(tied.base_tensors(Layout::Gguf).len(), gguf.len() - 1);
}
