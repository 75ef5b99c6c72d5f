//! An answer on standard output, and its statistics on standard error.

use std::io::{ErrorKind, Write};

use futures_util::{Stream, StreamExt};
use llm_local::{Error, FinishReason, GenerationEvent, Model, Result, Usage, core::GenerationStats};

use crate::stdio;

/// How an answer ended.
pub(crate) struct Ended {
    pub(crate) reason: FinishReason,
    usage: Usage,
    stats: GenerationStats,
}

/// Writes an answer as it comes. `None` if whoever read it has gone, which is the end of it and no error:
/// `llm-local run ... | head -1`.
pub(crate) async fn write(mut events: impl Stream<Item = Result<GenerationEvent>> + Unpin) -> Result<Option<Ended>> {
    let mut out = std::io::stdout().lock();
    let mut write = |text: &str| match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true).map_err(|e| stdio("write", "standard output", e)),
    };
    while let Some(event) = events.next().await {
        match event? {
            GenerationEvent::Token { text, .. } | GenerationEvent::Text(text) => {
                // A text that is not certain yet comes as an empty one.
                let gone = !text.is_empty() && !write(&text)?;
                if gone {
                    return Ok(None);
                }
            }
            GenerationEvent::Finished { reason, usage, stats, .. } => {
                return Ok(write("\n")?.then_some(Ended { reason, usage, stats }));
            }
            _ => {}
        }
    }
    Err(Error::generation("it ended without a reason"))
}

/// Says what runs, how long it took to load, and how long its context is, and why.
pub(crate) fn report_model(model: &Model) {
    let info = model.info();
    let load = model.load_stats().total().as_secs_f64();
    eprintln!("\n{} on {} ({}), loaded in {load:.2} s", info.model, info.backend, info.device.id);
    if let Some(plan) = &model.plan().model {
        eprintln!("context of {} tokens: {}", plan.context_length, plan.context_reason);
    }
}

/// Says what an answer took.
pub(crate) fn report(Ended { reason, usage, stats }: &Ended) {
    let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |r| format!("{r:.1} tokens/s"));
    let ended = match reason {
        FinishReason::Eos => "the model ended",
        FinishReason::Stop => "a stop text appeared",
        FinishReason::Length => "the length is reached",
        FinishReason::Cancelled => "interrupted",
        FinishReason::MemoryPressure => "stopped, because memory ran short",
        _ => "ended",
    };
    let cached = match usage.cached_tokens {
        0 => String::new(),
        n => format!(", {n} of them cached, the others"),
    };
    eprintln!(
        "{} prompt tokens{cached} at {}, {} generated at {}, first after {}; {ended}",
        usage.prompt_tokens,
        rate(stats.prefill_tokens_per_second()),
        usage.generated_tokens,
        rate(stats.decode_tokens_per_second()),
        stats.time_to_first_token.map_or("-".to_owned(), |t| format!("{:.0} ms", t.as_secs_f64() * 1e3)),
    );
    if !stats.adapters.is_empty() {
        let adapters: Vec<_> = stats.adapters.iter().map(ToString::to_string).collect();
        eprintln!("with {}", adapters.join(", "));
    }
}
