//! What is too large for the way out and may be cut: the kernel refuses it, since it brings its own header, and it leaves in
//! pieces. For a while after that what follows is cut before it is sent, so that pieces keep their order.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::Turn;
use super::note::Note;
use crate::canary::{Canary, is_loose};
use crate::clock::Instant;
use crate::io::{Frame, PacketIo, Side};
use crate::table::ADDRESSES_MAX;
use crate::wire::fragment;
use crate::wire::ipv4::Ipv4;

/// Pieces that a packet may be cut into: the largest one, for a way out that carries 1,100 bytes.
pub(super) const PIECES_MAX: usize = 64;

/// How long a way out that was too narrow is taken to be so.
const NARROW_TIME: Duration = Duration::from_secs(10);

/// What the way out from each gateway address, by its number, was found to carry, and until when that is believed.
pub(super) type Narrow = [(u16, Instant); ADDRESSES_MAX];

impl<I: PacketIo> Turn<'_, I> {
    /// Sends what the proxy has rewritten; in pieces if the way out is known to be too narrow for it.
    pub(super) fn send_outside(&mut self, frame: Frame, address: u8, remote: Ipv4Addr) {
        let (mtu, until) = self.narrow[usize::from(address) % ADDRESSES_MAX];
        let fits = frame.len() <= usize::from(mtu) || until <= self.batch.now();
        let frame = if fits { Some(frame) } else { self.send_pieces(frame, address, mtu) };
        if let Some(frame) = frame {
            self.io.send_outside(frame, address, remote);
        }
    }

    /// Sends a packet that was too large for the way out again, in pieces. Gives it back if it cannot be cut.
    pub(super) fn cut(&mut self, frame: Frame) -> Option<Frame> {
        let may_be_cut = |packet: &Ipv4<&[u8]>| !packet.dont_fragment() || is_loose(Canary::CutsAnything);
        let way = Ipv4::check(&*frame).ok().filter(may_be_cut).and_then(|packet| {
            let address = self.batch.address_number(packet.source())?;
            Some((address, self.io.mtu_towards(address, packet.destination())?))
        });
        let Some((address, mtu)) = way else { return Some(frame) };
        self.narrow[usize::from(address) % ADDRESSES_MAX] = (mtu, self.batch.now() + NARROW_TIME);
        self.send_pieces(frame, address, mtu)
    }

    fn send_pieces(&mut self, mut frame: Frame, address: u8, mtu: u16) -> Option<Frame> {
        let Some((remote, first)) = self.make_pieces(&frame, mtu) else {
            self.pieces.clear();
            return Some(frame);
        };
        let Some(length) = fragment::cut(&mut frame, first) else {
            self.pieces.clear();
            return Some(frame);
        };
        frame.truncate(length);
        self.io.send_outside(frame, address, remote);
        *self.cut_off += self.pieces.len();
        for piece in self.pieces.drain(..) {
            self.io.send_outside(piece, address, remote);
        }
        None
    }

    /// What is to be cut off the packet; where that goes, and where the packet's own part of the payload ends then.
    fn make_pieces(&mut self, frame: &Frame, mtu: u16) -> Option<(Ipv4Addr, usize)> {
        let packet = Ipv4::check(&**frame).ok()?;
        let mut parts = fragment::parts(&packet, mtu.into())?;
        if !(2..=PIECES_MAX).contains(&parts.len()) {
            return None;
        }
        let first = parts.next()?.end;
        for part in parts {
            let mut piece = self.io.copy_of(Side::Inside, &frame[..packet.header_len() + part.len()])?;
            if !fragment::write(&packet, part, &mut piece) {
                return None;
            }
            Note::CutOff.put_on(&mut piece);
            self.pieces.push(piece);
        }
        Some((packet.destination(), first))
    }
}
