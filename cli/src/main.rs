//! llm-local on the command line.

#![allow(clippy::print_stdout, clippy::print_stderr)] // printing is what this program is for; libraries never do

mod adapter;
mod answer;
mod args;
mod bar;
mod chat;
mod doctor;
mod export;
mod memory;
mod plan;
mod run;
mod sample;
mod stored;

use std::{
    io::{ErrorKind, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
};

use args::{Args, Command};
use clap::Parser;
use llm_local::{Engine, EngineBuilder, Error, Result, memory::MemoryPolicy};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("LLM_LOCAL_LOG").unwrap_or_else(|_| EnvFilter::new(LOGGED)))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match pollster::block_on(execute(args)) {
        Ok(code) => code,
        Err(Error::Cancelled) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("error: {error}");
            if std::env::var_os("LLM_LOCAL_LOG").is_some() {
                eprintln!("code: {}", error.code());
            }
            ExitCode::FAILURE
        }
    }
}

async fn execute(args: Args) -> Result<ExitCode> {
    let memory = args.command.memory()?;
    let engine = engine(&memory).build()?;
    match args.command {
        Command::Run(run) => run::run(&engine, run).await,
        Command::Chat(chat) => chat::chat(&engine, chat).await,
        Command::Plan(plan) => plan::plan(&engine, &plan.spec.spec()?).await,
        Command::Doctor(args) => doctor::doctor(&engine, &self::engine(&memory).offline(true).build()?, &args).await,
        Command::Export(export) => export::export(&engine, export).await,
        Command::Pull(pull) => stored::pull(&engine, pull).await,
        Command::List => stored::list(engine.store()),
        Command::Rm { references } => {
            let references = references.iter().map(|text| text.parse()).collect::<Result<Vec<_>>>()?;
            stored::remove(engine.store(), &references)
        }
        Command::Verify(verify) => stored::verify(engine.store(), &verify),
        Command::Clean { older_than } => stored::clean(engine.store(), older_than),
        Command::Lock(lock) => {
            llm_local::lock::write(&engine.lock(&lock.spec.spec()?).await?, &lock.output)?;
            eprintln!("locked in {}", lock.output.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Adapter(command) => adapter::adapter(&engine.adapters(), command).await,
        Command::Plugins => {
            let mut lines = String::new();
            for p in engine.registry().plugins() {
                let origin = match (p.crate_name, p.crate_version) {
                    (Some(name), Some(version)) => format!("{} {version}", name),
                    _ => "this program".to_owned(),
                };
                let kind = p.kind.as_str();
                lines.push_str(&format!("{kind:<15} {:<10} {origin:<32} {}\n", p.name, p.origin));
            }
            print(&lines)
        }
    }
}

/// An engine of this program.
fn engine(memory: &MemoryPolicy) -> EngineBuilder {
    Engine::builder().source(sample::SampleSource).memory(memory.clone())
}

/// What is logged where nobody says otherwise. What the memory policy refuses is the error of the command already.
const LOGGED: &str = "warn,llm_local::memory=error,llm_local::memory::measure=warn";

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Writes to standard output. That the reader has gone is no error: `llm-local plugins | head -1`.
fn print(text: &str) -> Result<ExitCode> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(stdio("write", "standard output", e)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// What went wrong with standard input or output.
fn stdio(action: &'static str, path: &str, error: std::io::Error) -> Error {
    Error::Io { action, path: path.into(), source: Arc::new(error) }
}
