//! A small range of a file, without storing it.

use std::{fs::File, mem, ops::Range, path::Path};

use bytes::{Bytes, BytesMut};
use llm_local_core::{Error, Result};

use super::{
    answer::is_strong,
    body::{Body, Opening, open},
    bounds::Answers,
    context::{FileContext, blocking},
    plan::Place,
};
use crate::network::{Attempts, Failure, Retry};

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
    let reading = Reading { file, range, gathered: BytesMut::new(), etag: None };
    file.unless_stopped(reading.run()).await?
}

/// A range on its way.
struct Reading<'a> {
    file: &'a FileContext,
    range: Range<u64>,
    /// Its first bytes.
    gathered: BytesMut,
    /// The ETag that they came under.
    etag: Option<String>,
}

impl Reading<'_> {
    /// Asks for the range, and for what is missing of it still as often as answers bring less.
    async fn run(mut self) -> Result<Bytes> {
        let (mut attempts, mut answers) = (Attempts::new(self.file.network()), Answers::default());
        loop {
            let before = self.gathered.len();
            let ended = self.go_on().await;
            if self.is_whole() {
                return Ok(self.gathered.freeze());
            }
            let gained = self.gathered.len().saturating_sub(before);
            let can_join = self.can_join();
            if can_join && gained > 0 {
                attempts.progressed();
            }
            if !can_join {
                self.gathered.clear();
            }
            match ended {
                Ok(()) if can_join => {}
                Ok(()) => {
                    let reason = "its host brings only a part of what is asked for, and no ETag that would tell which \
                                  other parts go with it";
                    return Err(Failure::permanent(&self.file.what, reason).error);
                }
                Err(failure) => attempts.next(failure).await?,
            }
            answers.count(self.file, gained as u64)?;
        }
    }

    fn is_whole(&self) -> bool {
        self.at() == self.range.end
    }

    /// Behind the last byte that is here.
    fn at(&self) -> u64 {
        self.range.start + self.gathered.len() as u64
    }

    /// Whether something tells that what is here and what may come are of one version of the file: nobody looks at a
    /// digest of a part.
    fn can_join(&self) -> bool {
        self.etag.as_deref().is_some_and(is_strong)
    }

    /// One answer, as far as it goes.
    async fn go_on(&mut self) -> Result<(), Failure> {
        let known = if self.gathered.is_empty() { None } else { self.etag.clone() };
        let body = match open(self.file, self.at()..self.range.end, known.as_deref()).await? {
            Opening::Body(body) if known.is_some() && body.etag != known => return Err(self.changed()),
            Opening::Body(body) => body,
            Opening::Changed(_) => return Err(self.changed()),
            Opening::Local(path) => {
                let range = self.range.clone();
                self.gathered = BytesMut::from(blocking(move || read_file(&path, range)).await?);
                return Ok(());
            }
            Opening::Beyond => return Err(self.file.beyond()),
        };
        self.etag.clone_from(&body.etag);
        self.gather(body).await
    }

    /// What `body` has of the bytes that are missing; it may begin before them and end behind them.
    async fn gather(&mut self, mut body: Body) -> Result<(), Failure> {
        let (mut came, end) = (body.range.start, body.range.end.min(self.range.end));
        while came < end {
            let Some(chunk) = body.next(self.file).await? else {
                let reason = format!("the answer ended at byte {came}, before {end}");
                return Err(Failure::passing(&self.file.what, reason));
            };
            let length = chunk.len() as u64;
            let from = self.at().saturating_sub(came).min(length);
            let to = (end - came).min(length);
            self.gathered.extend_from_slice(&chunk[from as usize..to as usize]);
            came += length;
        }
        Ok(())
    }

    fn changed(&mut self) -> Failure {
        let came = mem::take(&mut self.gathered).len();
        let reason = format!("it became another one after {came} bytes; try again");
        Failure { retry: Retry::Never, ..Failure::passing(&self.file.what, reason) }
    }
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
