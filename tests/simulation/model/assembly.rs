//! Datagrams that remotes put together.

use std::net::Ipv4Addr;
use std::time::Duration;

use echogate::clock::Instant;

use super::super::eyes::{Packet, sum};
use super::{Judged, Key};

/// A remote waits this long for a datagram's missing fragments.
const PATIENCE: Duration = Duration::from_secs(15);

/// A datagram, as far as its fragments have left.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    since: Option<Instant>,
    /// Of the first fragment.
    key: Option<Key>,
    /// Who has asked it in fragments, if that is known.
    asker: Option<Ipv4Addr>,
    /// Which request it is, if that is known.
    number: Option<u64>,
    parts: Vec<Vec<u8>>,
}

impl Assembly {
    /// A fragment leaves; if it is the first one, under this key, of which request, and by whom it was asked in fragments. What has
    /// waited for too long is over.
    pub(super) fn begin(&mut self, now: Instant, key: Option<Key>, number: Option<u64>, asker: Option<Ipv4Addr>) {
        if self.since.is_none_or(|since| now.since(since) > PATIENCE) {
            *self = Assembly { since: Some(now), ..Assembly::default() };
        }
        if key.is_some() {
            (self.key, self.number, self.asker) = (key, number, asker);
        }
    }

    pub(super) fn asker(&self) -> Option<Ipv4Addr> {
        self.asker
    }

    pub(super) fn number(&self) -> Option<u64> {
        self.number
    }

    /// A fragment has left. The whole, and its key, if nothing is missing any more.
    pub(super) fn take(&mut self, packet: &Packet<'_>) -> Judged<Option<(Key, Vec<u8>)>> {
        self.parts.push(packet.bytes.to_vec());
        let mut parts: Vec<_> = self.parts.iter().filter_map(|part| Packet::see(part)).collect();
        parts.sort_by_key(|part| part.offset);
        let mut payload = Vec::new();
        for part in &parts {
            if part.offset < payload.len() {
                let (source, to, number) = (packet.source, packet.destination, packet.identification);
                return Err(format!("fragments overlap under {source}, {to}, {number}: two clients' are one"));
            }
            if part.offset > payload.len() {
                return Ok(None);
            }
            payload.extend_from_slice(part.payload);
        }
        let (Some(Packet { more_fragments: false, .. }), Some(key)) = (parts.last(), self.key) else {
            return Ok(None);
        };
        let header = parts[0].header;
        let mut bytes = [header, &payload].concat();
        let total = u16::try_from(bytes.len()).map_err(|_| "fragments of more than a datagram")?;
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[6..8].fill(0);
        bytes[10..12].fill(0);
        let check = !sum(&bytes[..header.len()]);
        bytes[10..12].copy_from_slice(&check.to_be_bytes());
        Ok(Some((key, bytes)))
    }
}
