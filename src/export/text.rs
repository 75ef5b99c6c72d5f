//! The files beside config and weights, and what is missing of them.

use std::collections::BTreeSet;

use llm_local_core::TextFiles;
use llm_local_weights::MODEL_TEXT_FILES;
use serde_json::Value;

/// Files of a tokenizer that is not in one file, or of what was added to it. They are read by nothing here, and copied where a
/// source lists them.
const TOKENIZER_PARTS: [&str; 4] = ["vocab.json", "merges.txt", "vocab.txt", "added_tokens.json"];

/// The names of those of `text` that belong to a Hugging Face folder: tokenizer, templates, and code.
pub(super) fn names(text: &TextFiles) -> Vec<&str> {
    let named = MODEL_TEXT_FILES.iter().chain(&TOKENIZER_PARTS).copied().filter(|name| text.files.contains_key(*name));
    let code = text.files.keys().map(String::as_str).filter(|name| name.ends_with(".py") && !name.contains('/'));
    named.chain(code).collect()
}

/// What a folder with the files `names` and this `config` lacks, a sentence each.
pub(super) fn lacking(config: &Value, names: &[&str]) -> Vec<String> {
    let has = |name: &str| names.contains(&name);
    let mut notes = Vec::new();
    if !(has("tokenizer.json") || has("tokenizer.model") || has("vocab.txt") || has("vocab.json") && has("merges.txt"))
    {
        notes.push(
            "the folder has no tokenizer: the base's source lists no tokenizer.json, tokenizer.model, vocab.txt, or vocab.json \
             with merges.txt, and what it does not list is not fetched; copy the tokenizer's files into the folder by hand"
                .to_owned(),
        );
    }
    let missing: Vec<_> = modules(config).into_iter().filter(|file| !has(file)).collect();
    if !missing.is_empty() {
        notes.push(format!(
            "config.json has `auto_map`, and the code that it names is not fetched, since the base's source does not list it; \
             copy {} into the folder by hand if it is wanted",
            missing.join(", ")
        ));
    }
    notes
}

/// The Python files that `auto_map` of a config names: of `modeling_x.Model` it is `modeling_x.py`. Those of other
/// repositories (`owner/name--modeling_x.Model`) are found there.
fn modules(config: &Value) -> BTreeSet<String> {
    let classes = config.get("auto_map").and_then(Value::as_object).into_iter().flat_map(|map| map.values());
    let classes = classes.flat_map(|class| class.as_array().map_or(std::slice::from_ref(class), Vec::as_slice));
    let local = classes.filter_map(Value::as_str).filter(|class| !class.contains("--"));
    local.filter_map(|class| class.rsplit_once('.')).map(|(module, _)| format!("{module}.py")).collect()
}
