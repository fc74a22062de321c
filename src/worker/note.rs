//! What a worker notes on a frame, to know it by when it comes back from a send.

use crate::io::Frame;

/// What a frame that is on its way out is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Note {
    /// A request of which the proxy has recorded an echo, or a reply.
    Echo,
    /// A request that is outstanding already: if this one cannot be sent, the first may be answered all the same.
    Repeated,
    /// A fragment that is not its request's first: nothing is recorded for it that could be withdrawn.
    Later,
    /// What goes back to the TUN unchanged.
    Reinjected,
    /// An error from outside, on its way to the client that it concerns.
    Told,
    /// What has become an error of our own.
    Originated,
    /// What was cut off a packet that was too large: no packet that came in.
    CutOff,
}

impl Note {
    const ALL: [Note; 7] =
        [Note::Echo, Note::Repeated, Note::Later, Note::Reinjected, Note::Told, Note::Originated, Note::CutOff];

    /// The one on this frame; the first, if there is none.
    pub(super) fn of(frame: &Frame) -> Note {
        Note::ALL.get(usize::from(frame.note())).copied().unwrap_or(Note::Echo)
    }

    /// Notes it on the frame.
    pub(super) fn put_on(self, frame: &mut Frame) {
        frame.set_note(self as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buffers::{Pool, PoolSize};

    #[test]
    fn what_is_noted_on_a_frame_is_read_from_it_and_nothing_is_an_echo() {
        let pool = Pool::new(PoolSize { buffers: 1, buffer_bytes: 100 }).unwrap();
        let mut frame = pool.frame_from(b"packet").unwrap();
        assert_eq!(Note::of(&frame), Note::Echo);
        for note in Note::ALL {
            note.put_on(&mut frame);
            assert_eq!(Note::of(&frame), note);
        }
    }
}
