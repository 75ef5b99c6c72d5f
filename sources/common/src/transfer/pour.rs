//! Bytes from a connection to the disk.

use std::mem;

use bytes::Bytes;
use llm_local_core::{Error, Result};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{body::Body, context::FileContext};
use crate::{disk::Writer, network::Failure};

/// Bytes gathered before they are written. While one batch is being written the next is gathered.
const BATCH: usize = 128 << 10;
/// With more than these unwritten, no more are taken. A process that is killed loses what is unwritten, the chunk in hand
/// and the one that the HTTP library has read ahead, each of which is of 408 KiB at most: less than 1 MiB.
const MOST_UNWRITTEN: u64 = 192 << 10;
/// Chunks smaller than this are put together before they are written.
const SMALL: usize = 64 << 10;

/// Writes what comes of `body` from `*at` on, which lies in its range, and moves `*at` to behind what was written.
/// Bytes of the body before `*at` are skipped. What came before a failure, or before `halt`, is written too.
///
/// # Errors
/// [`Failure`] if the body ends early or breaks, is longer than its range, or cannot be written; [`Error::Cancelled`].
pub(super) async fn pour(
    file: &FileContext,
    writer: &Writer,
    at: &mut u64,
    mut body: Body,
    halt: &CancellationToken,
) -> Result<(), Failure> {
    let (mut came, mut out) = (body.range.start, Batches::new(file, writer, *at));
    let ended = loop {
        let chunk = match halt.run_until_cancelled(body.next(file)).await {
            None => break Err(Error::Cancelled.into()),
            Some(Err(failure)) => break Err(failure),
            Some(Ok(None)) if came == body.range.end => break Ok(()),
            Some(Ok(None)) => break Err(short(file, &body, came)),
            Some(Ok(Some(chunk))) => chunk,
        };
        let left = body.range.end - came;
        if chunk.len() as u64 > left {
            let more = if body.range.end == file.entry().size { "more" } else { "more than were asked for" };
            break Err(file.wrong_size(more.to_owned()).into());
        }
        let skip = out.end().saturating_sub(came).min(chunk.len() as u64);
        came += chunk.len() as u64;
        if let Err(error) = out.push(chunk.slice(skip as usize..)).await {
            break Err(error.into());
        }
    };
    let flushed = out.finish().await;
    *at = out.written;
    match ended {
        // What was not written did not come.
        Ok(()) => flushed.map_err(Failure::from),
        Err(failure) => Err(failure),
    }
}

fn short(file: &FileContext, body: &Body, came: u64) -> Failure {
    let (came, promised) = (came - body.range.start, body.range.end - body.range.start);
    Failure::passing(&file.what, format!("the answer ended after {came} of {promised} bytes"))
}

/// Batches of bytes on their way to the disk, one of which is being written at a time.
struct Batches<'a> {
    file: &'a FileContext,
    writer: &'a Writer,
    gathered: Vec<Bytes>,
    length: usize,
    writing: Option<(JoinHandle<Result<u64>>, u64)>,
    /// Behind the last byte that was written.
    written: u64,
}

impl<'a> Batches<'a> {
    fn new(file: &'a FileContext, writer: &'a Writer, at: u64) -> Self {
        Self { file, writer, gathered: Vec::new(), length: 0, writing: None, written: at }
    }

    /// Behind the last byte that was taken.
    fn end(&self) -> u64 {
        self.written + self.writing.as_ref().map_or(0, |(_, length)| *length) + self.length as u64
    }

    async fn push(&mut self, chunk: Bytes) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        self.length += chunk.len();
        self.gathered.push(chunk);
        if self.length >= BATCH {
            self.flush().await?;
        }
        if self.end() - self.written > MOST_UNWRITTEN { self.wait().await } else { Ok(()) }
    }

    /// Starts to write what was gathered, once what was being written is.
    async fn flush(&mut self) -> Result<()> {
        self.wait().await?;
        let (chunks, length) = (mem::take(&mut self.gathered), mem::take(&mut self.length));
        if length == 0 {
            return Ok(());
        }
        let (writer, offset) = (self.writer.clone(), self.written);
        let handle = tokio::task::spawn_blocking(move || write(&writer, offset, &chunks));
        self.writing = Some((handle, length as u64));
        Ok(())
    }

    async fn wait(&mut self) -> Result<()> {
        let Some((handle, length)) = self.writing.take() else { return Ok(()) };
        let result = match handle.await {
            Ok(result) => result,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => Err(Error::Cancelled),
        };
        match result {
            Ok(fresh) => {
                self.written += length;
                self.file.count(fresh);
                Ok(())
            }
            Err(error) => {
                // What was gathered belongs behind bytes that were not written.
                (self.gathered, self.length) = (Vec::new(), 0);
                Err(error)
            }
        }
    }

    async fn finish(&mut self) -> Result<()> {
        self.flush().await?;
        self.wait().await
    }
}

/// Writes `chunks` one after the other from `offset` on; says how many bytes are newly there.
fn write(writer: &Writer, mut offset: u64, chunks: &[Bytes]) -> Result<u64> {
    let length: usize = chunks.iter().map(Bytes::len).sum();
    // TLS brings bytes in pieces of 16 KiB: a copy is cheaper than a call to the system for each.
    if length / chunks.len().max(1) < SMALL {
        return writer.write(offset, &chunks.concat());
    }
    let mut fresh = 0;
    for chunk in chunks {
        fresh += writer.write(offset, chunk)?;
        offset += chunk.len() as u64;
    }
    Ok(fresh)
}
