//! How text is split before BPE, by `tokenizer.ggml.pre`.
//!
//! Each pattern splits every piece that the patterns before it left: matches become pieces, and so does what stands
//! between them. Names and flags are those of llama.cpp's `src/llama-vocab.cpp`; where its patterns are adapted to its own
//! engine, the pattern of the models' `tokenizer.json` stands here instead.

use llm_local_core::{Error, Result};
use tokenizers::{
    PreTokenizerWrapper, SplitDelimiterBehavior,
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::BY_FILE;

/// GPT-2's pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's pattern: numbers in groups of up to three digits.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's pattern: each digit alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 3.5's pattern: marks belong to words.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern of o200k: words split where capitals begin, with their contraction.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken pattern.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek V3's last pattern.
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// BLOOM's pattern.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

/// Pre-tokenizers that split alike.
struct Family {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// A word that is a token is that token, whatever the merges say.
    ignore_merges: bool,
    /// The begin-of-sequence token is added unless the metadata says otherwise.
    adds_bos: bool,
}

const fn family(names: &'static [&'static str], patterns: &'static [&'static str]) -> Family {
    Family { names, patterns, ignore_merges: false, adds_bos: false }
}

const FAMILIES: &[Family] = &[
    family(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    family(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        &[GPT2],
    ),
    family(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], &[r"\p{N}", GPT2]),
    Family {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        adds_bos: true,
    },
    family(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[LLAMA3]),
    family(
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
        &[QWEN2],
    ),
    family(&["qwen35"], &[QWEN35]),
    family(&["gpt-4o", "llama4", "kanana2", "minimax-m2"], &[GPT4O]),
    Family { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, adds_bos: true },
    family(&["deepseek-v3", "step35", "hunyuan-dense", "joyai-llm"], &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3]),
    family(
        &["deepseek-coder"],
        &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥\u{0800}-一\u{AC00}-\u{D7FF}]+", r"\p{N}"],
    ),
    family(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    family(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    family(&["viking"], &[BLOOM, r"\p{N}"]),
    family(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"],
    ),
    family(
        &["seed-coder"],
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
];

/// One pre-tokenizer.
#[derive(Clone, Copy)]
pub(in crate::text) struct PreTokenizer(&'static Family);

impl PreTokenizer {
    /// The first name of each.
    #[cfg(test)]
    pub(in crate::text) fn families() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().map(|family| family.names[0])
    }

    /// The pre-tokenizer with a name. Files of before 2024 have none; they get llama.cpp's default, with a warning.
    ///
    /// # Errors
    /// [`Error::UnsupportedModelFormat`] for an unknown name: splitting otherwise than in training is a quiet loss.
    pub(in crate::text) fn of(model: &str, name: Option<&str>) -> Result<Self> {
        let Some(name) = name else {
            tracing::warn!(
                model,
                "its GGUF metadata has no `tokenizer.ggml.pre`: text may be tokenized otherwise than in training; convert the model again"
            );
            return Self::of(model, Some("default"));
        };
        FAMILIES.iter().find(|f| f.names.contains(&name)).map(Self).ok_or_else(|| {
            Error::unsupported_format(
                model,
                format!(
                    "`tokenizer.ggml.pre` is `{name}`; known are {}; {BY_FILE}",
                    FAMILIES.iter().flat_map(|f| f.names).copied().collect::<Vec<_>>().join(", ")
                ),
            )
        })
    }

    pub(in crate::text) fn ignore_merges(self) -> bool {
        self.0.ignore_merges
    }

    pub(in crate::text) fn adds_bos(self) -> bool {
        self.0.adds_bos
    }

    pub(in crate::text) fn build(self, model: &str) -> Result<PreTokenizerWrapper> {
        let mut steps = Vec::new();
        for pattern in self.0.patterns {
            let split = Split::new(SplitPattern::Regex((*pattern).to_owned()), SplitDelimiterBehavior::Isolated, false)
                .map_err(|error| {
                    Error::load(model, format!("the pre-tokenizer's pattern `{pattern}` is broken: {error}"))
                })?;
            steps.push(PreTokenizerWrapper::Split(split));
        }
        steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)));
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
    }
}
