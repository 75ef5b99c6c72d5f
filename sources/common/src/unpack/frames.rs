//! The frames of a zstd file as one stream.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// What all frames of `source` hold, one after the other, their checksums and sizes verified. Frames to skip are skipped.
/// A window may have the 128 MiB that are the limit of the zstd program too.
pub(super) struct Frames<R> {
    source: R,
    /// The frame being read, and how many bytes of it came out.
    frame: Option<(FrameDecoder, u64)>,
}

impl<R: BufRead> Frames<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, frame: None }
    }

    /// Begins the next frame. False at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            // Not the one before again: that would reserve the window that a header claims.
            let mut decoder = FrameDecoder::new();
            match decoder.init(&mut self.source) {
                Ok(()) => {
                    self.frame = Some((decoder, 0));
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped < length.into() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(invalid(error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.frame.is_some() || self.next_frame()? {
            let Some((decoder, size)) = &mut self.frame else { break };
            while decoder.can_collect() == 0 && !decoder.is_finished() {
                decoder.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1)).map_err(invalid)?;
            }
            let read = decoder.read(buffer)?;
            *size += read as u64;
            if read > 0 {
                return Ok(read);
            }
            check_end(decoder, *size)?;
            self.frame = None;
        }
        Ok(0)
    }
}

/// Holds a frame that ended against its checksum and size, where it has them.
fn check_end(decoder: &FrameDecoder, size: u64) -> io::Result<()> {
    let promised = decoder.get_checksum_from_data();
    if promised.is_some() && promised != decoder.get_calculated_checksum() {
        return Err(invalid("the checksum of a zstd frame does not match its content"));
    }
    // Zero stands for "does not say", too.
    let claimed = decoder.content_size();
    if claimed != 0 && claimed != size {
        return Err(invalid(format!("a zstd frame holds {size} bytes and claims {claimed}")));
    }
    Ok(())
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
