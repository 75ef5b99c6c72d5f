//! Memory pressure for real. `scripts/check-pressure` runs `hold`, `chat` and `eat` in a control group, and
//! `scripts/measure-pressure` runs `latency`.
//!
//! | module | what its process does |
//! |---|---|
//! | `hold` | holds models, and generates again when it is told |
//! | `chat` | goes on with chats while memory runs short, and after |
//! | `eat` | takes memory away from them |
//! | `latency` | times how soon a model's memory is back |

mod chat;
mod eat;
mod hold;
mod latency;

use std::{io, thread};

use clap::Subcommand;
use llm_local::{
    Engine,
    memory::{MemoryEvent, MemoryPolicy},
};
use serde::Serialize;

use crate::{Result, resident};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Loads models, generates with each, and at each line on stdin generates again; fails if the tokens differ.
    Hold(hold::Args),
    /// Answers while memory runs short, and goes on with another chat at a line on stdin.
    Chat(chat::Args),
    /// Takes memory, step by step: each line on stdin says up to how many bytes, and how many milliseconds a step takes.
    Eat(eat::Args),
    /// Time from critical pressure to the memory of idle models being back, each in a process of its own.
    Latency(latency::Args),
    /// Runs the rounds of one model in this process, and prints its times, as JSON; `latency` runs it.
    Relieved(latency::One),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Hold(args) => hold::hold(args),
        Command::Chat(args) => chat::chat(args),
        Command::Eat(args) => eat::eat(args),
        Command::Latency(args) => latency::measure(args),
        Command::Relieved(args) => latency::relieved(args),
    }
}

/// What a process prints for the script that runs it: a line of JSON.
#[derive(Serialize)]
#[serde(tag = "says", rename_all = "snake_case")]
enum Says<'a> {
    /// It has loaded so many models, and so many anonymous bytes are resident (RssAnon).
    Holds { models: usize, anonymous: u64 },
    /// The engine did or heard of something.
    Event { kind: &'a str, text: String },
    /// It generates, and waits for nobody.
    Generates,
    /// A generation ended.
    Ended {
        what: &'a str,
        reason: String,
        tokens: usize,
        /// Tokens of the same generation when nothing disturbed it.
        expected: usize,
        /// Whether the tokens are those, as far as they go.
        same: bool,
        /// Prompt tokens that were in a KV cache.
        cached: usize,
    },
    /// It has so many bytes.
    Ate { bytes: u64 },
}

fn say(says: &Says<'_>) -> Result<()> {
    println!("{}", serde_json::to_string(says)?);
    Ok(())
}

fn say_holds(models: usize) -> Result<()> {
    say(&Says::Holds { models, anonymous: resident::status("RssAnon")? })
}

/// An engine that knows of no model, whose events are printed.
fn engine(policy: MemoryPolicy) -> Result<Engine> {
    let cache = std::env::temp_dir().join("llm-local-measure");
    let engine = Engine::builder().cache_dir(cache).offline(true).memory(policy).build()?;
    let mut events = engine.memory_events();
    thread::spawn(move || {
        while let Some(event) = pollster::block_on(events.next()) {
            if let Err(error) = say(&Says::Event { kind: kind(&event), text: event.to_string() }) {
                eprintln!("an event could not be printed: {error}");
            }
        }
    });
    Ok(engine)
}

/// The kind of an event, for the script.
fn kind(event: &MemoryEvent) -> &'static str {
    use llm_local::memory::pressure::PressureLevel::{Critical, Normal, Warn};
    match event {
        MemoryEvent::Pressure { level: Normal, .. } => "normal",
        MemoryEvent::Pressure { level: Warn, .. } => "warn",
        MemoryEvent::Pressure { level: Critical, .. } => "critical",
        MemoryEvent::Admitted { .. } => "admitted",
        MemoryEvent::Refused { .. } => "refused",
        MemoryEvent::Evicted { .. } => "evicted",
        MemoryEvent::Trimmed { .. } => "trimmed",
        MemoryEvent::GenerationStopped { .. } => "stopped",
        _ => "other",
    }
}

/// Waits for a line on stdin. An end of it is an error: whoever was to say something is gone.
fn wait_for_a_line() -> Result<()> {
    match io::stdin().read_line(&mut String::new())? {
        0 => Err("stdin ended before it said what to do next".into()),
        _ => Ok(()),
    }
}
