//! How much of what adapters do is lost when they are merged into quantized tensors which are quantized again: measured on
//! probe prompts, before the model is handed out.
//!
//! With q the logits of the requantized model, u those with the adapters unmerged and b those of the base alone, of all
//! prompts and the whole vocabulary, it is `|q - u| / |u - b|` in the Euclidean norm.

mod progress;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use llm_local_core::{AdapterSet, Error, LoadedModel, LogitsRequest, Message, Result};

pub(super) use self::progress::Loads;
use super::route::Requantizing;

/// What is measured on where a spec has no prompts of its own: questions, tasks, code, data and two languages, so that
/// whatever an adapter is about, some of it shows.
const PROMPTS: [&str; 8] = [
    "Hello! Who are you?",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Translate into German: Good morning, how are you?",
    "Write a Python function that adds two numbers.",
    "List three fruits as a JSON array.",
    "What is 17 times 3? Think step by step.",
    "Résumez en une phrase : la réunion de lundi est reportée à jeudi.",
];

/// What is asked of models to tell how much is lost.
#[derive(Debug)]
pub(super) struct Probe {
    /// The adapters, in messages.
    names: String,
    prompts: Vec<String>,
    /// What is asked of the merge, and whether adapters can run unmerged instead.
    requantizing: Requantizing,
}

/// The logits after each prompt, of shape (vocab,) each.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answers(Vec<Vec<f32>>);

/// What adapters do to the answers of a base.
#[derive(Debug)]
pub(super) struct Effect {
    unmerged: Answers,
    /// Their distance from the base's, squared.
    squares: f64,
}

impl Probe {
    /// `prompts`, or the library's own if there are none, for adapters that messages call `names`,
    /// of a merge that is held to `requantizing`.
    pub(super) fn new(prompts: &[String], names: String, requantizing: Requantizing) -> Self {
        let own = || PROMPTS.map(str::to_owned).to_vec();
        Self { names, prompts: if prompts.is_empty() { own() } else { prompts.to_vec() }, requantizing }
    }

    /// What `model` answers, with the adapters that it has or those of `set`.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] that names the prompt, around those of [`LoadedModel::logits`].
    pub(super) async fn ask(&self, model: &dyn LoadedModel, set: Option<&AdapterSet>) -> Result<Answers> {
        let is_chat = model.info().has_chat_template;
        let mut answers = Vec::with_capacity(self.prompts.len());
        for prompt in &self.prompts {
            let mut request = match is_chat {
                true => LogitsRequest::new(vec![Message::user(prompt)]),
                false => LogitsRequest::new(prompt.as_str()),
            };
            request.adapters = set.cloned();
            answers.push(model.logits(request).await.map_err(|error| self.not_measured(prompt, error))?);
        }
        Ok(Answers(answers))
    }

    /// How many prompts there are.
    pub(super) fn len(&self) -> usize {
        self.prompts.len()
    }

    /// What the adapters do: `unmerged` is what the model answers with them, and `base` what it does without.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] if that is nothing, or no number.
    pub(super) fn effect(&self, unmerged: Answers, base: &Answers) -> Result<Effect> {
        let squares = unmerged.squares_from(base);
        if squares > 0.0 && squares.is_finite() {
            return Ok(Effect { unmerged, squares });
        }
        let found = if squares == 0.0 { "are those of the base, bit for bit" } else { "are not all finite numbers" };
        let reason = format!(
            "how much of its effect is lost by quantizing again cannot be measured: with it, the logits after {} {found}; \
             name prompts that it is for (`probe_prompts`), or set `adapter_policy` to {}",
            self.described(),
            self.others()
        );
        Err(Error::adapter(&self.names, reason))
    }

    /// Checks that no more of the effect is lost than may be, where `lost` is.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] that says how much is lost and what is not quantized again.
    pub(super) fn check(&self, lost: f64) -> Result<()> {
        let most = self.requantizing.max_error;
        // What is no number is no loss that anybody allows.
        if lost <= f64::from(most) {
            return Ok(());
        }
        let (lost, most) = shown(lost, most);
        let reason = format!(
            "merged and quantized again, it loses {lost} of its effect on the logits after {}, and at most {most} may be \
             lost (`max_error` of `merge-requantized`); set `adapter_policy` to {}, which does not quantize again, or raise \
             `max_error`",
            self.described(),
            self.others()
        );
        Err(Error::adapter(&self.names, reason))
    }

    /// The policies that are open besides.
    fn others(&self) -> &'static str {
        match self.requantizing.can_be_beside {
            true => "`keep-unmerged` or `merge-dequantized`",
            false => "`merge-dequantized`",
        }
    }

    fn described(&self) -> String {
        match self.prompts.len() {
            1 => "the probe prompt".into(),
            count => format!("{count} probe prompts"),
        }
    }

    fn not_measured(&self, prompt: &str, error: Error) -> Error {
        if matches!(error, Error::Cancelled) {
            return error;
        }
        let reason = format!(
            "how much of its effect is lost by quantizing again cannot be measured after the prompt {prompt:?}: {error} (other \
             prompts are named by `probe_prompts`)"
        );
        Error::AdapterMergeFailed { adapter: self.names.clone(), reason, source: Some(Arc::new(error)) }
    }
}

/// What is lost and what may be, in as many digits as tell that the one is more than the other.
fn shown(lost: f64, most: f32) -> (String, String) {
    let short = (format!("{lost:.6}"), most.to_string());
    match (short.0.parse::<f64>(), short.1.parse::<f64>()) {
        (Ok(shown), Ok(limit)) if shown <= limit => (lost.to_string(), f64::from(most).to_string()),
        _ => short,
    }
}

impl Effect {
    /// Which part of it is lost in a model that answers so; 1 is as much as the adapters do.
    pub(super) fn lost_in(&self, answers: &Answers) -> f64 {
        (self.unmerged.squares_from(answers) / self.squares).sqrt()
    }
}

impl Answers {
    /// The squared Euclidean distance, of all numbers together. Where one vocabulary has more rows, which an adapter gave
    /// it, the others' logits of these are left out.
    fn squares_from(&self, other: &Self) -> f64 {
        let pairs = self.0.iter().zip(&other.0).flat_map(|(own, other)| own.iter().zip(other));
        pairs.map(|(own, other)| (f64::from(*own) - f64::from(*other)).powi(2)).sum()
    }
}
