//! Prefill and decode against a bare candle-transformers loop.

mod beside;
mod verdict;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use candle_core::DType;
use llm_local::{ComputeDtype, core::FloatType};

use crate::{
    Result,
    bare::Bare,
    files,
    ours::{self, Timing},
    stats::Quartiles,
};
use beside::Beside;
use verdict::Verdict;

/// One side of a pair takes at least about so long; a model that is quicker runs more than once.
const SHORTEST: Duration = Duration::from_millis(500);

/// After so long, no further round of chunks is tried.
const LONG: Duration = Duration::from_secs(20);

/// Chunks of a prompt that the yardstick is tried with, beside the whole prompt.
const CHUNKS: [usize; 3] = [32, 64, 128];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The models: folders with one model.safetensors, or GGUF files.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    #[command(flatten)]
    runs: Runs,
    /// Also compares the bare loop with a second copy of itself: how far the ratio of equals strays on this machine.
    #[arg(long)]
    control: bool,
    /// Another engine's figures for the same files, shown beside: what `scripts/llamacpp.py` wrote.
    #[arg(long)]
    beside: Option<PathBuf>,
}

/// What is run, and how often.
#[derive(clap::Args)]
pub(crate) struct Runs {
    /// How many pairs are measured.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) pairs: u16,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 256)]
    pub(crate) prompt: usize,
    /// Tokens generated.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..))]
    pub(crate) decode: u16,
}

pub(crate) fn measure(args: &Args) -> Result<()> {
    let beside = args.beside.as_deref().map(Beside::read).transpose()?;
    println!(
        "speed, {}: prompt {}, {} tokens generated, {} interleaved pairs\n\
         tok/s are medians; ours/bare is the median [quartiles] of the ratios within the pairs; the bare loop has the \
         prompt in the chunks (in brackets) that suit it best{}",
        files::threads_in_words()?,
        args.runs.prompt,
        args.runs.decode,
        args.runs.pairs,
        beside.as_ref().map(|b| format!("; beside, not interleaved: {b}")).unwrap_or_default()
    );
    println!(
        "  {:<34} {:<4} {:<8} {:>8} {:>14}   {:<22} {:<8} {:>8}",
        "", "in", "", "ours", "bare", "ours/bare", "", "beside"
    );
    args.models.iter().try_for_each(|path| pairs(path, args, beside.as_ref()))
}

/// What is run within a pair.
enum Side {
    Ours,
    Bare,
    /// A second copy of the bare loop.
    Twin,
}

fn pairs(path: &Path, args: &Args, beside: Option<&Beside>) -> Result<()> {
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
    let (prompt, count) = (prompt(args.runs.prompt, info.vocab_size), usize::from(args.runs.decode));
    let chunk = best_chunk(&mut bare, &prompt, args.runs.pairs)?;
    let warm = ours::run(&model, &prompt, count)?;
    let repeats = (SHORTEST.as_secs_f64() / (warm.prefill + warm.decode).as_secs_f64()).ceil() as usize;

    let mut twin = if args.control { Some(Bare::load(path, dtype)?) } else { None };
    let (mut of_ours, mut of_bare, mut of_twin) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..args.runs.pairs {
        // Ours stays next to the loop it is compared with; the other is only shown beside.
        let mut order = [Side::Ours, Side::Bare, Side::Twin];
        if pair % 2 == 1 {
            order.reverse();
        }
        for side in order {
            match side {
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

    let name = files::name(path);
    let other = beside.and_then(|b| b.figures(&name));
    let row = |name: &str, part: &str, ours: &[Timing], rate: fn(&Timing) -> f64, beside: Option<f64>| {
        let median = |timings: &[Timing]| Quartiles::of(timings.iter().map(rate)).median;
        let ratio = Quartiles::of(ours.iter().zip(&of_bare).map(|(ours, bare)| rate(ours) / rate(bare)));
        println!(
            "  {name:<34} {:<4} {part:<8} {:>8.1} {:>8.1} {:>5}   {:<22} {:<8} {:>8}",
            info.dtype.to_string(),
            median(ours),
            median(&of_bare),
            if part == "prefill" { format!("({chunk})") } else { String::new() },
            ratio.to_string(),
            Verdict::of(ratio).to_string(),
            beside.map(|rate| format!("{rate:.1}")).unwrap_or_default()
        );
    };
    row(&name, "prefill", &of_ours, Timing::prefill_rate, other.map(|o| o.prefill));
    row("", "decode", &of_ours, Timing::decode_rate, other.map(|o| o.decode));
    if twin.is_some() {
        row("  bare against itself", "prefill", &of_twin, Timing::prefill_rate, None);
        row("", "decode", &of_twin, Timing::decode_rate, None);
    }
    let same = of_ours[0].tokens.iter().zip(&of_bare[0].tokens).take_while(|(a, b)| a == b).count();
    println!("  {:<34} first {same} of {count} tokens as the bare loop's; {repeats} runs on a side of a pair", "");
    Ok(())
}

/// `count` ids spread over the vocabulary, without its first few, which tend to be special.
pub(crate) fn prompt(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| (64 + i * 7919 % (vocab - 64)) as u32).collect()
}

/// In how many tokens at a time the bare loop computes the prompt fastest: the best median of up to three runs, taken in
/// turn until that takes long. It warms up with the first.
fn best_chunk(bare: &mut Bare, prompt: &[u32], pairs: u16) -> Result<usize> {
    let mut chunks: Vec<usize> = CHUNKS.into_iter().filter(|chunk| *chunk < prompt.len()).collect();
    chunks.push(prompt.len());
    bare.run(prompt, chunks[0], 2)?;
    let mut times = vec![Vec::new(); chunks.len()];
    let start = Instant::now();
    for round in 0..pairs.min(3) {
        if round > 0 && start.elapsed() > LONG {
            break;
        }
        for (chunk, times) in chunks.iter().zip(&mut times) {
            times.push(bare.run(prompt, *chunk, 1)?.prefill.as_secs_f64());
        }
    }
    let medians = times.into_iter().map(|times| Quartiles::of(times).median);
    let best = medians.zip(&chunks).min_by(|a, b| a.0.total_cmp(&b.0));
    Ok(best.map_or(prompt.len(), |(_, chunk)| *chunk))
}
