//! What a running gateway takes from a changed configuration, and what it cannot.
//!
//! Whatever is not named here changes when the gateway is told to read its configuration again: it is what the process that moves
//! the packets makes for itself, or what can be made anew beside the old. These are what all of it hangs on.

use super::key::{Key, Kind};
use super::keys::KEYS;
use super::{Config, Source};
use crate::error::SetupError;

/// Keys that are read at a start only, by their full names.
pub const FIXED: [&str; 14] = [
    // The device, and what is in its queues.
    "inside.device",
    "inside.address",
    "inside.mtu",
    "inside.queue_length",
    // The one leaves rule and routes, the other none.
    "inside.divert_by",
    // The numbers that the host's rules and routes are found by.
    "inside.mark",
    "inside.mark_mask",
    "inside.table",
    "inside.rule_priority",
    // Sockets and queues: as many as there are workers, with their filters.
    "run.workers",
    "echo.icmp_errors",
    // The tables' memory.
    "echo.timeout",
    "echo.table_words",
    // Whoever looks has found it here.
    "observe.control",
];

impl Key {
    /// Whether it is read at a start only.
    pub fn is_fixed(&self) -> bool {
        FIXED.contains(&self.full_name().as_str())
    }
}

impl Source {
    /// This configuration in place of `running`. The error names the keys that a gateway that runs cannot change.
    pub fn in_place_of(&self, running: &Source) -> Result<Config, SetupError> {
        let (mut new, mut old) = (self.config()?, running.config()?);
        let changed: Vec<_> = KEYS
            .iter()
            .filter(|key| key.is_fixed())
            .filter(|key| differs(key, &mut new, &mut old))
            .map(Key::full_name)
            .collect();
        if changed.is_empty() {
            return Ok(new);
        }
        let (what, it) = (changed.join(", "), if changed.len() == 1 { "it" } else { "them" });
        Err(SetupError::new(format!("{}: {what} cannot change while the gateway runs", self.path))
            .remedy(format!("leave {it} as before, or start the gateway again (which loses its mappings)")))
    }
}

fn differs(key: &Key, new: &mut Config, old: &mut Config) -> bool {
    fn unequal<T: PartialEq>(field: fn(&mut Config) -> &mut T, new: &mut Config, old: &mut Config) -> bool {
        *field(new) != *field(old)
    }
    match key.kind {
        Kind::Integer { field, .. } => unequal(field, new, old),
        Kind::Duration { field, .. } => unequal(field, new, old),
        Kind::OptionalDuration { field, .. } => unequal(field, new, old),
        Kind::Name(field) => unequal(field, new, old),
        Kind::Names(field) => unequal(field, new, old),
        Kind::Address(field) => unequal(field, new, old),
        Kind::Addresses(field) => unequal(field, new, old),
        Kind::Prefixes(field) => unequal(field, new, old),
        Kind::IdentRanges(field) => unequal(field, new, old),
        Kind::Exceptions(field) => unequal(field, new, old),
        Kind::Switch(field) => unequal(field, new, old),
        Kind::Backend(field) => unequal(field, new, old),
        Kind::DivertBy(field) => unequal(field, new, old),
        Kind::FallThrough(field) => unequal(field, new, old),
        Kind::ControlSocket(field) => unequal(field, new, old),
        Kind::Listen(field) => unequal(field, new, old),
        Kind::LogFilter(field) => unequal(field, new, old),
        Kind::LogFormat(field) => unequal(field, new, old),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source {
            text: format!("[inside]\nclients = [\"10.66.0.0/24\"]\n{text}"),
            path: "e.toml".to_owned(),
            flags: vec![],
        }
    }

    #[test]
    fn what_is_fixed_are_keys() {
        for name in FIXED {
            assert!(KEYS.iter().any(|key| key.full_name() == name), "{name}");
        }
    }

    #[test]
    fn what_can_change_is_taken_and_what_cannot_is_named() {
        let running = source("mtu = 1500\n[run]\nworkers = 2\n[limits]\nmappings = 7\n");
        let other = source(
            "mtu = 1500\n[run]\nworkers = 2\nbusy_poll_us = 3\n[limits]\nmappings = 8\n[remotes]\ndeny = [\"192.0.2.0/24\"]\n",
        );
        assert_eq!(other.in_place_of(&running).unwrap().limits.everybody.mappings, 8);
        let wrong =
            source("mtu = 1400\n[run]\nworkers = 3\n[limits]\nmappings = 8\n").in_place_of(&running).unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "e.toml: inside.mtu, run.workers cannot change while the gateway runs\n  remedy: leave them as before, or start \
             the gateway again (which loses its mappings)"
        );
        let bad = source("[limits]\nmapings = 8\n").in_place_of(&running).unwrap_err().to_string();
        assert!(bad.starts_with("e.toml:4: "), "{bad}");
    }
}
