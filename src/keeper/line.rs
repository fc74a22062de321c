//! Messages between two processes of one gateway: JSON of bounded length, with descriptors.
//!
//! ```text
//! length 4 bytes | descriptors 4 bytes | JSON | then for each portion of the descriptors one byte, which carries them
//! ```
//!
//! A stream, because a configuration file is longer than a datagram may be. A message that is not of this form ends the line: both
//! ends are this program, so something else is at the other end.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use crate::sys::passing::{self, DESCRIPTORS_MAX};

/// The longest message: a configuration file is shorter, also with every character escaped.
const LENGTH_MAX: usize = 8 << 20;

/// The most descriptors: those of 64 workers with 16 addresses, and some.
const DESCRIPTORS_ALL_MAX: usize = 2048;

/// One end of a line.
#[derive(Debug)]
pub(super) struct Line(UnixStream);

/// A message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) value: Value,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Line {
    pub(super) fn new(stream: UnixStream) -> Line {
        Line(stream)
    }

    /// Another handle to the same end.
    pub(super) fn try_clone(&self) -> io::Result<Line> {
        self.0.try_clone().map(Line)
    }

    /// How long the other end's next message is waited for.
    pub(super) fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(time))
    }

    pub(super) fn send(&self, value: &Value, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = value.to_string();
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_ne_bytes();
        let mut stream = &self.0;
        stream.write_all(&[number(text.len()), number(descriptors.len())].concat())?;
        stream.write_all(text.as_bytes())?;
        for portion in descriptors.chunks(DESCRIPTORS_MAX) {
            if passing::send(self.0.as_fd(), &[0], portion)? != 1 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// The next message; none when the other end has hung up.
    pub(super) fn receive(&self) -> io::Result<Option<Message>> {
        let mut stream = &self.0;
        let mut header = [0; 8];
        match stream.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let ([length, count], _) = header.as_chunks::<4>() else { return Ok(None) };
        let number = |bytes: &[u8; 4]| usize::try_from(u32::from_ne_bytes(*bytes)).unwrap_or(usize::MAX);
        let (length, count) = (number(length), number(count));
        if length > LENGTH_MAX || count > DESCRIPTORS_ALL_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no message of this program's"));
        }
        let mut text = vec![0; length];
        stream.read_exact(&mut text)?;
        let mut descriptors = Vec::with_capacity(count);
        while descriptors.len() < count {
            let (read, portion) = passing::receive(self.0.as_fd(), &mut [0])?;
            if read != 1 || portion.is_empty() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without its descriptors"));
            }
            descriptors.extend(portion);
        }
        Ok(Some(Message { value: serde_json::from_slice(&text)?, descriptors }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::thread;

    use serde_json::json;

    use super::*;

    fn pair() -> (Line, Line, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        let raw = here.try_clone().unwrap();
        (Line::new(here), Line::new(there), raw)
    }

    #[test]
    fn long_messages_and_many_descriptors_arrive_in_their_order() {
        let (here, there, raw) = pair();
        drop(raw);
        let long = json!({ "text": "x".repeat(1 << 20) });
        let file = File::open("/dev/null").unwrap();
        let sent = long.clone();
        let sender = thread::spawn(move || {
            here.send(&sent, &vec![file.as_fd(); 600]).unwrap();
            here.send(&json!(7), &[]).unwrap();
        });
        let first = there.receive().unwrap().unwrap();
        assert_eq!((first.value, first.descriptors.len()), (long, 600));
        let second = there.receive().unwrap().unwrap();
        assert_eq!((second.value, second.descriptors.len()), (json!(7), 0));
        sender.join().unwrap();
        assert!(there.receive().unwrap().is_none(), "hung up");
    }

    #[test]
    fn a_message_may_be_as_long_and_bring_as_many_descriptors_as_is_said_and_no_more() {
        let refused = |length: usize, count: usize| {
            let (_here, there, mut raw) = pair();
            let number = |number: usize| u32::try_from(number).unwrap().to_ne_bytes();
            raw.write_all(&[number(length), number(count)].concat()).unwrap();
            // Nothing follows: one that is waited for is found to be cut off.
            raw.shutdown(std::net::Shutdown::Write).unwrap();
            there.receive().unwrap_err().kind() == io::ErrorKind::InvalidData
        };
        assert!(!refused(LENGTH_MAX, 0) && refused(LENGTH_MAX + 1, 0));
        assert!(!refused(2, DESCRIPTORS_ALL_MAX) && refused(2, DESCRIPTORS_ALL_MAX + 1));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let wrong: [&[u8]; 3] =
            [&[0xff; 64], &[2, 0, 0, 0, 0, 0, 0, 0, b'{', b'{'], &[1, 0, 0, 0, 1, 0, 0, 0, b'7', 0]];
        for bytes in wrong {
            let (_here, there, mut raw) = pair();
            raw.write_all(bytes).unwrap();
            assert_eq!(there.receive().unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
