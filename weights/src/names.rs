//! Names of files by which a model or an adapter is known, wherever it lies.

use std::path::Path;

/// The config of a model.
pub const MODEL_CONFIG: &str = "config.json";

/// What a model in a Hugging Face folder has beside config and weights, as far as it is used here. What a source lists is what a
/// model is: it decides what is complete offline, and the model's digest, so no file that nothing here reads belongs to it.
pub const MODEL_TEXT_FILES: [&str; 6] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
];

/// Files that complete or replace the text side of a GGUF file's metadata. `config.json` is none of them: beside a GGUF
/// file it is often that of another model, and its `eos_token_id` would end generations.
pub const GGUF_TEXT_FILES: [&str; 4] =
    ["chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];

/// The config of an adapter, of PEFT's and of mlx-lm's.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The weights that PEFT and mlx-lm write.
pub const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapters.safetensors"];

/// Pickles that trainers leave beside the weights.
const TRAINER_STATE: [&str; 6] =
    ["training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth"];

/// Whether a safetensors file of this name holds an adapter: those that PEFT and mlx-lm write.
pub fn is_adapter_file(name: &str) -> bool {
    ADAPTER_WEIGHTS.contains(&name) || name.ends_with("_adapters.safetensors")
}

/// Whether a safetensors file of this name, in a folder that `has` others, is what mlx-lm had after so many steps
/// (`0000100_adapters.safetensors`) of a training that is done, which gave `adapters.safetensors`.
pub fn is_adapter_checkpoint(name: &str, has: impl FnOnce(&str) -> bool) -> bool {
    let steps = name.strip_suffix("_adapters.safetensors");
    let is_number = |steps: &str| !steps.is_empty() && steps.bytes().all(|byte| byte.is_ascii_digit());
    steps.is_some_and(is_number) && has("adapters.safetensors")
}

/// Whether a file of this name is a pickle (`.bin`, `.pt`, `.pth`, `.ckpt`, `.pkl`, `.pickle`), which can run code when
/// read, and therefore never is.
pub fn is_pickle(name: &str) -> bool {
    ["bin", "pt", "pth", "ckpt", "pkl", "pickle"].iter().any(|e| has_extension(name, e))
}

/// Whether a file of this name is a pickle that a trainer leaves, and no weights.
pub fn is_trainer_state(name: &str) -> bool {
    TRAINER_STATE.contains(&name)
}

/// Whether a file of this name is a GGUF file.
pub fn is_gguf(name: &str) -> bool {
    has_extension(name, "gguf")
}

/// Whether a file of this name is a safetensors file.
pub fn is_safetensors(name: &str) -> bool {
    has_extension(name, "safetensors")
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_adapters_are_checkpoints_where_the_last_one_is_there() {
        let done = |name: &str| name == "adapters.safetensors";
        assert!(is_adapter_checkpoint("0000100_adapters.safetensors", done));
        assert!(!is_adapter_checkpoint("0000100_adapters.safetensors", |_| false));
        for name in ["adapters.safetensors", "_adapters.safetensors", "pirate_adapters.safetensors", "100.safetensors"]
        {
            assert!(!is_adapter_checkpoint(name, done), "{name}");
        }
    }
}
