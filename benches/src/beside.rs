//! Decode and prefill with an adapter beside the weights against the base alone.

use std::path::PathBuf;

use llm_local::{AdapterPolicy, ComputeDtype};

use crate::{
    Result, files,
    ours::{self, Timing},
    speed::{Runs, prompt},
    stats::Quartiles,
};

/// The median of base / with for decoding that is wanted: at most 10 % slower.
const GOAL: f64 = 1.1;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The models: folders or GGUF files.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// The adapter's folder.
    #[arg(long)]
    adapter: PathBuf,
    #[command(flatten)]
    runs: Runs,
}

pub(crate) fn measure(args: &Args) -> Result<()> {
    println!(
        "{} beside the weights, {}: prompt {}, {} tokens generated, {} interleaved pairs\n\
         tok/s are medians; time with/without is the median [quartiles] of the ratios within the pairs",
        files::name(&args.adapter),
        files::threads_in_words()?,
        args.runs.prompt,
        args.runs.decode,
        args.runs.pairs
    );
    for base in &args.models {
        files::touch(base)?;
        let engine = ours::engine()?;
        let without = pollster::block_on(engine.load(&ours::spec(base, None, ComputeDtype::Auto)?))?;
        let spec = ours::spec(base, Some(&args.adapter), ComputeDtype::Auto)?;
        let with = pollster::block_on(engine.load(&spec.with_adapter_policy(AdapterPolicy::KeepUnmerged)))?;
        let (prompt, count) = (prompt(args.runs.prompt, with.info().vocab_size), usize::from(args.runs.decode));
        ours::run(&with, &prompt, count)?;
        ours::run(&without, &prompt, count)?;
        let (mut timings_with, mut timings_without) = (Vec::new(), Vec::new());
        for pair in 0..args.runs.pairs {
            if pair % 2 == 0 {
                timings_with.push(ours::run(&with, &prompt, count)?);
                timings_without.push(ours::run(&without, &prompt, count)?);
            } else {
                timings_without.push(ours::run(&without, &prompt, count)?);
                timings_with.push(ours::run(&with, &prompt, count)?);
            }
        }
        pollster::block_on(with.unload())?;
        pollster::block_on(without.unload())?;
        let row = |part: &str, rate: fn(&Timing) -> f64| {
            let median = |timings: &[Timing]| Quartiles::of(timings.iter().map(rate)).median;
            let pairs = timings_with.iter().zip(&timings_without);
            let ratio = Quartiles::of(pairs.map(|(with, without)| rate(without) / rate(with)));
            println!(
                "  {:<34} {part:<8} with {:>8.1}   without {:>8.1}   with/without {ratio}",
                files::name(base),
                median(&timings_with),
                median(&timings_without)
            );
            ratio
        };
        row("prefill", Timing::prefill_rate);
        let ratio = row("decode", Timing::decode_rate);
        println!("  decode at most {GOAL}: {}", if ratio.median <= GOAL { "met" } else { "MISSED" });
    }
    Ok(())
}
