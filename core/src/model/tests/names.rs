//! The tensors of a checkpoint.

use super::*;

fn named(name: &str) -> Architecture {
    Architecture::ALL.into_iter().find(|a| a.name() == name).unwrap()
}

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

#[test]
fn names_of_both_layouts_are_turned_into_each_other() {
    let pairs = [
        ("llama", "model.embed_tokens.weight", "token_embd.weight"),
        ("llama", "model.norm.weight", "output_norm.weight"),
        ("llama", "lm_head.weight", "output.weight"),
        ("qwen2", "model.layers.11.self_attn.q_proj.bias", "blk.11.attn_q.bias"),
        ("mistral", "model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight"),
        ("gemma", "model.layers.3.mlp.down_proj", "blk.3.ffn_down"),
        ("granite", "model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight"),
        ("qwen3", "model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight"),
        ("gemma3_text", "model.layers.0.self_attn.q_norm.weight", "blk.0.attn_q_norm.weight"),
        ("gemma2", "model.layers.1.post_attention_layernorm.weight", "blk.1.post_attention_norm.weight"),
        ("gemma2", "model.layers.1.pre_feedforward_layernorm.weight", "blk.1.ffn_norm.weight"),
        ("gemma2", "model.layers.1.post_feedforward_layernorm.weight", "blk.1.post_ffw_norm.weight"),
        ("phi3", "model.layers.2.self_attn.qkv_proj.weight", "blk.2.attn_qkv.weight"),
        ("phi3", "model.layers.2.mlp.gate_up_proj.weight", "blk.2.ffn_up.weight"),
        ("olmo2", "model.layers.2.post_attention_layernorm.weight", "blk.2.post_attention_norm.weight"),
        ("olmo2", "model.layers.2.post_feedforward_layernorm.weight", "blk.2.post_ffw_norm.weight"),
    ];
    for (architecture, hf, gguf) in pairs {
        let architecture = named(architecture);
        assert_eq!(rename(architecture, hf, Layout::HuggingFace, Layout::Gguf).as_deref(), Some(gguf));
        assert_eq!(rename(architecture, gguf, Layout::Gguf, Layout::HuggingFace).as_deref(), Some(hf));
    }
}

#[test]
fn names_that_an_architecture_does_not_have_have_no_other_name() {
    for (architecture, name) in [
        ("llama", "model.layers.x.mlp.up_proj"),
        ("llama", "model.layers.1.mlp.up_projection"),
        ("llama", "model.layers..mlp.up_proj"),
        ("llama", "model.normal.weight"),
        ("llama", "blk.1.attn_q"),
        ("llama", "model.layers.1.self_attn.q_norm.weight"),
        ("gemma2", "model.layers.1.self_attn.q_norm.weight"),
        ("llama", "model.layers.1.self_attn.qkv_proj.weight"),
        ("phi3", "model.layers.1.self_attn.q_proj.weight"),
        ("phi3", "model.layers.1.mlp.up_proj.weight"),
        ("olmo2", "model.layers.1.input_layernorm.weight"),
        ("qwen3", "model.layers.1.pre_feedforward_layernorm.weight"),
    ] {
        assert_eq!(
            rename(named(architecture), name, Layout::HuggingFace, Layout::Gguf),
            None,
            "{architecture}: {name}"
        );
    }
}

#[test]
fn every_tensor_of_every_architecture_has_one_name_in_each_layout() {
    for architecture in Architecture::ALL {
        let mut decoder = read(&json!({
            "model_type": architecture.name(), "vocab_size": 96, "hidden_size": 64, "intermediate_size": 48,
            "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 512, "tie_word_embeddings": false, "head_dim": 16,
        }));
        (decoder.attention_bias, decoder.mlp_bias) = (AttentionBias::new(true, true), true);
        let (hf, gguf) = (decoder.base_tensors(Layout::HuggingFace), decoder.base_tensors(Layout::Gguf));
        assert_eq!(hf.len(), gguf.len());
        for (hf, gguf) in hf.iter().zip(&gguf) {
            let there = rename(architecture, &hf.name, Layout::HuggingFace, Layout::Gguf);
            assert_eq!(there.as_ref(), Some(&gguf.name), "{architecture:?}");
            let back = rename(architecture, &gguf.name, Layout::Gguf, Layout::HuggingFace);
            assert_eq!(back.as_ref(), Some(&hf.name), "{architecture:?}");
            assert_eq!((&hf.shape, hf.role, hf.layer, hf.bias), (&gguf.shape, gguf.role, gguf.layer, gguf.bias));
            let module = decoder.module(hf.role, hf.layer, Layout::HuggingFace).unwrap();
            assert!(hf.name == format!("{module}.weight") || hf.name == format!("{module}.bias"), "{}", hf.name);
        }
        for tensors in [hf, gguf] {
            let mut names: Vec<_> = tensors.iter().map(|t| &t.name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), tensors.len(), "{architecture:?} has a name twice");
        }
        let tied = DecoderConfig { tied_embeddings: true, ..decoder };
        assert_eq!(tied.module(ModuleRole::Head, 0, Layout::HuggingFace), None);
    }
}
