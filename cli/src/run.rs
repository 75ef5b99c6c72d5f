//! `run`: generate text.

use std::{
    io::{ErrorKind, IsTerminal, Read, Write},
    process::ExitCode,
};

use llm_local::{
    Engine, Error, FinishReason, GenerateRequest, GenerationEvent, Input, Message, Model, Result, Sampling, Usage,
    core::{CancellationToken, GenerationStats},
};

use crate::{INTERRUPTED, args::Run, stdio};

pub(crate) async fn run(engine: &Engine, args: Run) -> Result<ExitCode> {
    let prompt = match args.prompt {
        Some(prompt) => prompt,
        None => read_prompt()?,
    };
    let spec = args.spec.spec()?;
    let cancel = cancel_on_interrupt()?;
    let model = unless_cancelled(engine.load(&spec), &cancel).await?;
    let mut sampling = Sampling::greedy().with_temperature(args.temperature);
    if let Some(seed) = args.seed {
        sampling = sampling.with_seed(seed);
    }
    let input = input(&model, prompt, args.system, args.raw)?;
    let mut request = GenerateRequest::new(input).with_sampling(sampling).with_cancel(cancel);
    if let Some(most) = args.max_tokens {
        request = request.with_max_tokens(most);
    }
    let mut generation = model.generate(request);
    let mut out = std::io::stdout().lock();
    let mut write = |text: &str| out.write_all(text.as_bytes()).and_then(|()| out.flush());
    let written = |result: std::io::Result<()>| match result {
        // Whoever read the text has gone, which is the end of it and no error: `llm-local run ... | head -1`.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true).map_err(|e| stdio("write", "standard output", e)),
    };
    while let Some(event) = generation.next().await {
        let text = match event? {
            GenerationEvent::Token { text, .. } | GenerationEvent::Text(text) => text,
            GenerationEvent::Finished { reason, usage, stats, .. } => {
                if !written(write("\n"))? {
                    return Ok(ExitCode::SUCCESS);
                }
                report(&model, reason, usage, &stats);
                let interrupted = reason == FinishReason::Cancelled;
                return Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS });
            }
            _ => continue,
        };
        if !text.is_empty() && !written(write(&text))? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    Err(Error::load(spec.id(), "the generation ended without a reason"))
}

/// Waits for `load`, or gives it up when the user interrupts.
async fn unless_cancelled<T>(load: impl Future<Output = Result<T>>, cancel: &CancellationToken) -> Result<T> {
    let load = std::pin::pin!(load);
    let cancelled = std::pin::pin!(cancel.cancelled());
    match futures_util::future::select(load, cancelled).await {
        futures_util::future::Either::Left((result, _)) => result,
        futures_util::future::Either::Right(_) => Err(Error::Cancelled),
    }
}

/// The first Ctrl-C ends the generation, which then still shows its statistics; the second ends the program.
fn cancel_on_interrupt() -> Result<CancellationToken> {
    let cancel = CancellationToken::new();
    let on_interrupt = cancel.clone();
    ctrlc::set_handler(move || {
        if on_interrupt.is_cancelled() {
            std::process::exit(i32::from(INTERRUPTED));
        }
        on_interrupt.cancel();
    })
    .map_err(|e| Error::unsupported("Ctrl-C", format!("the handler could not be set: {e}")))?;
    Ok(cancel)
}

fn read_prompt() -> Result<String> {
    let mut stdin = std::io::stdin();
    let mut prompt = String::new();
    if !stdin.is_terminal() {
        stdin.read_to_string(&mut prompt).map_err(|e| stdio("read", "standard input", e))?;
    }
    if prompt.is_empty() {
        return Err(Error::invalid_spec(
            "prompt",
            "there is none; give one as the last argument, or on standard input",
        ));
    }
    Ok(prompt)
}

fn input(model: &Model, prompt: String, system: Option<String>, raw: bool) -> Result<Input> {
    if raw || !model.info().has_chat_template {
        if system.is_some() {
            return Err(Error::invalid_spec(
                "--system",
                "this model has no chat template to put it into; write it into the prompt instead",
            ));
        }
        return Ok(Input::Text(prompt));
    }
    let system = system.map(Message::system);
    Ok(Input::Messages(system.into_iter().chain([Message::user(prompt)]).collect()))
}

fn report(model: &Model, reason: FinishReason, usage: Usage, stats: &GenerationStats) {
    let info = model.info();
    let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |r| format!("{r:.1} tokens/s"));
    let ended = match reason {
        FinishReason::Eos => "the model ended",
        FinishReason::Stop => "a stop text appeared",
        FinishReason::Length => "the length is reached",
        FinishReason::Cancelled => "interrupted",
        FinishReason::MemoryPressure => "memory ran short",
        _ => "ended",
    };
    eprintln!(
        "\n{} on {} ({}), loaded in {:.2} s",
        info.model,
        info.backend,
        info.device.id,
        model.load_stats().total().as_secs_f64()
    );
    eprintln!(
        "{} prompt tokens at {}, {} generated at {}, first after {}; {ended}",
        usage.prompt_tokens,
        rate(stats.prefill_tokens_per_second()),
        usage.generated_tokens,
        rate(stats.decode_tokens_per_second()),
        stats.time_to_first_token.map_or("-".to_owned(), |t| format!("{:.0} ms", t.as_secs_f64() * 1e3)),
    );
}
