//! Asking for a range of a file, and the bytes that come.

use std::{ops::Range, path::PathBuf};

use bytes::Bytes;
use futures_util::StreamExt;
use llm_local_core::{Error, Opened, Request, Result, source::ByteStream};

use super::{
    answer::{Asked, Head, Verdict, is_strong, judge},
    context::FileContext,
};
use crate::network::{Failure, Response};

/// What asking for a range came to.
pub(super) enum Opening {
    /// Bytes.
    Body(Body),
    /// The file is on this machine.
    Local(PathBuf),
    /// The file is another one now, with this ETag.
    Changed(Option<String>),
    /// The host says that the range lies beyond the end of a file of the right size.
    Beyond,
}

/// Bytes on their way.
pub(super) struct Body {
    /// The part of the file that they are. A body that begins at 0 although more was there is all of the file.
    pub(super) range: Range<u64>,
    /// The ETag they come under.
    pub(super) etag: Option<String>,
    chunks: Chunks,
}

enum Chunks {
    Http(Response),
    Stream(ByteStream),
}

/// Asks for `range` of the file, with `validator` if bytes of it came under that ETag before.
///
/// # Errors
/// [`Failure`], of which the caller may try again what it says.
pub(super) async fn open(file: &FileContext, range: Range<u64>, validator: Option<&str>) -> Result<Opening, Failure> {
    let (manifest, entry) = (file.manifest(), file.entry());
    match file.source().open(manifest, entry, range.clone(), &file.cx).await? {
        Opened::Local(path) => Ok(Opening::Local(path)),
        Opened::Stream(stream) => Ok(Opening::Body(Body { range, etag: None, chunks: Chunks::Stream(stream) })),
        Opened::Request(request) => ask(file, &request, range, validator).await,
        other => Err(Failure::from(Error::unsupported(
            format!("fetching {}", file.what),
            format!("this version of the transfer engine does not know what its source answered: {other:?}"),
        ))),
    }
}

async fn ask(
    file: &FileContext,
    request: &Request,
    range: Range<u64>,
    validator: Option<&str>,
) -> Result<Opening, Failure> {
    if file.cx.offline {
        return Err(Error::Offline { what: file.what.clone() }.into());
    }
    let entry = file.entry();
    let bytes = format!("bytes={}-{}", range.start, range.end - 1);
    let mut extra = Vec::new();
    if range != (0..entry.size) {
        extra.push(("range", bytes.as_str()));
        extra.extend(validator.filter(|v| is_strong(v)).map(|v| ("if-range", v)));
    }
    let response = file.network().get(request, &extra).await.map_err(|f| f.about(&file.what))?;
    let asked = Asked {
        path: &entry.path,
        size: entry.size,
        range: range.clone(),
        validator,
        has_digest: entry.digest.is_some(),
    };
    let head = Head {
        status: response.status(),
        content_type: response.header("content-type"),
        content_length: response.header("content-length"),
        content_range: response.header("content-range"),
        content_encoding: response.header("content-encoding"),
        etag: response.header("etag"),
    };
    let etag = head.etag.map(str::to_owned);
    let range = match judge(&asked, &head) {
        Verdict::Part(end) => range.start..end,
        Verdict::Whole => 0..entry.size,
        Verdict::Changed => return Ok(Opening::Changed(etag)),
        Verdict::Beyond => return Ok(Opening::Beyond),
        Verdict::Size(found) => {
            return Err(file.wrong_size(format!("{found} bytes, says {}", response.address())).into());
        }
        Verdict::Unusable(reason) => {
            return Err(Failure::permanent(&file.what, format!("{}: {reason}", response.address())));
        }
        Verdict::Refused => return Err(refused(file, &response)),
    };
    Ok(Opening::Body(Body { range, etag, chunks: Chunks::Http(response) }))
}

fn refused(file: &FileContext, response: &Response) -> Failure {
    let mut failure = response.failure(&file.what);
    // What another host says is not in the source's words.
    if response.from_named_host()
        && let Some(error) = file.source().explain(file.manifest(), file.entry(), &response.as_refusal())
    {
        failure.error = error;
    }
    failure
}

impl Body {
    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self, file: &FileContext) -> Result<Option<Bytes>, Failure> {
        match &mut self.chunks {
            Chunks::Http(response) => response.chunk().await.map_err(|f| f.about(&file.what)),
            Chunks::Stream(stream) => match file.network().within_stall(stream.next()).await {
                Some(chunk) => Ok(chunk.transpose()?),
                None => Err(Failure::passing(&file.what, "its source brings no more bytes")),
            },
        }
    }
}
