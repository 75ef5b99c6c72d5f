//! The text side, opened on a thread of its own while the weights are read.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
    thread,
};

use llm_local_core::{CancellationToken, Error, LoadOptions, Result, TextFiles};
use tokio::sync::oneshot;

use crate::text::TextPipeline;

/// What the thread came to: a panic is told apart.
type Opened = thread::Result<Result<TextPipeline>>;

/// Opens the text side of the model `id`; cancels `stop` unless that worked.
fn open(id: &str, text: &TextFiles, stop: &CancellationToken) -> Opened {
    let opened = catch_unwind(AssertUnwindSafe(|| TextPipeline::open(id, text)));
    if !matches!(opened, Ok(Ok(_))) {
        stop.cancel();
    }
    opened
}

/// The thread of the tokenizer.
fn tokenizer_thread() -> thread::Builder {
    thread::Builder::new().name("llm-tokenizer".into())
}

/// Opens the text side of the model `id` while `load` reads its weights, which stops where that fails: it is the quicker
/// of the two, and its error the one that is told. `end` is called behind it, at the end of the thread that opened it.
///
/// # Errors
/// That of the text side, else that of `load`.
pub fn open_text_beside<T>(
    id: &str,
    text: &TextFiles,
    o: &LoadOptions,
    end: impl Fn() + Sync,
    load: impl FnOnce(&LoadOptions) -> Result<T>,
) -> Result<(TextPipeline, T)> {
    let stop = o.cancel.child_token();
    let stoppable = o.clone().with_cancel(stop.clone());
    let open = || {
        let opened = open(id, text, &stop);
        end();
        opened
    };
    let (opened, loaded) = thread::scope(|scope| {
        let opening = tokenizer_thread().spawn_scoped(scope, open);
        let loaded = load(&stoppable);
        // Where the system gives no more threads, one after the other.
        let opened = opening.map_or_else(|_| open(), |opening| opening.join().flatten());
        (opened, loaded)
    });
    Ok((opened.unwrap_or_else(|panic| resume_unwind(panic))?, loaded?))
}

/// [`open_text_beside`] for a load that waits for something else than a thread.
///
/// # Errors
/// That of the text side, else that of `load`.
pub async fn open_text_while<T>(
    id: &str,
    text: &TextFiles,
    o: &LoadOptions,
    load: impl AsyncFnOnce(&LoadOptions) -> Result<T>,
) -> Result<(TextPipeline, T)> {
    let stop = o.cancel.child_token();
    let stoppable = o.clone().with_cancel(stop.clone());
    let opening = open_text(id, text, stop);
    let loaded = load(&stoppable).await;
    Ok((opening.await?, loaded?))
}

/// Begins to open the text side of the model `id` on a thread of its own. `stop` is cancelled if that fails, so that what
/// else is loaded can end. Where the system gives no more threads, it is opened in this call.
pub fn open_text(id: &str, text: &TextFiles, stop: CancellationToken) -> TextOpening {
    let (sender, opened) = oneshot::channel();
    let on_thread = {
        let (id, text, stop) = (id.to_owned(), text.clone(), stop.clone());
        // Whoever does not wait any more needs no text side.
        move || drop(sender.send(open(&id, &text, &stop)))
    };
    if tokenizer_thread().spawn(on_thread).is_ok() {
        return TextOpening(opened);
    }
    let (sender, opened_here) = oneshot::channel();
    drop(sender.send(open(id, text, &stop)));
    TextOpening(opened_here)
}

/// A text side that is being opened, as a future. A panic of that goes on in whoever waits.
#[derive(Debug)]
#[must_use = "the text side is dropped unless this is awaited"]
pub struct TextOpening(oneshot::Receiver<Opened>);

impl Future for TextOpening {
    type Output = Result<TextPipeline>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match ready!(Pin::new(&mut self.0).poll(cx)) {
            Ok(Ok(opened)) => opened,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(Error::load("the tokenizer", "the thread that reads it ended without an answer")),
        })
    }
}
