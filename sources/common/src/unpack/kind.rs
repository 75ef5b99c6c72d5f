//! Which files of an archive are kept.

use llm_local_weights::{is_gguf, is_pickle, is_safetensors, is_trainer_state};

/// Extensions of the text files, and the one of sentencepiece, that models and adapters have beside their weights.
const TEXT: [&str; 5] = ["json", "txt", "jinja", "model", "tiktoken"];

/// What systems and archivers leave in folders.
const LITTER: [&str; 7] =
    [".ds_store", "thumbs.db", "desktop.ini", ".gitattributes", ".gitignore", "sha256sums", "pax_global_header"];

/// How the names of files begin that are for people.
const FOR_PEOPLE: [&str; 7] = ["readme", "license", "licence", "notice", "copying", "changelog", "model_card"];

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A model or an adapter may need it.
    Kept,
    /// None does, and it does no harm: it is not written.
    Skipped,
    /// It could run code when it is read.
    Pickle,
    /// Nobody here knows what it is.
    Unknown,
}

/// What becomes of the file at `path`, a checked one.
pub(super) fn kind(path: &str) -> Kind {
    let name = path.rsplit('/').next().unwrap_or(path);
    let lower = name.to_ascii_lowercase();
    let (stem, extension) = lower.rsplit_once('.').unwrap_or((&lower, ""));
    let for_people = |text: &str| FOR_PEOPLE.iter().any(|name| text.strip_prefix(name).is_some_and(ends_a_word));
    match () {
        // macOS keeps a second file beside each: `__MACOSX/._name`, or `._name` in a tar.
        () if path.split('/').any(|part| part == "__MACOSX") || name.starts_with("._") => Kind::Skipped,
        () if LITTER.contains(&&*lower) || matches!(extension, "md" | "sha256") => Kind::Skipped,
        () if matches!(extension, "" | "txt" | "rst" | "html") && for_people(stem) => Kind::Skipped,
        // Pickles, but beside almost every adapter as its trainer leaves it, and never read.
        () if is_trainer_state(name) => Kind::Skipped,
        () if is_pickle(name) => Kind::Pickle,
        () if is_safetensors(name) || is_gguf(name) || TEXT.contains(&extension) => Kind::Kept,
        () => Kind::Unknown,
    }
}

/// Whether a word ends where `rest` begins: `LICENSE-MIT`, but not `licensed`.
fn ends_a_word(rest: &str) -> bool {
    !rest.starts_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_texts_are_kept_litter_is_skipped_and_the_rest_is_refused() {
        for (kind_, paths) in [
            (
                Kind::Kept,
                &[
                    "adapter_config.json",
                    "a/adapter_model.safetensors",
                    "Q4.GGUF",
                    "merges.txt",
                    "tokenizer.model",
                    "chat_template.jinja",
                    "model.safetensors.index.json",
                    "licensed.json",
                ][..],
            ),
            (
                Kind::Skipped,
                &[
                    "__MACOSX/._adapter_model.safetensors",
                    "__MACOSX/x.py",
                    "._a.json",
                    ".DS_Store",
                    "a/Thumbs.db",
                    ".gitattributes",
                    "README",
                    "README.md",
                    "notes.md",
                    "LICENSE",
                    "LICENSE-MIT",
                    "LICENSE.txt",
                    "training_args.bin",
                    "checkpoint-3/optimizer.pt",
                    "SHA256SUMS",
                ],
            ),
            (Kind::Pickle, &["adapter_model.bin", "a.PT", "x.pkl", "lora.pth", "README.bin"]),
            (Kind::Unknown, &["train.py", "run.sh", "a.exe", "noextension", "x.zip", "README.py", "a.safetensors.exe"]),
        ] {
            for path in paths {
                assert_eq!(kind(path), kind_, "{path}");
            }
        }
    }
}
