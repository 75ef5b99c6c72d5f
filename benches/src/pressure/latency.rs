//! How soon the memory of an idle model is back when it is critically short.

mod samples;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use llm_local::{
    ComputeDtype, Engine, GenerateRequest, ModelSpec,
    memory::{
        MemoryEvent, MemoryEvents, MemoryPolicy,
        pressure::{ManualPressure, PressureLevel},
    },
};
use serde::{Deserialize, Serialize};

use self::samples::Sampler;
use crate::{Result, files, ours, resident, stats::Quartiles};

/// How long after the event the memory is looked at further, to see where it ends.
const AFTER: Duration = Duration::from_millis(250);
/// The memory is back when so much of what it falls by in all is back.
const BACK: f64 = 0.95;
/// What must be back in the end, of what the model took, for the times to be of anything.
const LEAST: f64 = 0.4;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The models: folders or GGUF files.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// How often each is loaded, generates, and has to go.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// What the median of the times may be, in milliseconds.
    #[arg(long, default_value_t = 100.0)]
    goal: f64,
}

#[derive(clap::Args)]
pub(crate) struct One {
    /// The model: a folder or a GGUF file.
    model: PathBuf,
    #[arg(long)]
    rounds: u16,
    /// How the engine is told.
    #[arg(long)]
    by: By,
}

/// How an engine is told that memory is critically short.
#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// A source of pressure reports it.
    Report,
    /// `Engine::relieve` is called.
    Relieve,
}

/// What was seen in a round.
#[derive(Serialize, Deserialize)]
struct Round {
    /// Anonymous bytes that the model took.
    took: u64,
    /// Anonymous bytes that went.
    fell: u64,
    /// Milliseconds until they were gone.
    back: f64,
    /// Milliseconds until the event that says so.
    evicted: f64,
}

pub(crate) fn measure(args: &Args) -> Result<()> {
    println!(
        "milliseconds from critical pressure until {} % of what falls of RssAnon has fallen, and until the event of the \
         eviction; an idle model after a generation, {} rounds; median [least, most]; the goal is a median below {}",
        BACK * 100.0,
        args.rounds,
        args.goal
    );
    println!("  {:<34} {:<16} {:>8} {:>22} {:>22} {:>22}", "", "told by", "MB", "MB left", "memory back", "event");
    for model in &args.models {
        for by in [By::Report, By::Relieve] {
            one(model, by, args)?;
        }
    }
    Ok(())
}

/// Prints the row of one model.
fn one(model: &Path, by: By, args: &Args) -> Result<()> {
    files::touch(model)?;
    let (value, words) = match by {
        By::Report => ("report", "a source"),
        By::Relieve => ("relieve", "Engine::relieve"),
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["pressure", "relieved"]).arg(model).args(["--rounds", &args.rounds.to_string(), "--by", value]);
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let rounds: Vec<Round> = serde_json::from_slice(&output.stdout)?;
    let fell = Quartiles::of(rounds.iter().map(|round| round.fell as f64 / 1e6)).median;
    let back = Quartiles::of(rounds.iter().map(|round| round.back)).median;
    println!(
        "  {:<34} {words:<16} {fell:>8.1} {:>22} {:>22} {:>22}  {}",
        files::name(model),
        spread(rounds.iter().map(|round| (round.took as f64 - round.fell as f64) / 1e6)),
        spread(rounds.iter().map(|round| round.back)),
        spread(rounds.iter().map(|round| round.evicted)),
        if back < args.goal { "met".to_owned() } else { format!("MISSED by {:.1}", back - args.goal) }
    );
    Ok(())
}

/// Median, least and most of `values`, of which there is one at least.
fn spread(values: impl Iterator<Item = f64> + Clone) -> String {
    let (least, most) = (values.clone().fold(f64::MAX, f64::min), values.clone().fold(f64::MIN, f64::max));
    format!("{:.1} [{least:.1}, {most:.1}]", Quartiles::of(values).median)
}

/// Runs the rounds, and prints what was seen; `measure` runs it.
pub(crate) fn relieved(args: &One) -> Result<()> {
    // Pressure is over at once, or the next round's load would wait for its end.
    let policy = MemoryPolicy::new().with_calm(Duration::ZERO);
    let cache = std::env::temp_dir().join("llm-local-measure");
    let engine = Engine::builder().cache_dir(cache).offline(true).memory(policy).build()?;
    let spec = ours::spec(&args.model, None, ComputeDtype::Auto)?;
    let source = ManualPressure::new();
    if matches!(args.by, By::Report) {
        engine.start_monitoring_with(vec![Arc::new(source.clone())])?;
    }
    let tell = || match args.by {
        By::Report => source.report(PressureLevel::Critical, "it is measured"),
        By::Relieve => pollster::block_on(engine.relieve(PressureLevel::Critical)),
    };
    let rounds = (0..args.rounds).map(|_| round(&engine, &spec, tell)).collect::<Result<Vec<_>>>()?;
    println!("{}", serde_json::to_string(&rounds)?);
    Ok(())
}

/// Loads and generates, and has the engine told by `tell`.
fn round(engine: &Engine, spec: &ModelSpec, tell: impl FnOnce()) -> Result<Round> {
    let before = resident::status("RssAnon")?;
    let request = GenerateRequest::new("Once upon a time").with_max_tokens(8).with_ignore_eos(true);
    pollster::block_on(async { engine.generate(spec, request).await?.complete().await })?;
    let took = resident::status("RssAnon")?.saturating_sub(before);
    let mut events = engine.memory_events();
    let sampler = Sampler::start()?;
    let start = Instant::now();
    tell();
    pollster::block_on(evicted(&mut events))?;
    let evicted = start.elapsed();
    std::thread::sleep(AFTER);
    let samples = sampler.stop()?;
    let fell = samples.fell();
    if (fell as f64) < took as f64 * LEAST {
        return Err(format!("RssAnon fell by {fell} bytes; expected nearly the {took} that the model took").into());
    }
    let back = samples.back(BACK).saturating_duration_since(start);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(Round { took, fell, back: milliseconds(back), evicted: milliseconds(evicted) })
}

/// Waits until a model is gone.
async fn evicted(events: &mut MemoryEvents) -> Result<()> {
    while let Some(event) = events.next().await {
        if matches!(event, MemoryEvent::Evicted { .. }) {
            return Ok(());
        }
    }
    Err("the engine is gone, and has evicted nothing".into())
}
