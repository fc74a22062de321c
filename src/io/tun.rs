//! Opening the TUN device: the inside.
//!
//! One worker takes tun-tap's device. Several workers need a queue each, and the kernel refuses to mix: a device made
//! without IFF_MULTI_QUEUE, as tun-tap makes it, has one queue for good. So several queues are opened here.
//!
//! A name that is taken: a single-queue device says so itself. For several, the first queue is opened with
//! IFF_TUN_EXCL, or a second gateway would join the live device of the first and take half of its packets. Either way
//! the answer is EBUSY, and also for the 40-60 ms that the io_uring of a process that has just ended still holds the
//! name; so EBUSY is tried again for a second.
//!
//! A persistent single-queue device (`ip tuntap add`) is adopted, and stays when the gateway ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use tun_tap::{Iface, Mode};

use crate::error::SetupError;
use crate::sys::tun::{self, NAME_BYTES_MAX, Queue};

/// How long a taken name is waited for.
const TAKEN_WAIT: Duration = Duration::from_secs(1);
const TAKEN_RETRY: Duration = Duration::from_millis(20);

const CLONE_DEVICE: &str = "/dev/net/tun";

/// One queue of a TUN device: whole IP packets, one a read or write, nonblocking. Without a persistent flag the device
/// goes when its last queue is closed.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
}

impl Tun {
    /// Opens the device called `name` (`%d` in it is numbered by the kernel) with `queues` queues, at least one.
    pub fn open(name: &str, queues: usize) -> Result<Vec<Tun>, SetupError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(SetupError::new(format!("{name:?} cannot be the name of a device"))
                .remedy(format!("a name of 1 to {NAME_BYTES_MAX} bytes")));
        }
        let first = retry_while_taken(|| if queues > 1 { open_queue(name, Queue::First) } else { open_single(name) })
            .map_err(|error| explain(name, error))?;
        let mut opened = vec![first];
        while opened.len() < queues {
            let next = open_queue(&opened[0].name, Queue::Further).map_err(|error| explain(name, error))?;
            opened.push(next);
        }
        for tun in &opened {
            tun::reset_offloads(tun.as_fd())
                .and_then(|()| tun::set_nonblocking(tun.as_fd()))
                .map_err(|error| SetupError::caused(format!("cannot prepare the TUN device {name}"), error))?;
        }
        Ok(opened)
    }

    /// A queue that another process has opened.
    pub fn adopt(fd: OwnedFd) -> Result<Tun, SetupError> {
        let name = tun::name_of(fd.as_fd()).map_err(|error| {
            SetupError::caused("a descriptor that was handed over is no queue of a TUN device", error)
        })?;
        Ok(Tun { fd, name })
    }

    /// Whether the device is still there.
    pub fn is_attached(&self) -> bool {
        tun::name_of(self.fd.as_fd()).is_ok()
    }

    /// Another handle to the same queue.
    pub fn try_clone(&self) -> Result<Tun, SetupError> {
        let fd =
            self.fd.try_clone().map_err(|error| SetupError::caused("cannot share a queue of a TUN device", error))?;
        Ok(Tun { fd, name: self.name.clone() })
    }

    /// The device's name, as the kernel settled it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Tun> for OwnedFd {
    fn from(tun: Tun) -> OwnedFd {
        tun.fd
    }
}

#[expect(unsafe_code, reason = "tun-tap gives its descriptor away as a number")]
fn open_single(name: &str) -> io::Result<Tun> {
    let device = Iface::without_packet_info(name, Mode::Tun)?;
    let name = device.name().to_owned();
    // SAFETY: `into_raw_fd` gives the descriptor up, and nobody else knows the number.
    let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
    Ok(Tun { fd, name })
}

fn open_queue(name: &str, queue: Queue) -> io::Result<Tun> {
    let file: File = OpenOptions::new().read(true).write(true).open(CLONE_DEVICE)?;
    let name = tun::attach_queue(file.as_fd(), name, queue)?;
    Ok(Tun { fd: file.into(), name })
}

fn retry_while_taken(mut open: impl FnMut() -> io::Result<Tun>) -> io::Result<Tun> {
    let give_up = Instant::now() + TAKEN_WAIT;
    loop {
        match open() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < give_up => {
                thread::sleep(TAKEN_RETRY);
            }
            result => return result,
        }
    }
}

/// What each errno means here: the kernel uses few for many causes.
fn explain(name: &str, error: io::Error) -> SetupError {
    let errno = error.raw_os_error();
    let plain = SetupError::caused(format!("cannot open the TUN device {name}"), error);
    match errno {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => plain.remedy(format!(
            "load the driver (modprobe tun); in a container, pass the device in (--device {CLONE_DEVICE}) or make it: \
             mkdir -p /dev/net && mknod {CLONE_DEVICE} c 10 200"
        )),
        Some(libc::EPERM) => {
            plain.remedy("run as root, or give the binary CAP_NET_ADMIN (setcap cap_net_admin,cap_net_raw=ep)")
        }
        Some(libc::EACCES) => plain.remedy(format!("let this user read and write {CLONE_DEVICE}, or run as root")),
        Some(libc::EBUSY) => plain.remedy(format!(
            "a device called {name} exists: another gateway may be running; end it, choose another --device, or remove \
             the device (ip link del {name})"
        )),
        Some(libc::EINVAL) => plain.remedy(format!(
            "either {name} is no valid name, or a device of that name exists that is no TUN or has another number of \
             queues; choose another --device, or remove it (ip link del {name})"
        )),
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::namespace;

    fn in_network<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        let network = namespace::new_network().expect("a network namespace takes CAP_SYS_ADMIN: run the tests as root");
        namespace::run_in(network.as_fd(), work).expect("the namespace can be entered")
    }

    fn refusal(name: &str, queues: usize) -> (Option<i32>, String) {
        let error = Tun::open(name, queues).expect_err("must be refused");
        (error.errno(), error.to_string())
    }

    #[test]
    fn queues_share_a_name_and_do_not_block() {
        in_network(|| {
            for queues in [1, 3] {
                let opened = Tun::open("t%d", queues).unwrap();
                assert_eq!(opened.len(), queues);
                for tun in &opened {
                    assert_eq!(tun.name(), "t0");
                    let error = crate::sys::event::read(tun.as_fd(), &mut [0; 64]).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                }
            }
        });
    }

    #[test]
    fn a_taken_name_is_refused_with_one_queue_and_with_several() {
        in_network(|| {
            for (held, asked) in [(1, 1), (1, 2), (2, 2)] {
                let _held = Tun::open("taken", held).unwrap();
                let (errno, text) = refusal("taken", asked);
                assert_eq!(errno, Some(libc::EBUSY), "{held} {asked}");
                assert!(text.contains("ip link del taken"), "{text}");
            }
        });
    }

    #[test]
    fn a_queue_that_was_handed_over_knows_its_device_and_what_is_none_is_refused() {
        in_network(|| {
            let opened = Tun::open("t%d", 2).unwrap();
            let again = Tun::adopt(opened[1].try_clone().unwrap().into()).unwrap();
            assert_eq!(again.name(), "t0");
            let error = Tun::adopt(File::open("/dev/null").unwrap().into()).unwrap_err();
            assert!(error.to_string().contains("no queue of a TUN device"), "{error}");
        });
    }

    #[test]
    fn a_name_that_is_just_being_freed_is_waited_for() {
        in_network(|| {
            let held = Tun::open("freed", 1).unwrap();
            let releaser = thread::spawn(move || {
                thread::sleep(Duration::from_millis(100));
                drop(held);
            });
            assert_eq!(Tun::open("freed", 2).unwrap().len(), 2);
            releaser.join().unwrap();
        });
    }

    #[test]
    fn names_that_cannot_be_are_refused_with_a_remedy() {
        in_network(|| {
            for (name, errno) in
                [("", None), ("sixteen-bytes-xx", None), ("a/b", Some(libc::EINVAL)), ("lo", Some(libc::EINVAL))]
            {
                let (refused, text) = refusal(name, 1);
                assert_eq!(refused, errno, "{text}");
                assert!(text.contains("remedy: "), "{text}");
            }
            assert_eq!(refusal("lo", 2).0, Some(libc::EBUSY));
        });
    }
}
