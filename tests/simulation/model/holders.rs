//! Whose each ident is: nobody else's before it has rested; and a client's ident has one at a time.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use echogate::clock::Instant;

use super::{Judged, Model};

/// An ident on a gateway address (by number).
pub(crate) type Slot = (u8, u16);

/// The gateway counts whole ones.
const MILLISECOND: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug)]
struct Holder {
    client: Ipv4Addr,
    ident: u16,
    last: Instant,
}

/// Who has which, as far as it has been seen.
#[derive(Debug, Default)]
pub(super) struct Holders {
    holders: HashMap<Slot, Holder>,
    mappings: HashMap<(Ipv4Addr, u16), (Slot, Instant)>,
    /// When a slot was left torn: its ident is nobody's, and rests.
    torn: HashMap<Slot, Instant>,
}

impl Holders {
    /// The idents that are or were somebody's, in an order that is always the same.
    pub(super) fn all(&self) -> Vec<Slot> {
        let mut held: Vec<_> = self.holders.keys().copied().collect();
        held.sort_unstable();
        held
    }

    pub(super) fn tear(&mut self, slot: Slot, now: Instant) {
        let used = self.holders.get(&slot).map(|holder| holder.last);
        let torn = self.torn.entry(slot).or_insert(now);
        // It rests since it was torn first after its last use.
        if used.is_none_or(|used| *torn < used) {
            *torn = now;
        }
        self.mappings.retain(|_, (mapped, _)| *mapped != slot);
    }
}

impl Model {
    /// When the address of a slot was lost, the first time after it was used: then its mapping has ended.
    fn lost_since(&self, slot: Slot, used: Instant) -> Option<Instant> {
        self.lost[usize::from(slot.0)].iter().find(|lost| **lost >= used).copied()
    }

    /// Whether a client's ident has a mapping that has surely not ended.
    pub(super) fn is_live(&self, now: Instant, client: Ipv4Addr, ident: u16) -> bool {
        let mapping = self.held.mappings.get(&(client, ident)).copied();
        // The gateway takes the time in another millisecond, perhaps.
        mapping.is_some_and(|mapping| self.lives(now + MILLISECOND, mapping) && !self.gone[usize::from(mapping.0.0)])
    }

    /// Whether a mapping that was used last then is still there.
    fn lives(&self, now: Instant, (slot, last): (Slot, Instant)) -> bool {
        now.since(last) + MILLISECOND < self.rules.idle && self.lost_since(slot, last).is_none()
    }

    /// A client's request leaves, or has left at that moment, under this ident.
    pub(super) fn holds(&mut self, now: Instant, slot: Slot, client: Ipv4Addr, ident: u16) -> Judged<()> {
        let holder = self.held.holders.insert(slot, Holder { client, ident, last: now });
        if let Some(before) = holder.filter(|before| (before.client, before.ident) != (client, ident)) {
            let ends = before.last + self.rules.idle;
            let lost = self.lost_since(slot, before.last);
            let torn = self.held.torn.get(&slot).copied().filter(|torn| *torn >= before.last);
            let ended = lost.into_iter().chain(torn).fold(ends, Instant::min);
            if now.since(ended) + MILLISECOND < self.rules.hold_down {
                return Err(format!(
                    "ident {} of {} ident {} has rested {:?} only",
                    slot.1,
                    before.client,
                    before.ident,
                    now.since(ended)
                ));
            }
        }
        let before = self.held.mappings.insert((client, ident), (slot, now));
        if let Some((other, last)) = before.filter(|(before, _)| *before != slot)
            && self.lives(now, (other, last))
        {
            return Err(format!("{client} ident {ident} had ident {} {:?} ago", other.1, now.since(last)));
        }
        let is_new = before.is_none_or(|(before, _)| before != slot);
        let Some(limits) = self.rules.limits.filter(|_| is_new) else { return Ok(()) };
        let of_client = self.held.mappings.iter().filter(|((of, _), _)| *of == client);
        let alive = of_client.filter(|(_, mapping)| self.lives(now, **mapping));
        if limits.mappings > 0 && alive.count() > limits.mappings as usize {
            return Err("a client has too many mappings".into());
        }
        // A damaged request may have made it, a while ago.
        if self.rules.damage { Ok(()) } else { self.shares.enters(limits, now, client) }
    }
}
