//! All bytes of one file, of one version of it.

use std::{path::PathBuf, sync::Arc};

use llm_local_core::Result;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    answer::is_strong,
    body::{Body, Opening, open},
    bounds::{Answers, Restarts},
    context::{FileContext, blocking},
    pour::pour,
    ranges::{Ended, fetch_ranges, fits, within},
};
use crate::{
    disk::Partial,
    network::{Attempts, Failure, Retry},
};

/// How the bytes of a file came.
pub(super) enum Came {
    /// Into the partial, all of them, from one version of the file as far as the host says.
    Partial,
    /// They did not: the file is on this machine.
    Local(PathBuf),
}

/// Fetches what `partial` lacks. One request goes first, so that a refusal, a web page or a host that knows no ranges is
/// met once and not by each worker; then several ranges are fetched at a time.
///
/// # Errors
/// What went wrong for good, or too often; [`Error::Cancelled`](llm_local_core::Error::Cancelled). No worker runs then.
pub(super) async fn download(file: &Arc<FileContext>, partial: &Partial) -> Result<Came> {
    let mut download = Download {
        file: file.clone(),
        partial: partial.clone(),
        attempts: Attempts::new(file.network()),
        most: partial.done_bytes(),
        answers: Answers::default(),
        restarts: Restarts::default(),
        in_one: false,
    };
    loop {
        if partial.is_complete() {
            return Ok(Came::Partial);
        }
        if let Some(path) = download.round().await? {
            return Ok(Came::Local(path));
        }
    }
}

struct Download {
    file: Arc<FileContext>,
    partial: Partial,
    attempts: Attempts,
    /// The most bytes that were ever there: only more than that is progress, or a host that always cuts the same answer
    /// off would be asked for ever.
    most: u64,
    answers: Answers,
    restarts: Restarts,
    /// Nothing tells whether parts belong together: all bytes must come in one answer.
    in_one: bool,
}

impl Download {
    /// One request, and whatever it leads to. A path if the file is on this machine.
    async fn round(&mut self) -> Result<Option<PathBuf>> {
        if self.in_one && self.partial.done_bytes() > 0 {
            self.restart(None).await?;
        }
        let range = match self.partial.writer().missing().first() {
            _ if self.in_one => 0..self.partial.size(),
            Some(range) => range.clone(),
            None => return Ok(None),
        };
        let connection = self.file.connection().await?;
        let validator = self.partial.validator();
        let opening = open(&self.file, range.clone(), validator.as_deref());
        let body = match self.file.unless_stopped(opening).await? {
            Ok(Opening::Local(path)) => return Ok(Some(path)),
            Ok(Opening::Changed(etag)) => return self.changed(etag).await,
            Ok(Opening::Beyond) => return self.beyond().await,
            Ok(Opening::Body(body)) => body,
            Err(failure) => {
                drop(connection);
                return self.failed(failure).await;
            }
        };
        if self.in_one || !within(&body.range, &range) {
            return self.whole(body, connection).await;
        }
        if !self.can_join(&body) {
            self.in_one = true;
            let all = body.range == (0..self.partial.size());
            return if all { self.whole(body, connection).await } else { Ok(None) };
        }
        if !fits(&self.partial, body.etag.clone()).await? {
            return self.changed(body.etag).await;
        }
        match fetch_ranges(&self.file, &self.partial, (body, connection)).await? {
            Ended::Done => Ok(None),
            Ended::Changed(etag) => self.changed(etag).await,
            Ended::Beyond => self.beyond().await,
            Ended::Whole(first) => self.whole(first.0, first.1).await,
        }
    }

    /// Whether something will tell that `body` and other parts are of one version: a digest in the end, or a strong ETag.
    fn can_join(&self, body: &Body) -> bool {
        self.file.entry().digest.is_some() || body.etag.as_deref().is_some_and(is_strong)
    }

    /// Writes a body that is all of the file. Bytes that are there under the same strong ETag stay; others are
    /// forgotten.
    async fn whole(&mut self, body: Body, connection: OwnedSemaphorePermit) -> Result<Option<PathBuf>> {
        let same = body.etag.is_some() && body.etag == self.partial.validator();
        let keep = same && body.etag.as_deref().is_some_and(is_strong);
        let nothing = self.partial.done_bytes() == 0 && body.etag == self.partial.validator();
        if !keep && !nothing {
            self.restart(body.etag.clone()).await?;
        }
        let (writer, halt) = (self.partial.writer(), self.file.stop().clone());
        let poured = pour(&self.file, &writer, &mut 0, body, &halt).await;
        drop(connection);
        match poured {
            Ok(()) if self.partial.is_complete() => Ok(None),
            // A part, though all was asked for; it cannot be joined with another.
            Ok(()) => self.failed(self.file.only_a_part()).await,
            Err(failure) if self.partial.is_complete() && failure.retry != Retry::Never => Ok(None),
            Err(failure) => self.failed(failure).await,
        }
    }

    async fn failed(&mut self, failure: Failure) -> Result<Option<PathBuf>> {
        let done = self.partial.done_bytes();
        let counted = self.answers.count(&self.file, done.saturating_sub(self.most));
        if done > self.most {
            self.most = done;
            self.attempts.progressed();
        }
        self.file.unless_stopped(self.attempts.next(failure)).await??;
        counted.map(|()| None)
    }

    async fn changed(&mut self, etag: Option<String>) -> Result<Option<PathBuf>> {
        self.restarts.changed(&self.file).map_err(|failure| failure.error)?;
        self.restart(etag).await?;
        Ok(None)
    }

    async fn beyond(&mut self) -> Result<Option<PathBuf>> {
        self.restarts.beyond(&self.file).map_err(|failure| failure.error)?;
        self.restart(None).await?;
        Ok(None)
    }

    async fn restart(&self, etag: Option<String>) -> Result<()> {
        let partial = self.partial.clone();
        blocking(move || partial.restart(etag.as_deref())).await?;
        self.file.recount(0);
        Ok(())
    }
}
