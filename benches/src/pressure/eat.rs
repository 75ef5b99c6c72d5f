//! A process that takes memory.

use std::{io, thread, time::Duration};

use super::{Says, say};
use crate::Result;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How much at once, in MB (10^6 bytes).
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    step: u64,
}

pub(crate) fn eat(args: &Args) -> Result<()> {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    let mut bytes = 0;
    for line in io::stdin().lines() {
        let line = line?;
        let (goal, every) = order(&line)
            .ok_or_else(|| format!("stdin: `{line}`; expected bytes to have, and milliseconds between steps"))?;
        for step in steps(bytes, goal, args.step * 1_000_000) {
            // Each byte is written, so that each page is there.
            eaten.push(vec![1; usize::try_from(step)?]);
            bytes += step;
            thread::sleep(every);
        }
        say(&Says::Ate { bytes })?;
    }
    // Until then it is all kept.
    drop(std::hint::black_box(eaten));
    Ok(())
}

/// What a line asks for: how many bytes there are to be, and how long to wait between steps.
fn order(line: &str) -> Option<(u64, Duration)> {
    let (goal, every) = line.trim().split_once(' ')?;
    Some((goal.parse().ok()?, Duration::from_millis(every.parse().ok()?)))
}

/// The steps from `from` bytes up to `goal`, of at most `most` bytes.
fn steps(from: u64, goal: u64, most: u64) -> impl Iterator<Item = u64> {
    let mut left = goal.saturating_sub(from);
    std::iter::from_fn(move || {
        let step = left.min(most);
        left -= step;
        (step > 0).then_some(step)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_bytes_and_milliseconds() {
        assert_eq!(order("5000000 50\n"), Some((5_000_000, Duration::from_millis(50))));
        assert_eq!([order("5000000"), order("x 50"), order("5 -1"), order("")], [None; 4]);
    }

    #[test]
    fn steps_end_at_the_goal() {
        assert_eq!(steps(5, 30, 10).collect::<Vec<_>>(), [10, 10, 5]);
        assert_eq!(steps(10, 30, 10).collect::<Vec<_>>(), [10, 10]);
        assert_eq!(steps(30, 30, 10).count() + steps(31, 30, 10).count(), 0);
    }
}
