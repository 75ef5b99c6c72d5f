//! The ids that end a generation.
//!
//! transformers' `generate` ends at `eos_token_id` of `generation_config.json`, and only without that file at the one of
//! `config.json` (which may be stale: chat models are tuned from base models). The tokenizer's `eos_token` is added to
//! them, as vLLM and mlx-lm do: many tuned models name the end of a turn only there, and whoever chats with one expects
//! it to stop. A GGUF file has ids of its own, and the end-of-turn tokens that llama.cpp knows by name.

use std::collections::BTreeSet;

use llm_local_core::{Error, Result, model::GgufMetadata};
use serde_json::Value;

use super::{
    files::Configs,
    gguf_tokenizer::{TokenKind, Vocabulary},
    template,
    tokenizer::TextTokenizer,
};

/// End-of-turn and end-of-text tokens by name, as in `special_eog_ids` of llama.cpp's `llama-vocab.cpp`, without those
/// of the fill-in-the-middle task.
const END_TOKENS: [&str; 15] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<EOT>",
    "[EOT]",
    "[EOS]",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

/// The sorted ids.
pub(super) fn ids(
    model: &str,
    configs: &Configs,
    gguf: Option<&GgufMetadata>,
    tokenizer: &TextTokenizer,
) -> Result<Vec<u32>> {
    let mut ids = BTreeSet::new();
    ids.extend(from_configs(model, configs)?);
    if let Some(token) = configs.tokenizer.as_ref().and_then(|c| template::special_token(c, "eos_token")) {
        match tokenizer.token_id(&token) {
            Some(id) => {
                ids.insert(id);
            }
            None => tracing::warn!(model, token, "the eos_token of tokenizer_config.json is not in the tokenizer"),
        }
    }
    if let Some(gguf) = gguf {
        ids.extend(from_gguf(model, gguf)?);
    }
    if ids.is_empty() {
        tracing::warn!(model, "no end-of-sequence id is known; generations end at their limit or a stop text");
    }
    Ok(ids.into_iter().collect())
}

fn from_configs(model: &str, configs: &Configs) -> Result<Vec<u32>> {
    if let Some(ids) = listed(model, "generation_config.json", configs.generation.as_ref())? {
        return Ok(ids);
    }
    if let Some(ids) = listed(model, "config.json", configs.model.as_ref())? {
        return Ok(ids);
    }
    let nested = configs.model.as_ref().and_then(|c| c.get("text_config"));
    Ok(listed(model, "text_config of config.json", nested)?.unwrap_or_default())
}

/// `eos_token_id`: a number, a list of numbers, or null.
fn listed(model: &str, file: &str, config: Option<&Value>) -> Result<Option<Vec<u32>>> {
    let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let ids = match config.and_then(|c| c.get("eos_token_id")) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(values)) => values.iter().map(id).collect::<Option<Vec<_>>>(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    match ids {
        Some(ids) => Ok(Some(ids)),
        None => Err(Error::load(
            model,
            format!(
                "`eos_token_id` in {file} is {}; expected a token id or a list of token ids",
                config.map_or(&Value::Null, |c| &c["eos_token_id"])
            ),
        )),
    }
}

fn from_gguf(model: &str, gguf: &GgufMetadata) -> Result<Vec<u32>> {
    let Some(vocabulary) = Vocabulary::of(model, gguf)? else { return Ok(Vec::new()) };
    let mut ids: Vec<u32> =
        ["eos", "eot", "eom"].into_iter().filter_map(|name| vocabulary.special_id(gguf, name)).collect();
    let named = |token: &str| {
        let id = vocabulary.id(token)?;
        matches!(vocabulary.kind(id), TokenKind::Control | TokenKind::UserDefined).then_some(id)
    };
    ids.extend(END_TOKENS.into_iter().filter_map(named));
    // In the harmony format `<|end|>` closes a message of several in one turn; the turn ends with the other two.
    if let (Some(end), Some(_), Some(_)) = (named("<|end|>"), named("<|return|>"), named("<|call|>")) {
        ids.retain(|&id| id != end);
    }
    Ok(ids)
}
