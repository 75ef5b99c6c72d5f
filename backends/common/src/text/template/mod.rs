//! A chat to text, by the model's own Jinja template.
//!
//! The environment is that of transformers' `apply_chat_template`: `trim_blocks` and `lstrip_blocks` on, loop controls,
//! `raise_exception`, `strftime_now` (in UTC), its `tojson`, the model's special tokens by name. Templates come from
//! strangers: their work and their output are bounded.
//!
//! | module | what it holds |
//! |---|---|
//! | [`source`] | where the template is |
//! | [`functions`] | the functions that transformers gives to templates |
//! | [`json`] | `tojson` |

mod functions;
mod json;
mod source;

use std::{collections::BTreeMap, io};

use llm_local_core::{Error, Message, Result, model::GgufMetadata};
use minijinja::{Environment, Value, syntax::SyntaxConfig};

use self::functions::Raised;
use super::files::Configs;

pub(super) use source::special_token;

const NAME: &str = "chat_template";

/// Instructions that a template may take, and 64 times as many bytes that it may produce, beside what the messages
/// add. The longest templates in use take some thousand instructions per message.
const FUEL: u64 = 1_000_000;
const FUEL_PER_MESSAGE: u64 = 10_000;
/// Bytes of output that a template may add, beside what the messages account for.
const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// How often a template may repeat the messages.
const MAX_REPEATS: usize = 16;

/// A model's chat template, or why it has none.
pub(super) struct ChatTemplate {
    model: String,
    state: State,
    special_tokens: BTreeMap<&'static str, String>,
}

enum State {
    Ready(Box<Environment<'static>>),
    /// There is one, but it cannot be used. Reported when it is needed: plain text works without it.
    Broken(String),
    Missing,
}

impl ChatTemplate {
    /// The template of `chat_template.jinja`, else of `tokenizer_config.json`, else of GGUF metadata.
    pub(super) fn open(model: &str, configs: &Configs, gguf: Option<&GgufMetadata>) -> Self {
        let state = match source::find(configs, gguf) {
            Ok(None) => State::Missing,
            Err(reason) => State::Broken(reason),
            Ok(Some(text)) => match environment(text) {
                Ok(environment) => State::Ready(Box::new(environment)),
                Err(error) => State::Broken(describe(&error)),
            },
        };
        Self { model: model.to_owned(), state, special_tokens: source::special_tokens(model, configs, gguf) }
    }

    /// Whether there is one, usable or not.
    pub(super) fn exists(&self) -> bool {
        !matches!(self.state, State::Missing)
    }

    /// The text of a chat, with the prompt for the assistant's turn at its end.
    pub(super) fn render(&self, messages: &[Message]) -> Result<String> {
        let model = &self.model;
        let environment = match &self.state {
            State::Ready(environment) => environment,
            State::Broken(reason) => {
                return Err(Error::generation(format!(
                    "the chat template of {model} cannot be used: {reason}; give the prompt as plain text instead"
                )));
            }
            State::Missing => {
                return Err(Error::unsupported(
                    "a chat",
                    format!("{model} has no chat template (a base model?); give the prompt as plain text instead"),
                ));
            }
        };
        let bytes = messages.iter().map(|m| m.content.len()).sum::<usize>();
        let mut context: BTreeMap<&str, Value> =
            self.special_tokens.iter().map(|(&name, token)| (name, Value::from(token.as_str()))).collect();
        context.insert("messages", messages.iter().map(message).collect());
        context.insert("add_generation_prompt", Value::from(true));
        // transformers defines both, so templates ask `is not none`.
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));

        let mut output = Bounded { bytes: Vec::new(), limit: MAX_OUTPUT_BYTES.saturating_add(bytes * MAX_REPEATS) };
        let mut environment = (**environment).clone();
        environment.set_fuel(Some(FUEL + bytes as u64 + messages.len() as u64 * FUEL_PER_MESSAGE));
        environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut output).map(drop))
            .map_err(|error| self.failed(&error))?;
        String::from_utf8(output.bytes)
            .map_err(|_| Error::generation(format!("the chat template of {model} gave text that is not UTF-8")))
    }

    fn failed(&self, error: &minijinja::Error) -> Error {
        let model = &self.model;
        match functions::raised(error) {
            Some(Raised(message)) => {
                Error::invalid_spec("messages", format!("the chat template of {model} refuses them: {message}"))
            }
            None => Error::generation(format!("the chat template of {model} failed: {}", describe(error))),
        }
    }
}

/// `text` compiled. Templates are bound to nothing but what stands here.
fn environment(text: String) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    functions::add(&mut environment);
    environment.add_template_owned(NAME, source::without_generation_tags(text))?;
    Ok(environment)
}

/// A message as templates see it: `role` and `content`.
fn message(message: &Message) -> Value {
    // Every role serializes as its name.
    let role = serde_json::to_value(message.role).ok();
    let role = role.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    Value::from_pairs([("role", role), ("content", message.content.as_str())])
}

/// The message of an error and of its causes, with the line.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Output up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::other(format!("its output has more than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
