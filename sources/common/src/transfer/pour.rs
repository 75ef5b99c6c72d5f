//! Bytes from a connection to the disk.

use std::mem;

use bytes::Bytes;
use llm_local_core::{Error, Result};
use tokio_util::sync::CancellationToken;

use super::{
    body::Body,
    context::{FileContext, blocking},
};
use crate::{disk::Writer, network::Failure};

/// Bytes gathered before they are written. A process that is killed loses what was gathered or is being written, at most
/// this and a chunk, and the chunk that comes meanwhile. The HTTP client reads up to 408 KiB at once: a mebibyte in all.
const BATCH: usize = 200 << 10;
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
    let (mut came, mut out) = (body.range.start, Batch::new(file, writer, *at));
    let ended = loop {
        let chunk = match halt.run_until_cancelled(body.next(file)).await {
            None => break Err(Error::Cancelled.into()),
            Some(Err(failure)) => break Err(failure),
            Some(Ok(None)) if came == body.range.end => break Ok(()),
            Some(Ok(None)) => {
                break Err(file.too_short(came - body.range.start, body.range.end - body.range.start));
            }
            Some(Ok(Some(chunk))) => chunk,
        };
        let left = body.range.end - came;
        if chunk.len() as u64 > left {
            break Err(file.too_long(body.range.end));
        }
        let skip = out.end().saturating_sub(came).min(chunk.len() as u64);
        came += chunk.len() as u64;
        if let Err(error) = out.push(chunk.slice(skip as usize..)).await {
            break Err(error.into());
        }
    };
    let flushed = out.write().await;
    *at = out.written;
    match ended {
        // What was not written did not come.
        Ok(()) => flushed.map_err(Failure::from),
        Err(failure) => Err(failure),
    }
}

/// Bytes on their way to the disk.
struct Batch<'a> {
    file: &'a FileContext,
    writer: &'a Writer,
    gathered: Vec<Bytes>,
    length: usize,
    /// Behind the last byte that was written.
    written: u64,
}

impl<'a> Batch<'a> {
    fn new(file: &'a FileContext, writer: &'a Writer, at: u64) -> Self {
        Self { file, writer, gathered: Vec::new(), length: 0, written: at }
    }

    /// Behind the last byte that was taken.
    fn end(&self) -> u64 {
        self.written + self.length as u64
    }

    async fn push(&mut self, chunk: Bytes) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        self.length += chunk.len();
        self.gathered.push(chunk);
        if self.length >= BATCH { self.write().await } else { Ok(()) }
    }

    /// Writes what was gathered. Once this has failed, what was taken after the last byte written is gone.
    async fn write(&mut self) -> Result<()> {
        let (chunks, length) = (mem::take(&mut self.gathered), mem::take(&mut self.length));
        if length == 0 {
            return Ok(());
        }
        let (writer, offset) = (self.writer.clone(), self.written);
        let fresh = blocking(move || write(&writer, offset, &chunks)).await?;
        self.written += length as u64;
        self.file.count(fresh);
        Ok(())
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
