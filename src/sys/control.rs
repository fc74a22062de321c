//! Control messages (cmsg(3)): what travels beside a datagram. Read and written as bytes, without pointers.
//!
//! A message is a header (length with itself, level, type), its data, and padding to whole words; the next follows. The
//! C macros walk that by pointers; here lengths are held against the bytes there are.

use std::mem;

/// A header: a length in a size_t, and two ints.
const HEADER_LEN: usize = mem::size_of::<libc::cmsghdr>();
const WORD: usize = mem::size_of::<usize>();
const INT: usize = mem::size_of::<libc::c_int>();

const _: () = assert!(HEADER_LEN == WORD + 2 * INT);

/// One control message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Control<'a> {
    /// `SOL_SOCKET`, `IPPROTO_IP`, ...
    pub level: libc::c_int,
    /// What it is, of its level.
    pub kind: libc::c_int,
    /// What it says.
    pub data: &'a [u8],
}

impl Control<'_> {
    /// Its first int, if it has one.
    pub fn int(&self) -> Option<libc::c_int> {
        let (first, _) = self.data.split_first_chunk::<INT>()?;
        Some(libc::c_int::from_ne_bytes(*first))
    }
}

/// The control messages in `bytes`; ends at the first that is cut or impossible.
pub fn read(mut bytes: &[u8]) -> impl Iterator<Item = Control<'_>> {
    std::iter::from_fn(move || {
        let (len, rest) = bytes.split_first_chunk::<WORD>()?;
        let (level, rest) = rest.split_first_chunk::<INT>()?;
        let (kind, _) = rest.split_first_chunk::<INT>()?;
        let len = usize::from_ne_bytes(*len);
        let data = bytes.get(HEADER_LEN..len)?;
        let control =
            Control { level: libc::c_int::from_ne_bytes(*level), kind: libc::c_int::from_ne_bytes(*kind), data };
        bytes = bytes.get(len.next_multiple_of(WORD)..).unwrap_or(&[]);
        Some(control)
    })
}

/// Appends a control message to the first `used` bytes of `buffer`; how many are used then. None if there is no room.
pub fn write(buffer: &mut [u8], used: usize, level: libc::c_int, kind: libc::c_int, data: &[u8]) -> Option<usize> {
    let len = HEADER_LEN + data.len();
    let place = buffer.get_mut(used..used + len.next_multiple_of(WORD))?;
    place[..WORD].copy_from_slice(&len.to_ne_bytes());
    place[WORD..WORD + INT].copy_from_slice(&level.to_ne_bytes());
    place[WORD + INT..HEADER_LEN].copy_from_slice(&kind.to_ne_bytes());
    place[HEADER_LEN..len].copy_from_slice(data);
    place[len..].fill(0);
    Some(used + place.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut buffer = [0xEE; 100];
        let used = write(&mut buffer, 0, 1, 2, &7_i32.to_ne_bytes()).unwrap();
        let used = write(&mut buffer, used, -3, 4, b"twelve bytes").unwrap();
        let used = write(&mut buffer, used, 5, 6, b"").unwrap();
        let found: Vec<_> = read(&buffer[..used]).collect();
        assert_eq!(found[0].int(), Some(7));
        assert_eq!(found[1], Control { level: -3, kind: 4, data: b"twelve bytes" });
        assert_eq!(found[2], Control { level: 5, kind: 6, data: b"" });
        assert_eq!(found.len(), 3);
        assert_eq!(write(&mut buffer, used, 7, 8, &[0; 30]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_run_on(bytes in prop::collection::vec(any::<u8>(), 0..200), small: u8) {
            let mut bytes = bytes;
            if bytes.len() > 8 {
                // A length that is likely to be possible.
                bytes[..8].copy_from_slice(&u64::from(small).to_ne_bytes());
            }
            prop_assert!(read(&bytes).count() <= bytes.len());
        }
    }
}
