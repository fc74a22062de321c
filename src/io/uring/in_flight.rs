//! Frames that the kernel is reading from: the sends submitted and not completed.

use std::net::Ipv4Addr;

use crate::io::{Frame, Side};
use crate::sys::net;

/// A frame on its way out.
#[derive(Debug)]
pub(super) struct Flying {
    pub(super) frame: Frame,
    pub(super) to: Side,
    /// The number of the gateway address it leaves from (outside only).
    pub(super) address: u8,
}

/// A fixed number of places for frames, each known to the kernel by its number (the `user_data`).
#[derive(Debug)]
pub(super) struct InFlight {
    places: Box<[Option<Flying>]>,
    /// Where each frame goes: read by the kernel, so its address is fixed.
    remotes: Box<[libc::sockaddr_in]>,
    vacant: Vec<u32>,
}

impl InFlight {
    pub(super) fn new(places: u32) -> InFlight {
        InFlight {
            places: (0..places).map(|_| None).collect(),
            remotes: (0..places).map(|_| net::sockaddr(Ipv4Addr::UNSPECIFIED)).collect(),
            vacant: (0..places).rev().collect(),
        }
    }

    /// Gives a frame a place. Without one the frame comes back.
    pub(super) fn insert(&mut self, flying: Flying, remote: Ipv4Addr) -> Result<u32, Flying> {
        let Some(place) = self.vacant.pop() else { return Err(flying) };
        self.remotes[place as usize] = net::sockaddr(remote);
        self.places[place as usize] = Some(flying);
        Ok(place)
    }

    /// The frame in `place`, and its destination as the kernel reads it.
    pub(super) fn get(&self, place: u32) -> Option<(&Flying, *const libc::sockaddr)> {
        let flying = self.places.get(place as usize)?.as_ref()?;
        let remote: *const libc::sockaddr_in = &raw const self.remotes[place as usize];
        Some((flying, remote.cast()))
    }

    /// Takes the frame whose send has completed.
    pub(super) fn remove(&mut self, place: u64) -> Option<Flying> {
        let place = u32::try_from(place).ok()?;
        let flying = self.places.get_mut(place as usize)?.take()?;
        // Never grows: it had room for all places.
        self.vacant.push(place);
        Some(flying)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.vacant.len()
    }
}
