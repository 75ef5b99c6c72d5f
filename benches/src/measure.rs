//! Measures llm-local: speed against a bare candle loop, load time and memory, and logits of a real model against its
//! references and against its own weights in f32. `scripts/measure`, `scripts/check-*` run it.
//!
//! Every comparison is made of interleaved pairs in one run, the order alternating, and judged by the quartiles of the
//! ratio within each pair: a machine that drifts hits both sides of a pair alike.

#![allow(clippy::print_stdout, clippy::print_stderr)] // printing is what this program is for

mod bare;
mod beside;
mod estimates;
mod files;
mod load;
mod memory;
mod merge;
mod ours;
mod pressure;
mod quantized;
mod rates;
mod reference;
mod resident;
mod rounds;
mod speed;
mod stats;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prefill and decode against a bare candle loop over the same weights.
    Speed(speed::Args),
    /// Prefill and decode of one model, a round for each line of standard input, as JSON; `scripts/measure-mlx` runs it.
    Rates(rates::Args),
    /// Decode and prefill with an adapter beside the weights against the base alone.
    Beside(beside::Args),
    /// The merge's arithmetic against a copy of the same bytes.
    Merge(merge::Args),
    /// Time to load a model with an adapter against without.
    Load(Pairs),
    /// Peak memory of loading a model with an adapter against without, each in a process of its own.
    Memory(Pairs),
    /// Loads a model and prints how long that took and this process's memory, as JSON; `memory` and
    /// `scripts/measure-lora` run it.
    Peak(memory::Peak),
    /// Resident memory that GGUF models take, each in a process of its own; fails if it is too much.
    Resident(resident::Args),
    /// Loads a model, generates, unloads it, and prints this process's memory meanwhile; `resident` runs it.
    Held {
        /// The model: a GGUF file.
        base: PathBuf,
    },
    /// Estimated memory against measured, each model and context in a process of its own; fails if they are too far apart.
    Estimates(estimates::Args),
    /// Loads a model, fills its context, and prints estimate and memory, as JSON; `estimates` runs it.
    Estimated(estimates::One),
    /// Resident memory over rounds of load, generate and unload; fails if it is not back, or grows.
    Rounds(rounds::Args),
    /// Runs the rounds of one model in this process, and prints its memory after each, as JSON; `rounds` runs it.
    Rounded(rounds::One),
    /// Models while memory runs short, for real; `scripts/check-pressure` and `scripts/measure-pressure` run it.
    #[command(subcommand)]
    Pressure(pressure::Command),
    /// Logits and greedy tokens of a model, in f32, against reference outputs.
    Reference(reference::Args),
    /// Logits of GGUF files against those of their own weights in f32; fails if they are too far apart.
    Quantized(quantized::Args),
}

#[derive(clap::Args)]
struct Pairs {
    /// The model: a folder or a GGUF file.
    base: PathBuf,
    /// The adapter's folder.
    #[arg(long)]
    adapter: PathBuf,
    /// How many pairs are measured.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Speed(args) => speed::measure(&args),
        Command::Rates(args) => rates::serve(&args),
        Command::Beside(args) => beside::measure(&args),
        Command::Merge(args) => merge::measure(&args),
        Command::Load(args) => load::measure(&args),
        Command::Memory(args) => memory::measure(&args),
        Command::Peak(args) => memory::peak(&args),
        Command::Resident(args) => resident::measure(&args),
        Command::Held { base } => resident::held(&base),
        Command::Estimates(args) => estimates::measure(&args),
        Command::Estimated(args) => estimates::estimated(&args),
        Command::Rounds(args) => rounds::measure(&args),
        Command::Rounded(args) => rounds::rounded(&args),
        Command::Pressure(command) => pressure::run(&command),
        Command::Reference(args) => reference::check(&args),
        Command::Quantized(args) => quantized::check(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
