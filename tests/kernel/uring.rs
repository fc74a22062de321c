//! io_uring's multishot read and receive, through the crate as it is.

use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;

use echogate::wire::build::echo_reply;
use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::{GATEWAY, PATIENCE, REMOTE, Tun, in_namespace};

/// The one buffer group.
const GROUP: u16 = 0;
const BUFFERS: u16 = 8;
const BUFFER_LEN: i32 = 64;

/// A ring and its buffers, of which nobody reads anything: results tell all.
struct Ring(IoUring);

impl Ring {
    fn new() -> Ring {
        let ring =
            IoUring::new(8).expect("io_uring; remedy: kernel.io_uring_disabled=0, no seccomp profile against it");
        let mut ring = Ring(ring);
        let bytes = usize::from(BUFFERS) * usize::try_from(BUFFER_LEN).expect("64");
        // Never freed: the kernel may write to it until the ring is gone for good, which is after it is closed.
        let memory = Vec::leak(vec![0_u8; bytes]).as_mut_ptr();
        ring.submit(&opcode::ProvideBuffers::new(memory, BUFFER_LEN, BUFFERS, GROUP, 0).build());
        assert_eq!(ring.completion().0, 0);
        ring
    }

    #[expect(unsafe_code, reason = "submission queue entries name memory and files by number")]
    fn submit(&mut self, entry: &squeue::Entry) {
        // SAFETY: the only memory that an entry of this module names are the buffers, which are never freed.
        let pushed = unsafe { self.0.submission().push(entry) };
        pushed.expect("room in the queue");
        self.0.submit().expect("submit");
    }

    /// The next completion: its result, negative for an errno, and whether more will follow.
    fn completion(&mut self) -> (i32, bool) {
        let timeout = Timespec::from(PATIENCE);
        self.0.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout)).expect("a completion");
        let completion = self.0.completion().next().expect("a completion");
        (completion.result(), cqueue::more(completion.flags()))
    }
}

/// An echo reply of 28 bytes and a payload.
fn reply(payload_len: usize) -> Vec<u8> {
    echo_reply(REMOTE, GATEWAY, 1, 1, 64, &vec![0; payload_len])
}

/// A raw socket that receives ICMP.
fn receiver() -> Socket {
    Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))
        .expect("a raw socket; remedy: run as root (CAP_NET_RAW)")
}

/// A device that a packet of 28 bytes leaves by.
fn tun_with_a_packet() -> Tun {
    let tun = Tun::outside();
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
        .expect("a raw socket; remedy: run as root (CAP_NET_RAW)");
    let remote = SocketAddrV4::new(REMOTE, 0);
    socket.send_to(&echo_reply(GATEWAY, REMOTE, 1, 1, 64, &[]), &remote.into()).expect("a send");
    tun
}

#[test]
fn read_multi_takes_no_length_but_zero() {
    in_namespace(|| {
        let tun = tun_with_a_packet();
        let mut ring = Ring::new();
        ring.submit(&opcode::ReadMulti::new(Fd(tun.as_raw_fd()), 64, GROUP).build());
        assert_eq!(ring.completion(), (-libc::EINVAL, false));
        ring.submit(&opcode::ReadMulti::new(Fd(tun.as_raw_fd()), 0, GROUP).build());
        assert_eq!(ring.completion(), (28, true));
    });
}

#[test]
fn read_multi_loses_fixed_file_unless_it_is_set_after_build() {
    in_namespace(|| {
        // Registered at an index that is no descriptor, so that the loss cannot go unseen.
        const INDEX: u32 = 1_000;
        let tun = tun_with_a_packet();
        let mut ring = Ring::new();
        ring.0.submitter().register_files_sparse(INDEX + 1).unwrap();
        ring.0.submitter().register_files_update(INDEX, &[tun.as_raw_fd()]).unwrap();
        let entry = || opcode::ReadMulti::new(Fixed(INDEX), 0, GROUP).build();
        ring.submit(&entry());
        assert_eq!(ring.completion(), (-libc::EBADF, false));
        ring.submit(&entry().flags(squeue::Flags::FIXED_FILE));
        assert_eq!(ring.completion(), (28, true));
    });
}

#[test]
fn a_multishot_receive_truncates_silently_and_with_msg_trunc_its_result_is_larger_than_the_buffer() {
    in_namespace(|| {
        let outside = Tun::outside();
        for (flags, result) in [(0, BUFFER_LEN), (libc::MSG_TRUNC, 128)] {
            let socket = receiver();
            let mut ring = Ring::new();
            ring.submit(&opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).flags(flags).build());
            outside.inject(&reply(100));
            assert_eq!(ring.completion(), (result, true));
        }
    });
}

#[test]
fn a_multishot_that_runs_out_of_buffers_ends() {
    in_namespace(|| {
        let outside = Tun::outside();
        let socket = receiver();
        let mut ring = Ring::new();
        ring.submit(&opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).build());
        for _ in 0..BUFFERS {
            outside.inject(&reply(0));
            assert_eq!(ring.completion(), (28, true));
        }
        outside.inject(&reply(0));
        assert_eq!(ring.completion(), (-libc::ENOBUFS, false));
    });
}
