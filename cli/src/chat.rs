//! `chat`: a turn per line.

use std::{
    io::{BufRead, IsTerminal},
    path::Path,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver},
    },
};

use llm_local::{Engine, Error, ModelSpec, Result, SavedCache, Session, TurnOptions, core::CancellationToken};

use crate::{
    INTERRUPTED, answer,
    args::{Chat, How},
    bar,
    memory::Monitored,
    run::unless_cancelled,
    stdio,
};

pub(crate) async fn chat(engine: &Engine, args: Chat) -> Result<ExitCode> {
    let spec = args.spec.spec()?;
    let input = Input::open()?;
    let _monitored = Monitored::start(engine);
    let loading = input.begin();
    let model = unless_cancelled(engine.load_with_progress(&spec, Some(bar::progress())), &loading).await?;
    let mut session = match &args.session {
        Some(path) if path.exists() => {
            unless_cancelled(restore(engine, &spec, path, args.messages_only), &loading).await?
        }
        _ => engine.session(&spec),
    };
    input.end();
    if let Some(system) = &args.how.system {
        session.set_system_prompt(system);
    }
    answer::report_model(&model);
    let mut code = ExitCode::SUCCESS;
    let end = loop {
        match input.next() {
            Event::Line(line) => match obey(&mut session, &args.how, &input, line.trim()).await {
                Ok(Flow::Continue) => {}
                Ok(Flow::End) => break Ok(code),
                // A chat goes on; whoever started the program hears of it at the end.
                Err(error) => {
                    eprintln!("error: {error}");
                    code = ExitCode::FAILURE;
                }
            },
            Event::Interrupt => break Ok(ExitCode::from(INTERRUPTED)),
            Event::End(result) => break result.map(|()| code),
        }
    };
    if let Some(path) = &args.session {
        save(&session, path).await?;
    }
    end
}

/// The chat in the file at `path`.
async fn restore(engine: &Engine, spec: &ModelSpec, path: &Path, messages_only: bool) -> Result<Session> {
    if messages_only {
        return engine.restore_messages(spec, path).await;
    }
    match engine.restore_session(spec, path).await {
        Err(Error::InvalidSpec { field, reason }) => Err(match engine.restore_messages(spec, path).await {
            Ok(_) => Error::invalid_spec(field, format!("{reason} (--messages-only)")),
            // The file has no chat.
            Err(_) => Error::InvalidSpec { field, reason },
        }),
        result => result,
    }
}

/// Writes the chat to `path`, and says so if that is not all there was.
async fn save(session: &Session, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    if let SavedCache::Left(reason) = session.save(path).await? {
        eprintln!("warning: {} has the messages of the chat but not its KV cache: {reason}", path.display());
    }
    Ok(())
}

enum Flow {
    Continue,
    /// Nobody reads the answers any more.
    End,
}

/// Does what a line says.
async fn obey(session: &mut Session, how: &How, input: &Input, line: &str) -> Result<Flow> {
    let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    match command {
        "" => {}
        "/system" if rest.is_empty() => session.remove_system_prompt(),
        "/system" => session.set_system_prompt(rest),
        "/undo" => drop(session.undo()),
        "/reset" => session.reset().await?,
        "/save" if !rest.is_empty() => save(session, rest).await?,
        _ if command.starts_with('/') => {
            let reason = "expected a message, or one of /system TEXT, /undo, /reset, /save FILE";
            return Err(Error::invalid_spec(format!("command `{line}`"), reason));
        }
        _ => {
            let mut options = TurnOptions::new().with_sampling(how.sampling()).with_cancel(input.begin());
            options.max_tokens = how.max_tokens;
            let ended = async { answer::write(session.send(line, options).await?).await }.await;
            input.end();
            let Some(ended) = ended? else { return Ok(Flow::End) };
            answer::report(&ended);
        }
    }
    Ok(Flow::Continue)
}

/// What happens from outside.
enum Event {
    Line(String),
    /// Standard input has ended, or cannot be read.
    End(Result<()>),
    Interrupt,
}

/// Standard input, and Ctrl-C: it ends what runs, or, when nothing runs, the chat; the second time the program.
struct Input {
    events: Receiver<Event>,
    running: Arc<Mutex<Option<CancellationToken>>>,
}

impl Input {
    fn open() -> Result<Self> {
        let (lines, events) = mpsc::channel();
        let interrupts = lines.clone();
        let running = Arc::new(Mutex::new(None::<CancellationToken>));
        let interrupted = running.clone();
        ctrlc::set_handler(move || {
            match &*interrupted.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(running) if running.is_cancelled() => std::process::exit(i32::from(INTERRUPTED)),
                Some(running) => running.cancel(),
                // The chat may have ended already.
                None => drop(interrupts.send(Event::Interrupt)),
            }
        })
        .map_err(|e| Error::unsupported("Ctrl-C", format!("the handler could not be set: {e}")))?;
        // Reading cannot be interrupted, so it has a thread of its own.
        std::thread::spawn(move || {
            let mut read = std::io::stdin().lock().lines();
            let end = loop {
                match read.next() {
                    Some(Ok(line)) => {
                        if lines.send(Event::Line(line)).is_err() {
                            return;
                        }
                    }
                    Some(Err(error)) => break Err(stdio("read", "standard input", error)),
                    None => break Ok(()),
                }
            };
            drop(lines.send(Event::End(end)));
        });
        Ok(Self { events, running })
    }

    /// Waits for what comes next.
    fn next(&self) -> Event {
        if std::io::stdin().is_terminal() {
            eprint!("\n> ");
        }
        self.events.recv().unwrap_or(Event::End(Ok(())))
    }

    /// Something runs; the token is what Ctrl-C cancels.
    fn begin(&self) -> CancellationToken {
        let token = CancellationToken::new();
        self.set(Some(token.clone()));
        token
    }

    /// Nothing runs.
    fn end(&self) {
        self.set(None);
    }

    fn set(&self, token: Option<CancellationToken>) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }
}
