//! What the TUN device dropped: its queue was full.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

/// Longer than any host's list of interfaces: one line of at most 250 bytes each.
const DEVICES_BYTES_MAX: usize = 1 << 20;

/// The kernel's list of interfaces with their counters: that of the namespace it was opened in, whoever reads it.
#[derive(Debug)]
pub(super) struct Devices(File);

impl From<OwnedFd> for Devices {
    fn from(fd: OwnedFd) -> Devices {
        Devices(fd.into())
    }
}

impl AsFd for Devices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Devices {
    pub(super) fn open() -> io::Result<Devices> {
        File::open("/proc/thread-self/net/dev").map(Devices)
    }

    /// Packets that the kernel had for this device and dropped.
    pub(super) fn dropped_towards(&self, device: &str) -> io::Result<u64> {
        let mut text = vec![0; 16 << 10];
        let mut length = 0;
        // The kernel hands it out a page at a time.
        loop {
            match self.0.read_at(&mut text[length..], length as u64)? {
                0 => break,
                more => length += more,
            }
            if length == text.len() {
                if length >= DEVICES_BYTES_MAX {
                    break;
                }
                text.resize(2 * length, 0);
            }
        }
        Ok(transmit_drops(&String::from_utf8_lossy(&text[..length]), device).unwrap_or(0))
    }
}

/// The fourth number of the transmitting half, which is the second: `eth0: 8 numbers received 8 numbers sent`.
fn transmit_drops(devices: &str, device: &str) -> Option<u64> {
    let numbers = devices.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    numbers.split_whitespace().nth(8 + 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
echogate01: 0 0 0 0 0 0 0 0 0 0 0 99 0 0 0 0
echogate0:21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36
";

    #[test]
    fn what_a_device_dropped_is_found_by_its_whole_name() {
        assert_eq!(transmit_drops(LIST, "echogate0"), Some(32));
        assert_eq!(transmit_drops(LIST, "lo"), Some(12));
        assert_eq!(transmit_drops(LIST, "echogate"), None);
        assert_eq!(transmit_drops("", "lo"), None);
    }

    #[test]
    fn the_list_can_be_read_again_and_again() {
        let devices = Devices::open().expect("proc is mounted");
        for _ in 0..2 {
            assert!(devices.dropped_towards("lo").is_ok());
        }
    }
}
