//! Memory: how much models may take, and what happened to it while the program ran.

use std::thread::{self, JoinHandle};

use futures_util::future::{Either, select};
use llm_local::{
    Engine, Error, Result,
    core::CancellationToken,
    memory::{Budget, ContextTiers, MemoryEvent, MemoryPolicy},
};

/// Where the budget stands if no argument says it.
const VARIABLE: &str = "LLM_LOCAL_MEMORY_BUDGET";

#[derive(Debug, clap::Args)]
pub(crate) struct Memory {
    /// How much memory models may take: a share such as 0.5 of what this program could have, or bytes such as 4GB or 512MiB.
    /// Without it, what LLM_LOCAL_MEMORY_BUDGET says, or 0.8.
    #[arg(long, value_name = "SHARE|BYTES", value_parser = budget, allow_negative_numbers = true)]
    memory_budget: Option<Budget>,
}

impl Memory {
    /// The policy where a spec asks for a context, or does not. A context that somebody asks for here is had or refused, and not
    /// cut to what memory of this size is good for by itself.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that names the variable.
    pub(crate) fn policy(&self, asks_for_context: bool) -> Result<MemoryPolicy> {
        let policy = MemoryPolicy::new();
        let policy = match self.memory_budget.map_or_else(from_environment, |budget| Ok(Some(budget)))? {
            Some(budget) => policy.with_budget(budget),
            None => policy,
        };
        Ok(if asks_for_context { policy.with_context_tiers(ContextTiers::unlimited()) } else { policy })
    }
}

fn from_environment() -> Result<Option<Budget>> {
    let Some(text) = std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) else { return Ok(None) };
    budget(&text.to_string_lossy()).map(Some).map_err(|reason| Error::invalid_spec(VARIABLE, reason))
}

/// The budget that `text` is.
fn budget(text: &str) -> std::result::Result<Budget, String> {
    let expected = || {
        format!(
            "it is `{text}`; expected a share above 0 and at most 1, such as 0.5, or bytes, such as 4GB, 512MiB or 4000000000"
        )
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| expected())?;
    let unit: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" if number <= 1.0 => 0,
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(expected()),
    };
    let bytes = number * unit as f64;
    match unit {
        0 if number > 0.0 => Ok(Budget::Share(number)),
        // 1.5 is no share, and nobody means it in bytes.
        1.. if bytes >= 1.0 && bytes.fract() == 0.0 => Ok(Budget::Bytes(bytes as u64)),
        _ => Err(expected()),
    }
}

/// Monitors memory, and says what happens to it on standard error, until it is dropped.
pub(crate) struct Monitored {
    engine: Engine,
    end: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Monitored {
    pub(crate) fn start(engine: &Engine) -> Self {
        let mut events = engine.memory_events();
        if let Err(error) = engine.start_monitoring() {
            eprintln!("warning: nothing will tell when memory runs short: {error}");
        }
        let end = CancellationToken::new();
        let ended = end.clone();
        let thread = thread::spawn(move || {
            pollster::block_on(async {
                loop {
                    let (next, end) = (std::pin::pin!(events.next()), std::pin::pin!(ended.cancelled()));
                    match select(next, end).await {
                        Either::Left((Some(event), _)) => tell(&event),
                        Either::Left((None, _)) | Either::Right(_) => break,
                    }
                }
            });
            while let Some(event) = events.try_next() {
                tell(&event);
            }
        });
        Self { engine: engine.clone(), end, thread: Some(thread) }
    }
}

impl Drop for Monitored {
    fn drop(&mut self) {
        self.engine.stop_monitoring();
        self.end.cancel();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("warning: what happened to memory is not all told");
        }
    }
}

fn tell(event: &MemoryEvent) {
    if is_told(event) {
        eprintln!("memory: {event}");
    }
}

/// A load that is let in is what is expected, and a refusal is the error of the command, or the reason of the second try.
fn is_told(event: &MemoryEvent) -> bool {
    !matches!(event, MemoryEvent::Admitted { .. } | MemoryEvent::Refused { .. })
}

#[cfg(test)]
mod tests {
    use llm_local::memory::{EvictionReason, pressure::PressureLevel};

    use super::*;

    #[test]
    fn a_budget_is_a_share_or_bytes_with_a_unit() {
        for (text, expected) in [
            ("0.5", Budget::Share(0.5)),
            ("1", Budget::Share(1.0)),
            (".25", Budget::Share(0.25)),
            ("4GB", Budget::Bytes(4_000_000_000)),
            ("1.5 gb", Budget::Bytes(1_500_000_000)),
            ("512MiB", Budget::Bytes(512 << 20)),
            ("2kB", Budget::Bytes(2_000)),
            ("4000000000", Budget::Bytes(4_000_000_000)),
            ("1B", Budget::Bytes(1)),
        ] {
            assert_eq!(budget(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "0GB", "-1", "1.5", "4XB", "half", "1e9", "GB", "1..5", "80%", "inf", "NaN"] {
            let error = budget(text).unwrap_err();
            assert!(error.contains(&format!("`{text}`")) && error.contains("512MiB"), "{error}");
        }
    }

    #[test]
    fn what_happened_is_told_and_what_the_error_tells_is_not() {
        let (model, reason) = (|| "m".to_owned(), || "r".to_owned());
        let evicted = MemoryEvent::Evicted {
            model: model(),
            bytes: 2_000_000_000,
            reason: EvictionReason::Pressure(PressureLevel::Warn),
        };
        assert_eq!(evicted.to_string(), "`m` was unloaded, 2.00 GB freed: memory pressure is warn");
        let trimmed = MemoryEvent::Trimmed { model: model(), bytes: 1_500, level: PressureLevel::Critical };
        assert_eq!(trimmed.to_string(), "`m` gave back 1.5 kB: memory pressure is critical");
        let retried = MemoryEvent::Retried { model: model(), context_length: 512, reason: reason() };
        let pressure = MemoryEvent::Pressure { level: PressureLevel::Warn, source: None, reason: reason() };
        for event in [evicted, trimmed, retried, pressure, MemoryEvent::GenerationStopped { model: model() }] {
            assert!(is_told(&event), "{event}");
        }
        for event in [
            MemoryEvent::Admitted { model: model(), bytes: 1 },
            MemoryEvent::Refused { model: model(), reason: reason() },
        ] {
            assert!(!is_told(&event), "{event}");
        }
    }

    #[test]
    fn a_context_that_is_asked_for_is_not_cut_by_the_table() {
        let memory = Memory { memory_budget: Some(Budget::Bytes(7)) };
        let asked = memory.policy(true).unwrap();
        assert_eq!((asked.budget, asked.context_tiers), (Budget::Bytes(7), ContextTiers::unlimited()));
        assert_eq!(memory.policy(false).unwrap().context_tiers, ContextTiers::default());
    }
}
