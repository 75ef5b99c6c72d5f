//! Tensors as one seekable run of bytes, for a loader that wants to read from a file.

use std::io::{self, Read, Seek, SeekFrom};

use llm_local_core::{Error, FloatType, Result, TensorData, TensorSource};

use crate::load::Loading;

/// Tensors one after another. One is in memory at a time.
pub(crate) struct Segments<'a> {
    source: &'a dyn TensorSource,
    segments: Vec<Segment>,
    end: u64,
    position: u64,
    /// The segment read last, by its index.
    current: Option<(usize, TensorData<'a>)>,
    loading: Loading,
    failure: Option<Error>,
}

struct Segment {
    name: String,
    start: u64,
    bytes: u64,
    want: Option<FloatType>,
}

impl<'a> Segments<'a> {
    pub(crate) fn new(source: &'a dyn TensorSource, loading: Loading) -> Self {
        Self { source, segments: Vec::new(), end: 0, position: 0, current: None, loading, failure: None }
    }

    /// Puts the tensor `name`, of `bytes` bytes as `want`, at the end. Returns where it starts.
    pub(crate) fn push(&mut self, name: &str, bytes: u64, want: Option<FloatType>) -> u64 {
        let start = self.end;
        self.segments.push(Segment { name: name.to_owned(), start, bytes, want });
        self.end += bytes;
        start
    }

    /// What went wrong. The loader may have passed over it: once anything has failed, so does every later read.
    pub(crate) fn failure(self) -> Option<Error> {
        self.failure
    }

    /// Fills the start of `buffer` from the segment at the position.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let index = self.segments.partition_point(|s| s.start <= self.position).saturating_sub(1);
        let Some(segment) = self.segments.get(index).filter(|s| self.position < s.start + s.bytes) else {
            return Ok(0);
        };
        if self.current.as_ref().is_none_or(|(i, _)| *i != index) {
            self.loading.check()?;
            self.current = None;
            let data = self.source.read(&segment.name, segment.want)?;
            if data.byte_len() as u64 != segment.bytes {
                let (name, found) = (&segment.name, data.byte_len());
                return Err(Error::load(name, format!("it has {found} bytes; {} were expected", segment.bytes)));
            }
            self.current = Some((index, data));
            self.loading.tensor_done();
        }
        let at = (self.position - segment.start) as usize;
        match &self.current {
            Some((_, TensorData::Borrowed(bytes))) => Ok(copy(&bytes[at..], buffer)),
            Some((_, TensorData::Bytes(bytes))) => Ok(copy(&bytes[at..], buffer)),
            Some((_, TensorData::F32(numbers))) => Ok(copy_numbers(numbers, at, buffer, |x| x.to_le_bytes())),
            Some((_, TensorData::Half(bits))) => Ok(copy_numbers(bits, at, buffer, |x| x.to_le_bytes())),
            _ => Err(Error::load(&segment.name, "its data is in a form that this backend does not know")),
        }
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let n = from.len().min(to.len());
    to[..n].copy_from_slice(&from[..n]);
    n
}

/// Copies the bytes of `numbers` from byte `at` on. A read may begin and end inside a number.
fn copy_numbers<T: Copy, const N: usize>(
    numbers: &[T],
    at: usize,
    to: &mut [u8],
    bytes: impl Fn(T) -> [u8; N],
) -> usize {
    let (first, inside) = (at / N, at % N);
    if inside != 0 || to.len() < N {
        return numbers.get(first).map_or(0, |x| copy(&bytes(*x)[inside..], to));
    }
    let mut written = 0;
    for (to, x) in to.chunks_exact_mut(N).zip(&numbers[first..]) {
        to.copy_from_slice(&bytes(*x));
        written += N;
    }
    written
}

impl Read for Segments<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(failure) = &self.failure {
            return Err(io::Error::other(failure.clone()));
        }
        match self.fill(buffer) {
            Ok(n) => {
                self.position += n as u64;
                Ok(n)
            }
            Err(error) => {
                self.failure = Some(error.clone());
                Err(io::Error::other(error))
            }
        }
    }
}

impl Seek for Segments<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests;
