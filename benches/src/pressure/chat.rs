//! A process that chats while memory runs short.

use std::{path::PathBuf, time::Duration};

use llm_local::{
    Completion, ComputeDtype, Engine, FinishReason, GenerateRequest, GenerationEvent, ModelSpec, Session, TurnOptions,
    memory::MemoryPolicy,
};

use super::{Says, engine, say, say_holds, wait_for_a_line};
use crate::{Result, ours};

const FIRST: &str = "My name is Ada, and I like frogs.";
const SECOND: &str = "What is my name, and what do I like?";
const LAST: &str = "Write a long story about a frog that wants to fly.";
/// Tokens of an answer to the first two.
const SHORT: usize = 12;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model of the chats: a folder or a GGUF file.
    chat: PathBuf,
    /// A model that is loaded beside it, and idle: a folder or a GGUF file.
    idle: PathBuf,
    /// Tokens of the answer during which memory runs short.
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// Stops generations when memory is critically short. Otherwise the model of the chats is pinned, so that it is there
    /// afterwards, without KV caches.
    #[arg(long)]
    stop: bool,
    /// Seconds after which pressure is over that nobody reports any more.
    #[arg(long, default_value_t = 10)]
    calm: u64,
}

pub(crate) fn chat(args: &Args) -> Result<()> {
    pollster::block_on(run(args))
}

async fn run(args: &Args) -> Result<()> {
    let policy = MemoryPolicy::new().stopping_generations(args.stop).with_calm(Duration::from_secs(args.calm));
    let engine = engine(policy)?;
    let spec = ours::spec(&args.chat, None, ComputeDtype::Auto)?;
    say_holds(0)?;
    let [first, second, last] = undisturbed(&engine, &spec, args.tokens).await?;
    // One that has said its first, and waits for the rest of the chat.
    let mut waiting = engine.session(&spec);
    expect("the first answer", &answer(&mut waiting, FIRST, SHORT).await?, &first)?;
    let mut running = engine.session(&spec);
    expect("the first answer", &answer(&mut running, FIRST, SHORT).await?, &first)?;
    expect("the second answer", &answer(&mut running, SECOND, SHORT).await?, &second)?;
    say_holds(1)?;
    let idle = ours::spec(&args.idle, None, ComputeDtype::Auto)?;
    engine.generate(&idle, GenerateRequest::new("Once upon a time").with_max_tokens(2)).await?.complete().await?;
    say_holds(2)?;
    wait_for_a_line()?;
    let _pinned = if args.stop { None } else { Some(engine.load(&spec).await?.pin()?) };
    engine.start_monitoring()?;
    let (tokens, reason) = story(&mut running, args.tokens).await?;
    say(&Says::Ended {
        what: "the answer",
        reason: format!("{reason:?}"),
        tokens: tokens.len(),
        expected: last.tokens.len(),
        same: last.tokens.starts_with(&tokens),
        cached: 0,
    })?;
    wait_for_a_line()?;
    let rest = answer(&mut waiting, SECOND, SHORT).await?;
    say(&Says::Ended {
        what: "the other chat",
        reason: format!("{:?}", rest.finish_reason),
        tokens: rest.tokens.len(),
        expected: second.tokens.len(),
        same: rest.tokens == second.tokens,
        cached: rest.usage.cached_tokens,
    })?;
    engine.stop_monitoring();
    Ok(())
}

/// The three answers of a chat that nothing disturbs, of which the last has `tokens` tokens.
async fn undisturbed(engine: &Engine, spec: &ModelSpec, tokens: usize) -> Result<[Completion; 3]> {
    let mut session = engine.session(spec);
    let first = answer(&mut session, FIRST, SHORT).await?;
    let second = answer(&mut session, SECOND, SHORT).await?;
    if second.usage.cached_tokens == 0 {
        return Err("a chat that nothing disturbs computes what it has computed before".into());
    }
    Ok([first, second, answer(&mut session, LAST, tokens).await?])
}

async fn answer(session: &mut Session, text: &str, tokens: usize) -> Result<Completion> {
    Ok(session.complete(text, TurnOptions::new().with_max_tokens(tokens)).await?)
}

/// The tokens of an answer, the first of which is told, and why it ended.
async fn story(session: &mut Session, most: usize) -> Result<(Vec<u32>, FinishReason)> {
    let mut turn = session.send(LAST, TurnOptions::new().with_max_tokens(most)).await?;
    let mut tokens = Vec::new();
    while let Some(event) = turn.next().await {
        match event? {
            GenerationEvent::Token { id, .. } => {
                if tokens.is_empty() {
                    say(&Says::Generates)?;
                }
                tokens.push(id);
            }
            GenerationEvent::Finished { reason, .. } => return Ok((tokens, reason)),
            _ => {}
        }
    }
    Err("the answer ended without a reason".into())
}

fn expect(what: &str, found: &Completion, expected: &Completion) -> Result<()> {
    if found.tokens == expected.tokens {
        return Ok(());
    }
    Err(format!("{what} is {:?}; expected {:?}, as in the chat before", found.text, expected.text).into())
}
