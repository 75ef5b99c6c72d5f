//! Whether a model's memory is back after it is unloaded, round after round in one process.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use llm_local::{ComputeDtype, Engine, GenerateRequest, ModelSpec};
use serde::{Deserialize, Serialize};

use crate::{
    Result, files, ours,
    resident::{Resident, resident},
};

/// Tokens generated in a round.
const TOKENS: usize = 32;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The models: folders or GGUF files, each in a process of its own.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// How often each is loaded, generates, and is unloaded.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(10..))]
    rounds: u16,
    /// What resident memory may be after any round above what it was before the first, in MB (10^6 bytes).
    #[arg(long, default_value_t = 50.0)]
    most: f64,
    /// What the last five rounds may be above the first five, and the fitted line may rise in all rounds, in MB.
    #[arg(long, default_value_t = 2.0)]
    growth: f64,
}

#[derive(clap::Args)]
pub(crate) struct One {
    /// The model: a folder or a GGUF file.
    model: PathBuf,
    /// How often.
    #[arg(long)]
    rounds: u16,
}

/// What a process saw.
#[derive(Serialize, Deserialize)]
struct Seen {
    before: Resident,
    /// After each round.
    after: Vec<Resident>,
}

/// How values go on from round to round.
#[derive(Debug, PartialEq)]
struct Course {
    most: f64,
    first_five: f64,
    last_five: f64,
    /// Of the line of least squares, in all rounds.
    rise: f64,
}

impl Course {
    /// The course of at least five values.
    fn of(values: &[f64]) -> Self {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (count, middle, level) = (values.len(), (values.len() - 1) as f64 / 2.0, mean(values));
        let from_middle = |i: usize| i as f64 - middle;
        let products: f64 = values.iter().enumerate().map(|(i, v)| from_middle(i) * (v - level)).sum();
        let squares: f64 = (0..count).map(|i| from_middle(i).powi(2)).sum();
        Self {
            most: values.iter().copied().fold(f64::MIN, f64::max),
            first_five: mean(&values[..5]),
            last_five: mean(&values[count - 5..]),
            rise: products / squares * (count - 1) as f64,
        }
    }
}

pub(crate) fn measure(args: &Args) -> Result<()> {
    println!(
        "resident memory in MB (VmRSS; RssAnon in brackets) after {} rounds of load, {TOKENS} tokens, unload, growth since \
         before the first;\nat most {} MB, the last five rounds at most {} above the first five, and a fitted line that \
         rises at most as much in all",
        args.rounds, args.most, args.growth
    );
    println!("  {:<34} {:>15} {:>15} {:>15} {:>15}", "", "most", "first five", "last five", "line rises");
    let failures = args.models.iter().map(|model| one(model, args)).collect::<Result<Vec<_>>>()?;
    let failures: Vec<String> = failures.into_iter().flatten().collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}

/// Prints the row of one model; gives what is wrong with it.
fn one(model: &Path, args: &Args) -> Result<Option<String>> {
    files::touch(model)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("rounded").arg(model).args(["--rounds", &args.rounds.to_string()]);
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let seen: Seen = serde_json::from_slice(&output.stdout)?;
    let course = |part: fn(Resident) -> u64| {
        let growth = |now: &Resident| (part(*now) as f64 - part(seen.before) as f64) / 1e6;
        Course::of(&seen.after.iter().map(growth).collect::<Vec<_>>())
    };
    let (all, anonymous) = (course(|r| r.all), course(|r| r.anonymous));
    let both = |part: fn(&Course) -> f64| format!("{:.1} ({:.1})", part(&all), part(&anonymous));
    println!(
        "  {:<34} {:>15} {:>15} {:>15} {:>15}",
        files::name(model),
        both(|c| c.most),
        both(|c| c.first_five),
        both(|c| c.last_five),
        both(|c| c.rise)
    );
    let is_fine = |c: &Course| {
        c.most <= args.most && c.last_five - c.first_five <= args.growth && c.rise <= args.growth //
    };
    let wrong = (!is_fine(&all) || !is_fine(&anonymous)).then(|| {
        let rounds: Vec<String> = seen.after.iter().map(|r| format!("{:.1}", r.all as f64 / 1e6)).collect();
        format!("{}: memory is not back after every round: {} MB in all", files::name(model), rounds.join(" "))
    });
    Ok(wrong)
}

/// Runs the rounds, and prints what was seen; `measure` runs it.
pub(crate) fn rounded(args: &One) -> Result<()> {
    let (engine, spec) = (ours::engine()?, ours::spec(&args.model, None, ComputeDtype::Auto)?);
    let before = resident()?;
    let mut after = Vec::new();
    for _ in 0..args.rounds {
        pollster::block_on(round(&engine, &spec))?;
        after.push(resident()?);
    }
    println!("{}", serde_json::to_string(&Seen { before, after })?);
    Ok(())
}

/// Loads, generates, and unloads.
async fn round(engine: &Engine, spec: &ModelSpec) -> Result<()> {
    let model = engine.load(spec).await?;
    let request = GenerateRequest::new("Once upon a time").with_max_tokens(TOKENS).with_ignore_eos(true);
    let done = model.generate(request).complete().await?;
    if done.tokens.len() != TOKENS {
        return Err(format!("{} tokens were generated; expected {TOKENS}", done.tokens.len()).into());
    }
    Ok(model.unload().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_fitted_through_all_rounds() {
        let even: Vec<f64> = (0..10).map(f64::from).collect();
        assert_eq!(Course::of(&even), Course { most: 9.0, first_five: 2.0, last_five: 7.0, rise: 9.0 });
        assert_eq!(Course::of(&[3.0; 10]).rise, 0.0);
    }
}
