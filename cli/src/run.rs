//! `run`: generate text.

use std::{
    io::{IsTerminal, Read},
    process::ExitCode,
};

use llm_local::{Engine, Error, FinishReason, GenerateRequest, Input, Message, Model, Result, core::CancellationToken};

use crate::{INTERRUPTED, answer, args::Run, bar, memory::Monitored, stdio};

pub(crate) async fn run(engine: &Engine, args: Run) -> Result<ExitCode> {
    let prompt = match args.prompt {
        Some(prompt) => prompt,
        None => read_prompt()?,
    };
    let spec = args.spec.spec()?;
    let cancel = cancel_on_interrupt()?;
    let _monitored = Monitored::start(engine);
    let model = unless_cancelled(engine.load_with_progress(&spec, Some(bar::progress())), &cancel).await?;
    let input = input(&model, prompt, args.how.system.clone(), args.raw)?;
    let mut request = GenerateRequest::new(input).with_sampling(args.how.sampling()).with_cancel(cancel);
    request.max_tokens = args.how.max_tokens;
    match answer::write(model.generate(request)).await {
        Err(error) => {
            if let Error::ContextLengthExceeded { .. } = error {
                answer::report_model(&model);
            }
            Err(error)
        }
        Ok(None) => Ok(ExitCode::SUCCESS),
        Ok(Some(ended)) => {
            answer::report_model(&model);
            answer::report(&ended);
            let interrupted = ended.reason == FinishReason::Cancelled;
            Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
        }
    }
}

/// Waits for `load`, or gives it up when the user interrupts.
pub(crate) async fn unless_cancelled<T>(
    load: impl Future<Output = Result<T>>,
    cancel: &CancellationToken,
) -> Result<T> {
    let load = std::pin::pin!(load);
    let cancelled = std::pin::pin!(cancel.cancelled());
    match futures_util::future::select(load, cancelled).await {
        futures_util::future::Either::Left((result, _)) => result,
        futures_util::future::Either::Right(_) => Err(Error::Cancelled),
    }
}

/// The first Ctrl-C ends what runs: a generation then still shows its statistics. The second ends the program.
pub(crate) fn cancel_on_interrupt() -> Result<CancellationToken> {
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
