//! Where the chat template and the special tokens in it are.

use std::collections::BTreeMap;

use llm_local_core::model::GgufMetadata;
use serde_json::Value;

use super::super::{files::Configs, gguf_tokenizer::Vocabulary};

/// The special tokens that transformers gives to templates, with their names in GGUF metadata.
const SPECIAL_TOKENS: [(&str, &str); 7] = [
    ("bos_token", "bos"),
    ("eos_token", "eos"),
    ("unk_token", "unk"),
    ("sep_token", "sep"),
    ("pad_token", "pad"),
    ("cls_token", "cls"),
    ("mask_token", "mask"),
];

/// The text of the template: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`, else
/// `tokenizer.chat_template` of GGUF metadata. `Err` is why there is one that cannot be used.
pub(super) fn find(configs: &Configs, gguf: Option<&GgufMetadata>) -> Result<Option<String>, String> {
    if let Some(text) = &configs.template {
        return Ok(Some(text.clone()));
    }
    match configs.tokenizer.as_ref().and_then(|c| c.get("chat_template")) {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Array(named)) => return named_default(named).map(Some),
        Some(_) => return Err("`chat_template` in tokenizer_config.json is neither text nor a list".into()),
    }
    Ok(gguf.and_then(|g| g.string("tokenizer.chat_template")).map(str::to_owned))
}

/// The template `default` of `[{"name": …, "template": …}]`.
fn named_default(named: &[Value]) -> Result<String, String> {
    let name = |entry: &Value| entry.get("name").and_then(Value::as_str).unwrap_or("(unnamed)").to_owned();
    let default = named.iter().find(|entry| name(entry) == "default");
    match default.and_then(|entry| entry.get("template")).and_then(Value::as_str) {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!(
            "tokenizer_config.json has no chat template named `default`, only: {}",
            named.iter().map(name).collect::<Vec<_>>().join(", ")
        )),
    }
}

/// The special tokens by the names that templates use. Those that the model lacks are undefined in the template.
pub(super) fn special_tokens(
    model: &str,
    configs: &Configs,
    gguf: Option<&GgufMetadata>,
) -> BTreeMap<&'static str, String> {
    // A broken vocabulary is the tokenizer's error to report.
    let vocabulary = gguf.and_then(|gguf| Some((gguf, Vocabulary::of(model, gguf).ok()??)));
    SPECIAL_TOKENS
        .into_iter()
        .filter_map(|(name, short)| {
            let token = match (&configs.tokenizer, &vocabulary) {
                (Some(config), _) => special_token(config, name),
                (None, Some((gguf, vocabulary))) => {
                    vocabulary.special_id(gguf, short).map(|id| vocabulary.token(id).to_owned())
                }
                (None, None) => None,
            };
            Some((name, token?))
        })
        .collect()
}

/// A special token of `tokenizer_config.json`: text, or an object with the text as `content`.
pub(in crate::text) fn special_token(config: &Value, name: &str) -> Option<String> {
    let value = config.get(name)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// `{% generation %}` marks, for training, what the assistant says; it renders as its content. The tags become an `if`
/// that is always true, which keeps their whitespace control.
pub(super) fn without_generation_tags(text: String) -> String {
    if !text.contains("generation") {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (inner, after) = (&tag[2..end], &tag[end + 2..]);
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&format!("{{%{}%}}", inner.replacen(word, "if true", 1))),
            "endgeneration" => out.push_str(&format!("{{%{}%}}", inner.replacen(word, "endif", 1))),
            _ => out.push_str(&tag[..end + 2]),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_an_if_and_nothing_else_changes() {
        for (text, expected) in [
            ("a{% generation %}b{%- endgeneration -%}c", "a{% if true %}b{%- endif -%}c"),
            ("{%generation%}x{%endgeneration%}", "{%if true%}x{%endif%}"),
            ("{% if add_generation_prompt %}y{% endif %}", "{% if add_generation_prompt %}y{% endif %}"),
            ("generation {{ generation }} {% unclosed", "generation {{ generation }} {% unclosed"),
        ] {
            assert_eq!(without_generation_tags(text.into()), expected);
        }
    }
}
