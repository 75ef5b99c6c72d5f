//! A small range of a file, without storing it.

use std::{fs::File, ops::Range, path::Path};

use bytes::{Bytes, BytesMut};
use llm_local_core::{Error, Result};

use super::{
    body::{Body, Opening, open},
    context::{FileContext, blocking},
    plan::Place,
};
use crate::network::{Failure, retrying};

/// The bytes `range` of the file: from `place` if it is there, else from its source.
pub(super) async fn read(file: &FileContext, place: Place, range: Range<u64>) -> Result<Bytes> {
    let size = file.entry().size;
    if range.start > range.end || range.end > size {
        let reason = format!("expected a range within its {size} bytes, found {} to {}", range.start, range.end);
        return Err(Error::invalid_spec(format!("range of {}", file.what), reason));
    }
    if range.is_empty() {
        return Ok(Bytes::new());
    }
    let path = match place {
        Place::Local(path) => Some(path),
        Place::Stored { target, .. } => target.is_published(size).then(|| target.path().to_owned()),
    };
    if let Some(path) = path {
        return blocking(move || read_file(&path, range)).await;
    }
    let _connection = file.connection().await?;
    let fetched = retrying(file.network(), &file.what, || fetch(file, range.clone()));
    file.unless_stopped(fetched).await?
}

async fn fetch(file: &FileContext, range: Range<u64>) -> Result<Bytes, Failure> {
    match open(file, range.clone(), None).await? {
        Opening::Body(body) => gather(file, body, range).await,
        Opening::Local(path) => Ok(blocking(move || read_file(&path, range)).await?),
        Opening::Changed(_) | Opening::Beyond => {
            let reason = "its host says that bytes of it lie beyond its end, but not what its size is";
            Err(Failure::permanent(&file.what, reason))
        }
    }
}

/// The bytes `range` of a body that may begin before it and end behind it.
async fn gather(file: &FileContext, mut body: Body, range: Range<u64>) -> Result<Bytes, Failure> {
    let (mut came, mut gathered) = (body.range.start, BytesMut::new());
    while came < range.end {
        let Some(chunk) = body.next(file).await? else {
            return Err(Failure::passing(&file.what, format!("the answer ended at byte {came}, before {}", range.end)));
        };
        let from = range.start.saturating_sub(came).min(chunk.len() as u64);
        let to = (range.end - came).min(chunk.len() as u64);
        gathered.extend_from_slice(&chunk[from as usize..to as usize]);
        came += chunk.len() as u64;
    }
    Ok(gathered.freeze())
}

fn read_file(path: &Path, range: Range<u64>) -> Result<Bytes> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let failed = |e| Error::io("read", path, e);
    let mut file = File::open(path).map_err(failed)?;
    file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
    let mut bytes = Vec::new();
    let wanted = range.end - range.start;
    let read = file.take(wanted).read_to_end(&mut bytes).map_err(failed)? as u64;
    if read == wanted {
        return Ok(bytes.into());
    }
    let reason = format!("expected {wanted} bytes from {}, found {read}; the file changed meanwhile", range.start);
    Err(failed(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, reason)))
}
