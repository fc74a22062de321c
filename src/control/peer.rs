//! One connection, and its bounds.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::http::HEAD_BYTES_MAX;
use super::protocol::REQUEST_BYTES_MAX;
use crate::clock::Instant;
use crate::sys::poll::Watch;

/// How long an answer may lie unread, and a question by HTTP may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What may wait to be read by one that follows, in bytes.
const FOLLOWED_BYTES_MAX: usize = 256 << 10;

/// How long a connection to the control socket may be silent between two questions.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Who is at the other end.
#[derive(Debug)]
pub(super) enum Stream {
    Control(UnixStream),
    Web(TcpStream),
}

/// What is done about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// A question is awaited.
    Asks,
    /// Its order is being carried out.
    Waits,
    /// It is told what happens, until it hangs up.
    Follows,
    /// It ends when its answer has been read.
    Ends,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) number: u64,
    stream: Stream,
    pub(super) phase: Phase,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    deadline: Instant,
}

impl Peer {
    pub(super) fn new(number: u64, stream: Stream, now: Instant) -> Peer {
        let patience = stream.patience();
        let (input, output) = (Vec::new(), Vec::new());
        Peer { number, stream, phase: Phase::Asks, input, output, written: 0, deadline: now + patience }
    }

    pub(super) fn is_web(&self) -> bool {
        matches!(self.stream, Stream::Web(_))
    }

    /// When it is given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waits_for_us = self.phase == Phase::Waits || self.phase == Phase::Follows && self.output.is_empty();
        (!waits_for_us).then_some(self.deadline)
    }

    pub(super) fn watch(&self) -> Watch {
        let to_write = !self.output.is_empty();
        let to_read = self.phase == Phase::Follows || self.phase == Phase::Asks && !to_write;
        if !to_read && !to_write {
            // A hang-up would be told again and again while an order is carried out; its answer finds out.
            return Watch::readable(None);
        }
        Watch::new(self.stream.as_fd(), to_read, to_write)
    }

    /// Reads what has come. Whether the connection goes on.
    pub(super) fn read(&mut self) -> bool {
        let longest = if self.is_web() { HEAD_BYTES_MAX } else { REQUEST_BYTES_MAX + 1 };
        let mut buffer = [0; 4096];
        let room = longest.saturating_sub(self.input.len()).min(buffer.len());
        if room == 0 {
            return true;
        }
        match self.stream.read(&mut buffer[..room]) {
            Ok(0) => false,
            Ok(length) => {
                self.input.extend_from_slice(&buffer[..length]);
                true
            }
            Err(error) => may_go_on(&error),
        }
    }

    /// The next question to the control socket, if it is whole; an error for one that is longer than any.
    pub(super) fn take_line(&mut self) -> Option<Result<Vec<u8>, ()>> {
        if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = self.input.drain(..=end).collect();
            line.pop();
            return Some(Ok(line));
        }
        (self.input.len() > REQUEST_BYTES_MAX).then_some(Err(()))
    }

    /// What has come of a question by HTTP.
    pub(super) fn head(&self) -> &[u8] {
        &self.input
    }

    /// Reads and forgets what has come from one that follows. Whether the connection goes on.
    pub(super) fn pass_over(&mut self) -> bool {
        let goes_on = self.read();
        self.input.clear();
        goes_on
    }

    /// Tells one that follows something more; whether there was room for it.
    pub(super) fn tell(&mut self, bytes: &[u8], now: Instant) -> bool {
        if self.output.len() + bytes.len() > FOLLOWED_BYTES_MAX {
            return false;
        }
        if self.output.is_empty() {
            self.deadline = now + PATIENCE;
        }
        self.output.extend_from_slice(bytes);
        true
    }

    /// Begins to write an answer; `then` is what follows it.
    pub(super) fn answer(&mut self, bytes: &[u8], then: Phase, now: Instant) {
        self.output.extend_from_slice(bytes);
        self.phase = then;
        self.deadline = now + PATIENCE;
    }

    /// Writes what the other end takes. Whether the connection goes on.
    pub(super) fn write(&mut self, now: Instant) -> bool {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => return false,
                Ok(length) => {
                    self.written += length;
                    self.deadline = now + PATIENCE;
                }
                Err(error) => return may_go_on(&error),
            }
        }
        if self.written > 0 {
            self.written = 0;
            self.output.clear();
            self.deadline = now + self.stream.patience();
        }
        self.phase != Phase::Ends
    }

    /// Whether all that was to be said has been said, so that the next question may be looked at.
    pub(super) fn is_listening(&self) -> bool {
        self.phase == Phase::Asks && self.output.is_empty()
    }
}

/// What is for a later attempt is no end.
fn may_go_on(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Stream {
    fn patience(&self) -> Duration {
        match self {
            Stream::Control(_) => SILENCE_MAX,
            Stream::Web(_) => PATIENCE,
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Control(stream) => stream.as_fd(),
            Stream::Web(stream) => stream.as_fd(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Control(stream) => stream.read(buffer),
            Stream::Web(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Control(stream) => stream.write(bytes),
            Stream::Web(stream) => stream.write(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection of the gateway's, and its other end.
    fn connection() -> (Peer, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("it can be");
        (Peer::new(1, Stream::Control(ours), Instant::START), theirs)
    }

    fn read_all(peer: &mut Peer) {
        let mut before = usize::MAX;
        while peer.input.len() != before {
            before = peer.input.len();
            assert!(peer.read());
        }
    }

    #[test]
    fn a_question_may_be_as_long_as_is_said_and_what_is_longer_is_not_kept() {
        for (length, is_one) in [(0, true), (REQUEST_BYTES_MAX, true), (REQUEST_BYTES_MAX + 1, false)] {
            let (mut peer, mut theirs) = connection();
            theirs.write_all(&vec![b'x'; length]).expect("it takes it");
            read_all(&mut peer);
            assert_eq!(peer.take_line(), (!is_one).then_some(Err(())), "{length} bytes, and no end yet");
            theirs.write_all(b"\n").expect("it takes it");
            read_all(&mut peer);
            let line = peer.take_line();
            assert_eq!(line, Some(if is_one { Ok(vec![b'x'; length]) } else { Err(()) }), "{length} bytes");
        }
        let (mut peer, mut theirs) = connection();
        theirs.write_all(&[b'x'; 10 * REQUEST_BYTES_MAX]).expect("it takes it");
        read_all(&mut peer);
        assert_eq!(peer.input.len(), REQUEST_BYTES_MAX + 1);
    }

    #[test]
    fn who_follows_and_does_not_read_has_no_more_waiting_than_is_said() {
        let (mut peer, _theirs) = connection();
        peer.answer(b"", Phase::Follows, Instant::START);
        let line = [b'x'; 1000];
        let told = (0..).take_while(|_| peer.tell(&line, Instant::START)).count();
        assert_eq!((told, peer.output.len()), (FOLLOWED_BYTES_MAX / line.len(), told * line.len()));
        assert_eq!(peer.deadline(), Some(Instant::START + PATIENCE), "from the first that waits");
    }
}
