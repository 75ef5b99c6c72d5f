//! Fields of config.json that say nothing about what a model computes, whatever its architecture: those that
//! transformers writes for all (`PreTrainedConfig`, `GenerationConfig`), and what else published checkpoints have.

use serde_json::Value;

/// Of the file, and of who wrote it with what.
const FILE: &[&str] = &[
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "dtype",
    "keys_to_ignore_at_inference",
    "model_type",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
];

/// Of training and of other heads than the one that predicts tokens. What drops out does so in training alone, see
/// [`is_harmless`].
const TRAINING: &[&str] = &[
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "label2id",
    "loss_type",
    "neftune_noise_alpha",
    "num_labels",
    "output_router_logits",
    "problem_type",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "task_specific_params",
];

/// Of how the same is computed, on what, and what else is returned.
const EXECUTION: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_experts_implementation_internal",
    "_flash_attn_2_enabled",
    "attn_implementation",
    "cache_implementation",
    "chunk_size_feed_forward",
    "experts_implementation",
    // Decoders here are decoders with and without it.
    "is_decoder",
    "output_attentions",
    "output_hidden_states",
    // The products were split in so many parts once.
    "pretraining_tp",
    "return_dict",
    "tf_legacy_loss",
    "tie_last_hidden_states",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    "xla_device",
];

/// Of which token is chosen, and how many: what generation_config.json has today. Lengths, too, that bound a text
/// and not the positions.
const GENERATION: &[&str] = &[
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "max_sequence_length",
    "min_length",
    "model_max_length",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "target_lookbehind",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Whether a field leaves the computation as it is, whatever it has.
pub(super) fn is_harmless(name: &str) -> bool {
    let suffixes = ["_token_id", "_dropout", "_pdrop"];
    [FILE, TRAINING, EXECUTION, GENERATION].iter().any(|group| group.contains(&name))
        || suffixes.iter().any(|suffix| name.ends_with(suffix))
}

/// What a field has where it leaves the computation as it is, for those that would change it with another value; `None`
/// for a field that is not known.
pub(super) fn neutral(name: &str) -> Option<Value> {
    Some(match name {
        "add_cross_attention"
        | "is_encoder_decoder"
        | "qk_norm"
        | "rope_interleaved"
        | "tie_encoder_decoder"
        | "use_bidirectional_attention"
        | "use_mrope"
        | "use_qk_norm" => false.into(),
        "is_causal" | "is_llama_config" => true.into(),
        "logit_scale" => 1.into(),
        "pruned_heads" => Value::Object(serde_json::Map::new()),
        _ => return None,
    })
}
