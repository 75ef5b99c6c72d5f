//! Fields that nobody reads: refused by name, unless they are known to leave the computation as it is.

use super::*;

fn refusal(changes: &Value) -> String {
    let mut config = config();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let error = DecoderConfig::from_config("m", &config).expect_err(&changes.to_string());
    assert_eq!(error.code(), "unsupported_model_format");
    error.to_string()
}

fn passes(changes: &Value) {
    let mut changed = config();
    changed.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    assert_eq!(read(&changed), read(&config()), "{changes}");
}

#[test]
fn a_field_that_is_not_understood_is_refused_by_name_with_its_value() {
    let table: &[(Value, &[&str])] = &[
        (json!({ "position_embedding_type": "nope" }), &["position_embedding_type is \"nope\""]),
        (json!({ "use_rope": false }), &["use_rope is false", "expected no such field", "the architecture llama"]),
        (json!({ "scale_emb": 12 }), &["scale_emb is 12"]),
        (json!({ "attn_logit_cap": 50 }), &["attn_logit_cap is 50"]),
        (json!({ "no_rope_layers": [1, 1, 1, 0] }), &["no_rope_layers is [1,1,1,0]"]),
        (json!({ "text_config": { "hidden_size": 8 } }), &["text_config is {\"hidden_size\":8}"]),
        (json!({ "dual_chunk_attention_config": {} }), &["dual_chunk_attention_config is {}"]),
        (json!({ "per_layer_config": { "0": {} } }), &["per_layer_config"]),
        (json!({ "_remove_final_layer_norm": true }), &["_remove_final_layer_norm is true"]),
        // Of an unknown field nothing but null is nothing.
        (json!({ "mystery": 0 }), &["mystery is 0"]),
        (json!({ "mystery": 0.0 }), &["mystery is 0.0"]),
        (json!({ "mystery": "" }), &["mystery is \"\""]),
        (json!({ "mystery": [] }), &["mystery is []"]),
        (json!({ "mystery": {} }), &["mystery is {}"]),
        (json!({ "mystery": 1 }), &["may change what the model computes", "a copy of the model without the field"]),
        // Known ones, with a value that changes something.
        (json!({ "pruned_heads": { "0": [1] } }), &["pruned_heads is {\"0\":[1]}", "expected {}, or no such field"]),
        (json!({ "rope_interleaved": true }), &["rope_interleaved is true", "expected false"]),
        (json!({ "use_bidirectional_attention": true }), &["use_bidirectional_attention is true", "false"]),
        (json!({ "is_causal": false }), &["is_causal is false", "expected true, or no such field"]),
        (json!({ "is_llama_config": false }), &["is_llama_config is false"]),
        (json!({ "logit_scale": 0.5 }), &["logit_scale is 0.5", "expected 1"]),
        (json!({ "lm_head_bias": true }), &["lm_head_bias is true"]),
        (json!({ "sliding_window_size": 16 }), &["sliding_window_size is 16", "expected no such field"]),
        (
            json!({ "num_local_experts": 8, "num_experts_per_tok": 2 }),
            &["num_experts_per_tok is 2", "expected no such field"],
        ),
        (json!({ "original_max_position_embeddings": "4k" }), &["original_max_position_embeddings is \"4k\""]),
    ];
    for (changes, expected) in table {
        let message = refusal(changes);
        for part in *expected {
            assert!(message.contains(part), "{changes}\nlacks {part:?}: {message}");
        }
    }
}

#[test]
fn what_says_nothing_about_the_computation_passes() {
    for changes in [
        json!({ "mystery": null, "auto_map": null, "quantization_config": null }),
        // What transformers writes for every model.
        json!({
            "return_dict": true, "output_hidden_states": false, "output_attentions": false, "torchscript": false,
            "use_bfloat16": false, "tf_legacy_loss": false, "pruned_heads": {}, "chunk_size_feed_forward": 0,
            "is_encoder_decoder": false, "is_decoder": true, "add_cross_attention": false, "tie_encoder_decoder": false,
            "cross_attention_hidden_size": null, "finetuning_task": null, "id2label": { "0": "LABEL_0" },
            "label2id": { "LABEL_0": 0 }, "num_labels": 2, "tokenizer_class": "LlamaTokenizer", "prefix": null,
            "bos_token_id": 1, "pad_token_id": -1, "eos_token_id": [2, 3], "sep_token_id": null,
            "decoder_start_token_id": 1, "task_specific_params": {}, "problem_type": null, "xla_device": "cpu",
            "_name_or_path": "x", "_commit_hash": "y", "transformers_version": "4.51.3", "dtype": "float32",
            "torch_dtype": "float16", "tie_last_hidden_states": true, "gradient_checkpointing": false,
        }),
        json!({
            "max_length": 20, "min_length": 0, "do_sample": true, "early_stopping": false, "num_beams": 1,
            "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 0.6, "top_k": 50, "top_p": 0.9,
            "typical_p": 1.0, "repetition_penalty": 1.1, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
            "encoder_no_repeat_ngram_size": 0, "bad_words_ids": [[1]], "num_return_sequences": 1,
            "output_scores": false, "return_dict_in_generate": false, "remove_invalid_values": false,
            "exponential_decay_length_penalty": [1, 2], "suppress_tokens": [1], "begin_suppress_tokens": [1],
            "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "encoder_repetition_penalty": 1.0, "num_assistant_tokens": 20,
            "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.4,
            "assistant_lookbehind": 10, "target_lookbehind": 10, "max_new_tokens": 9, "forced_bos_token_id": 1,
        }),
        json!({ "attention_dropout": 0.1, "classifier_dropout": 0.1, "resid_pdrop": 0.1, "initializer_range": 1.0 }),
        json!({ "rope_interleaved": false, "is_llama_config": true, "logit_scale": 1.0, "is_causal": true }),
        json!({ "original_max_position_embeddings": 64, "num_experts": 1, "n_routed_experts": 0 }),
    ] {
        passes(&changes);
    }
}

#[test]
fn code_of_a_checkpoint_must_be_of_the_class_that_is_computed() {
    let with = |class: Value| json!({ "auto_map": { "AutoConfig": "a.B", "AutoModelForCausalLM": class } });
    passes(&with(json!("modeling_llama_yarn.LlamaForCausalLM")));
    passes(&with(json!("someone/llama--modeling_llama.LlamaForCausalLM")));
    passes(&json!({ "auto_map": { "AutoTokenizer": ["tokenization_x.Slow", null] } }));
    for code in [json!("modeling_mine.MyForCausalLM"), json!("LlamaForCausalLM2"), json!(["LlamaForCausalLM"])] {
        let message = refusal(&with(code.clone()));
        for part in ["auto_map", &code.to_string(), "LlamaForCausalLM", "never run"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
    assert!(refusal(&json!({ "auto_map": 3 })).contains("auto_map has the model's code as 3"));
}

#[test]
fn a_window_that_is_written_twice_is_one() {
    let gemma2 = |size: Value| {
        let mut config = config();
        let changes = json!({
            "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "sliding_window": 64,
            "sliding_window_size": size,
        });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        DecoderConfig::from_config("m", &config)
    };
    assert_eq!(gemma2(json!(64)).unwrap().sliding_window.unwrap().size, 64);
    let message = gemma2(json!(32)).unwrap_err().to_string();
    assert!(message.contains("sliding_window_size is 32; expected 64, as sliding_window has"), "{message}");
}

#[test]
fn fields_that_were_read_are_not_overlooked() {
    let config = json!({ "a": 1, "b": null, "hidden_size": 8, "torch_dtype": "float16" });
    let fields = ConfigFields::new(config.as_object().unwrap());
    assert_eq!(fields.get("hidden_size"), Some(&json!(8)));
    assert_eq!((fields.get("b"), fields.get("c")), (None, None));
    assert_eq!((fields.shown("a"), fields.shown("b")), ("1".to_owned(), "missing".to_owned()));
    let reason = fields.refuse_unread("the class A", "A").unwrap_err();
    assert!(reason.starts_with("a is 1; expected no such field, for the class A"), "{reason}");
    fields.get("a");
    fields.refuse_unread("the class A", "A").unwrap();
}
