//! Several ranges of one file at a time.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use llm_local_core::{Error, Result};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    body::{Body, Opening, open},
    bounds::Answers,
    context::{FileContext, blocking},
    pour::pour,
};
use crate::{
    disk::{Partial, Writer},
    network::{Attempts, Retry},
};

/// Why ranges are no longer fetched.
pub(super) enum Ended {
    /// Every range came, as far as is known here.
    Done,
    /// The file is another one now, with this ETag.
    Changed(Option<String>),
    /// The host sends all of the file whatever the range.
    Whole(Box<First>),
    /// The host says that a range lies beyond the end.
    Beyond,
}

/// A body that was opened already, and the right to its connection.
pub(super) type First = (Body, OwnedSemaphorePermit);

/// What the workers of one file share.
struct Work {
    file: Arc<FileContext>,
    partial: Partial,
    writer: Writer,
    validator: Option<String>,
    missing: Mutex<VecDeque<Range<u64>>>,
    halt: CancellationToken,
}

/// Fetches the ranges that are missing, lowest first, the first of them from `first`. The first worker that cannot go on
/// ends the others; they have stopped when this returns.
///
/// # Errors
/// The first worker's that fails for good; [`Error::Cancelled`].
pub(super) async fn fetch_ranges(file: &Arc<FileContext>, partial: &Partial, first: First) -> Result<Ended> {
    let writer = partial.writer();
    let missing: VecDeque<_> = writer.missing().into();
    let count = file.call.config.ranges_per_file.max(1).min(missing.len());
    let work = Arc::new(Work {
        file: file.clone(),
        partial: partial.clone(),
        writer,
        validator: partial.validator(),
        missing: Mutex::new(missing),
        halt: file.stop().child_token(),
    });
    let (mut workers, mut first) = (JoinSet::new(), Some(first));
    for _ in 0..count {
        let (work, first) = (work.clone(), first.take());
        // The first range is the first body's: it is taken before any worker runs.
        let range = match first {
            Some(_) => work.missing.lock().await.pop_front(),
            None => None,
        };
        workers.spawn(async move { work.run(range, first).await });
    }
    let mut ended = Ok(Ended::Done);
    while let Some(joined) = workers.join_next().await {
        let result = match joined {
            Ok(result) => result,
            Err(e) if e.is_panic() => {
                work.halt.cancel();
                while workers.join_next().await.is_some() {}
                std::panic::resume_unwind(e.into_panic());
            }
            Err(_) => Err(Error::Cancelled),
        };
        if !matches!(result, Ok(Ended::Done)) {
            // Those that are halted by this say that they were cancelled.
            if matches!(ended, Ok(Ended::Done)) {
                ended = result;
            }
            work.halt.cancel();
        }
    }
    ended
}

impl Work {
    /// Fetches `range`, from `first` if that is given, and then what is missing still, one range at a time.
    async fn run(&self, mut range: Option<Range<u64>>, mut first: Option<First>) -> Result<Ended> {
        loop {
            let next = match range.take() {
                Some(range) => Some(range),
                None => self.missing.lock().await.pop_front(),
            };
            let Some(next) = next else { return Ok(Ended::Done) };
            match self.fetch(next, first.take()).await? {
                Ended::Done => {}
                other => return Ok(other),
            }
        }
    }

    async fn fetch(&self, mut range: Range<u64>, mut first: Option<First>) -> Result<Ended> {
        let file = &*self.file;
        let (mut attempts, mut answers) = (Attempts::new(file.network()), Answers::default());
        while !range.is_empty() {
            let (body, connection) = match first.take() {
                Some(first) => first,
                None => {
                    let connection = self.unless_halted(file.connection()).await??;
                    let opening = open(file, range.clone(), self.validator.as_deref());
                    match self.unless_halted(opening).await? {
                        Ok(Opening::Body(body)) if !within(&body.range, &range) => {
                            return Ok(Ended::Whole(Box::new((body, connection))));
                        }
                        Ok(Opening::Body(body)) => {
                            if !fits(&self.partial, body.etag.clone()).await? {
                                return Ok(Ended::Changed(body.etag));
                            }
                            (body, connection)
                        }
                        Ok(Opening::Changed(etag)) => return Ok(Ended::Changed(etag)),
                        Ok(Opening::Beyond) => return Ok(Ended::Beyond),
                        Ok(Opening::Local(_)) => {
                            let reason = "its source brought parts of it and then a file of this machine";
                            return Err(Error::unsupported(format!("fetching {}", file.what), reason));
                        }
                        Err(failure) => {
                            drop(connection);
                            self.unless_halted(attempts.next(failure)).await??;
                            continue;
                        }
                    }
                }
            };
            let start = range.start;
            let poured = pour(file, &self.writer, &mut range.start, body, &self.halt).await;
            drop(connection);
            if range.start > start {
                attempts.progressed();
            }
            let counted = answers.count(file, range.start - start);
            match poured {
                Ok(()) if range.is_empty() => {}
                Ok(()) => counted?,
                // All that was asked for is here: how the connection ended does not matter.
                Err(failure) if range.is_empty() && failure.retry != Retry::Never => {}
                Err(failure) => {
                    self.unless_halted(attempts.next(failure)).await??;
                    counted?;
                }
            }
        }
        Ok(Ended::Done)
    }

    async fn unless_halted<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        self.halt.run_until_cancelled(future).await.ok_or(Error::Cancelled)
    }
}

/// Whether `part` is no more than what was asked for.
pub(super) fn within(part: &Range<u64>, asked: &Range<u64>) -> bool {
    part.start >= asked.start && part.end <= asked.end
}

/// Whether bytes that come under `etag`, if they have one, go with those that are there.
pub(super) async fn fits(partial: &Partial, etag: Option<String>) -> Result<bool> {
    let Some(etag) = etag.filter(|etag| partial.validator().as_ref() != Some(etag)) else { return Ok(true) };
    let partial = partial.clone();
    blocking(move || partial.adopt(&etag)).await
}
