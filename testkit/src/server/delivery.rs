//! How an answer is sent: whole, or as a fault wants it.

use std::{
    io::{self, Write as _},
    net::TcpStream,
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use super::{Outcome, Response, listening::Shared};

/// How much of a body is written at a time, and how much of it together with the head.
const BLOCK: u64 = 256 << 10;
const FIRST_BLOCK: u64 = 16 << 10;
/// How often a stalled answer looks whether it may go on.
const LOOK: Duration = Duration::from_millis(10);

/// How an answer is sent.
#[derive(Debug, Clone, Default)]
pub(super) struct Delivery {
    /// What happens in place of the answer.
    pub(super) before: Option<Stop>,
    /// What happens after so many bytes of the body.
    pub(super) within: Option<(u64, Stop)>,
    pub(super) bytes_per_second: Option<u64>,
    /// How much more `Content-Length` says than comes.
    pub(super) promise: i64,
}

/// What stops an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Cut,
    Stall,
}

/// The other end of one request.
#[derive(Debug)]
pub(super) struct Client<'a> {
    pub(super) shared: &'a Shared,
    pub(super) stream: &'a TcpStream,
    /// The request's id in the log.
    pub(super) id: u64,
    /// How often stalled requests had been released when the request came.
    pub(super) releases: u64,
}

impl Client<'_> {
    /// Sends `response`, without its body if `head_only`, and says how that ended. After anything but
    /// [`Outcome::Finished`] the connection is of no more use.
    pub(super) fn deliver(
        &self,
        response: &Response,
        delivery: &Delivery,
        head_only: bool,
        keep_alive: bool,
    ) -> Outcome {
        self.try_deliver(response, delivery, head_only, keep_alive).unwrap_or(Outcome::Aborted)
    }

    fn try_deliver(
        &self,
        response: &Response,
        delivery: &Delivery,
        head_only: bool,
        keep_alive: bool,
    ) -> io::Result<Outcome> {
        match delivery.before {
            Some(Stop::Cut) => return Ok(Outcome::Cut),
            Some(Stop::Stall) => self.stall()?,
            None => {}
        }
        let length = response.range.end - response.range.start;
        let head = response.head(length.saturating_add_signed(delivery.promise), keep_alive);
        let total = if head_only { 0 } else { length };
        let mut stop = delivery.within.filter(|(bytes, _)| *bytes < total);
        let step = delivery.bytes_per_second.map(|rate| (rate / 10).clamp(1, BLOCK));

        self.shared.log.update(self.id, |recorded| recorded.status = response.status);
        let (mut sent, mut unsent_head, mut scratch, mut joined) = (0, Some(head), Vec::new(), Vec::new());
        loop {
            let until = stop.map_or(total, |(bytes, _)| bytes);
            let block = step.unwrap_or(if unsent_head.is_some() { FIRST_BLOCK } else { BLOCK }).min(until - sent);
            let body = response.body.block(response.range.start + sent, block as usize, &mut scratch)?;
            match unsent_head.take() {
                Some(head) => {
                    joined.extend_from_slice(&head);
                    joined.extend_from_slice(body);
                    self.write(&joined, head.len())?;
                }
                None => self.write(body, 0)?,
            }
            sent += block;
            match stop.take_if(|(bytes, _)| *bytes == sent) {
                Some((_, Stop::Cut)) => return Ok(Outcome::Cut),
                Some((_, Stop::Stall)) => self.stall()?,
                None if sent == total => return Ok(Outcome::Finished),
                None => {}
            }
            if let Some(rate) = delivery.bytes_per_second {
                self.idle(Duration::from_secs_f64(block as f64 / rate as f64))?;
            }
        }
    }

    /// Writes `bytes`, of which the first `head` are not of the body, and records how many of the body went out.
    fn write(&self, bytes: &[u8], head: usize) -> io::Result<()> {
        let (mut stream, mut done) = (self.stream, 0);
        while done < bytes.len() {
            let n = stream.write(&bytes[done..])?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let of_the_body = (done + n).saturating_sub(done.max(head)) as u64;
            done += n;
            self.shared.log.update(self.id, |recorded| recorded.body_bytes_sent += of_the_body);
        }
        Ok(())
    }

    /// Waits until stalled requests are told to go on. An error says that the client is gone or the server stops.
    fn stall(&self) -> io::Result<()> {
        while self.shared.releases.load(Ordering::SeqCst) == self.releases {
            self.idle(LOOK)?;
        }
        Ok(())
    }

    /// Lets `time` pass. An error says that the client is gone or the server stops.
    fn idle(&self, time: Duration) -> io::Result<()> {
        if self.shared.stopping.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // Waiting for a byte from the client is the way to learn at once that it has closed the connection.
        self.stream.set_read_timeout(Some(time.max(Duration::from_millis(1))))?;
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(None)?;
        match peeked {
            Ok(0) => Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(_) => {
                thread::sleep(time); // its next request is here already
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
