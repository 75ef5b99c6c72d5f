//! Prefill and decode against a bare candle loop.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use candle_core::DType;
use llm_local::{ComputeDtype, Model, core::FloatType};

use crate::{
    Result,
    bare::Bare,
    files,
    ours::{self, Timing},
    stats::Quartiles,
};

/// The upper quartile of ours / bare that is wanted.
const GOAL: f64 = 0.98;

/// One side of a pair takes at least about so long; a model that is quicker runs more than once.
const SHORTEST: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The models: folders with one model.safetensors, or GGUF files.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// How many pairs are measured.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 256)]
    prompt: usize,
    /// Tokens generated.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..))]
    decode: u16,
    /// Also compares the bare loop with a second copy of itself: how far the ratio of equals strays on this machine.
    #[arg(long)]
    control: bool,
}

pub(crate) fn measure(args: &Args) -> Result<()> {
    println!(
        "speed, {} threads: prompt {}, {} tokens generated, {} pairs; tok/s are medians, ratios median [quartiles]",
        files::threads(),
        args.prompt,
        args.decode,
        args.pairs
    );
    args.models.iter().try_for_each(|path| pairs(path, args))
}

/// What is run within a pair.
enum Side {
    Ours,
    Bare,
    /// A second copy of the bare loop.
    Twin,
    /// The bare loop with the whole prompt in one chunk.
    Whole,
}

fn pairs(path: &Path, args: &Args) -> Result<()> {
    files::touch(path)?;
    let engine = ours::engine()?;
    let model = pollster::block_on(engine.load(&ours::spec(path, None, ComputeDtype::Auto)?))?;
    let info = model.info();
    let dtype = match info.dtype {
        FloatType::F32 => DType::F32,
        FloatType::F16 => DType::F16,
        FloatType::Bf16 => DType::BF16,
        other => return Err(format!("the bare loop does not compute in {other}").into()),
    };
    let mut bare = Bare::load(path, dtype)?;
    let (prompt, count) = (prompt(args.prompt, info.vocab_size), usize::from(args.decode));
    let chunk = chunk(&model, &prompt)?;

    bare.run(&prompt, chunk, 2)?;
    let warm = ours::run(&model, &prompt, count)?;
    let repeats = (SHORTEST.as_secs_f64() / (warm.prefill + warm.decode).as_secs_f64()).ceil() as usize;

    let mut twin = if args.control { Some(Bare::load(path, dtype)?) } else { None };
    let (mut of_ours, mut of_bare, mut of_twin, mut whole) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pair in 0..args.pairs {
        // Ours stays next to the loop it is compared with; the others are only shown beside.
        let mut order = [Side::Whole, Side::Ours, Side::Bare, Side::Twin];
        if pair % 2 == 1 {
            order.reverse();
        }
        for side in order {
            match side {
                Side::Whole => whole.push(Timing::sum(repeats, || bare.run(&prompt, prompt.len(), 1))?),
                Side::Ours => of_ours.push(Timing::sum(repeats, || ours::run(&model, &prompt, count))?),
                Side::Bare => of_bare.push(Timing::sum(repeats, || bare.run(&prompt, chunk, count))?),
                Side::Twin => {
                    if let Some(twin) = &mut twin {
                        of_twin.push(Timing::sum(repeats, || twin.run(&prompt, chunk, count))?);
                    }
                }
            }
        }
    }
    pollster::block_on(model.unload())?;

    let same = of_ours[0].tokens.iter().zip(&of_bare[0].tokens).take_while(|(a, b)| a == b).count();
    println!(
        "{} ({}; same tokens as bare: {same} of {count}; {repeats} runs on each side of a pair)",
        files::name(path),
        info.dtype
    );
    row(&format!("prefill, chunks of {chunk}"), &of_ours, &of_bare, Timing::prefill_rate, Some(GOAL));
    row("prefill, bare in one", &of_ours, &whole, Timing::prefill_rate, None);
    row("decode", &of_ours, &of_bare, Timing::decode_rate, Some(GOAL));
    if twin.is_some() {
        row("control: bare as ours, prefill", &of_twin, &of_bare, Timing::prefill_rate, None);
        row("control: bare as ours, decode", &of_twin, &of_bare, Timing::decode_rate, None);
    }
    Ok(())
}

fn row(part: &str, ours: &[Timing], bare: &[Timing], rate: impl Fn(&Timing) -> f64, goal: Option<f64>) {
    let median = |timings: &[Timing]| Quartiles::of(timings.iter().map(&rate)).median;
    let ratio = Quartiles::of(ours.iter().zip(bare).map(|(ours, bare)| rate(ours) / rate(bare)));
    let verdict = match goal {
        Some(goal) if ratio.upper >= goal => format!("upper quartile at least {goal}: met"),
        Some(goal) => format!("upper quartile at least {goal}: MISSED"),
        None => "shown beside, no goal".into(),
    };
    println!(
        "  {part:<30} ours {:>8.1} tok/s   bare {:>8.1} tok/s   ours/bare {ratio}   {verdict}",
        median(ours),
        median(bare)
    );
}

/// `count` ids spread over the vocabulary, without its first few, which tend to be special.
fn prompt(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| (64 + i * 7919 % (vocab - 64)) as u32).collect()
}

/// How many tokens of a prompt ours computes at a time, found by counting its steps, so that the bare loop does the same.
fn chunk(model: &Model, prompt: &[u32]) -> Result<usize> {
    let before = model.counters().forward_steps;
    ours::run(model, prompt, 1)?;
    let steps = model.counters().forward_steps - before;
    match usize::try_from(steps)? {
        0 => Err("the model counts no forward steps, so its prefill chunk is unknown".into()),
        steps => Ok(prompt.len().div_ceil(steps)),
    }
}
