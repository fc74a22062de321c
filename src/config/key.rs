//! What a configuration's key is: its names and its words, the type of its value and that value's place.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::keys::KEYS;
use super::log::{LOG_FORMATS, LogFormat};
use super::{Config, ControlSocket, Exception, IdentRange};
use crate::host::divert::DivertBy;
use crate::io::{Backend, FallThrough};
use crate::policy::Prefix;

/// One thing that can be configured: its names, what it means, what it may be and what it is by default.
pub struct Key {
    /// The file's table.
    pub table: &'static str,
    /// The name in that table.
    pub name: &'static str,
    /// The flag without its dashes; `None` for what only the file sets.
    pub flag: Option<&'static str>,
    /// What it does, in one or two sentences without the closing full stop.
    pub meaning: &'static str,
    /// What holds when nobody sets it.
    pub default: KeyDefault,
    /// What it may be, and where it goes.
    pub(super) kind: Kind,
}

/// What holds when nobody sets a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyDefault {
    /// This value, as a flag would give it.
    Value(&'static str),
    /// Something worked out at start, in words.
    Computed(&'static str),
    /// Nothing: it must be set.
    Required,
}

/// A value's type and limits, and its place in a [`Config`].
///
/// The place is a `fn` to a mutable reference, for reading too: two accessors a key could disagree.
pub(super) enum Kind {
    /// A whole number, in a range.
    Integer { min: u32, max: u32, unit: &'static str, field: fn(&mut Config) -> &mut u32 },
    /// A length of time, in a range of seconds.
    Duration { min_s: u64, max_s: u64, field: fn(&mut Config) -> &mut Duration },
    /// A length of time that need not be given, in a range of seconds.
    OptionalDuration { min_s: u64, max_s: u64, field: fn(&mut Config) -> &mut Option<Duration> },
    /// The name of an interface that we make.
    Name(fn(&mut Config) -> &mut String),
    /// Names of interfaces that others made.
    Names(fn(&mut Config) -> &mut Vec<String>),
    /// An address.
    Address(fn(&mut Config) -> &mut Ipv4Addr),
    /// Addresses.
    Addresses(fn(&mut Config) -> &mut Vec<Ipv4Addr>),
    /// Prefixes.
    Prefixes(fn(&mut Config) -> &mut Vec<Prefix>),
    /// Ranges of idents.
    IdentRanges(fn(&mut Config) -> &mut Vec<IdentRange>),
    /// Prefixes with limits of their own.
    Exceptions(fn(&mut Config) -> &mut Vec<Exception>),
    /// One of [`SWITCH`].
    Switch(fn(&mut Config) -> &mut bool),
    /// One of [`BACKENDS`].
    Backend(fn(&mut Config) -> &mut Backend),
    /// One of [`DIVERTS`].
    DivertBy(fn(&mut Config) -> &mut DivertBy),
    /// One of [`FALL_THROUGHS`].
    FallThrough(fn(&mut Config) -> &mut FallThrough),
    /// The path of a socket, or [`NOWHERE`].
    ControlSocket(fn(&mut Config) -> &mut ControlSocket),
    /// An address with a port to listen at, or [`NOWHERE`].
    Listen(fn(&mut Config) -> &mut Option<SocketAddr>),
    /// What is logged.
    LogFilter(fn(&mut Config) -> &mut Option<String>),
    /// One of [`LOG_FORMATS`].
    LogFormat(fn(&mut Config) -> &mut LogFormat),
}

/// The word for a socket that is not to be.
pub(super) const NOWHERE: &str = "none";

/// The words for the back ends.
pub const BACKENDS: &[(&str, Backend)] =
    &[("auto", Backend::Auto), ("uring", Backend::Uring), ("syscalls", Backend::Syscalls)];

/// The words for how requests are diverted.
pub(super) const DIVERTS: &[(&str, DivertBy)] = &[("route", DivertBy::Route), ("ingress", DivertBy::Ingress)];

/// The words for what happens to packets that are not proxied.
pub(super) const FALL_THROUGHS: &[(&str, FallThrough)] =
    &[("reinject", FallThrough::Reinject), ("drop", FallThrough::Drop)];

/// The words for what can be on or off.
pub(super) const SWITCH: &[(&str, bool)] = &[("on", true), ("off", false)];

/// What the kernel takes as the path of a Unix socket (`sun_path` less its closing zero).
pub(super) const SOCKET_PATH_BYTES_MAX: usize = 107;

impl Key {
    /// The key of that flag, given without its dashes.
    pub fn of_flag(flag: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.flag == Some(flag))
    }

    /// `inside.clients`: how errors and documentation call it.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.table, self.name)
    }

    /// What it may be, with its unit: `576 to 65535 bytes`.
    pub fn allowed(&self) -> String {
        self.kind.to_string()
    }

    /// Whether it takes any number of values: an array in the file, a flag that may be repeated.
    pub fn is_list(&self) -> bool {
        matches!(
            self.kind,
            Kind::Names(_) | Kind::Addresses(_) | Kind::Prefixes(_) | Kind::IdentRanges(_) | Kind::Exceptions(_)
        )
    }

    /// A value as the file would give it: the default where that is one, else one that could be meant.
    pub fn example(&self) -> String {
        let quoted = |text: &str| format!("{text:?}");
        let in_list = |text: &str| format!("[{text:?}]");
        match (&self.kind, self.default) {
            (Kind::Integer { .. }, KeyDefault::Value(value)) => value.to_owned(),
            (_, KeyDefault::Value(value)) => quoted(value),
            (Kind::Integer { min, .. }, _) => min.to_string(),
            (Kind::Duration { .. } | Kind::OptionalDuration { .. }, _) => quoted("120s"),
            (Kind::Name(_), _) => quoted("echogate0"),
            (Kind::Names(_), _) => in_list("wg0"),
            (Kind::Address(_), _) => quoted("198.51.100.1"),
            (Kind::Addresses(_), _) => in_list("198.51.100.1"),
            (Kind::Prefixes(_), _) => in_list("10.66.0.0/24"),
            (Kind::IdentRanges(_), _) => in_list("0-1023"),
            (Kind::Exceptions(_), _) => in_list("10.66.0.9/32 packets_per_second=0 mappings=4096"),
            (Kind::Switch(_), _) => quoted(SWITCH[0].0),
            (Kind::Backend(_), _) => quoted(BACKENDS[0].0),
            (Kind::DivertBy(_), _) => quoted(DIVERTS[0].0),
            (Kind::FallThrough(_), _) => quoted(FALL_THROUGHS[0].0),
            (Kind::ControlSocket(_), _) => quoted("/run/echogate/echogate0.sock"),
            (Kind::Listen(_), _) => quoted("127.0.0.1:9428"),
            (Kind::LogFilter(_), _) => quoted("info,echogate::host=debug"),
            (Kind::LogFormat(_), _) => quoted(LOG_FORMATS[0].0),
        }
    }

    /// How help calls the flag's value: `PREFIX`.
    pub fn placeholder(&self) -> &'static str {
        match self.kind {
            Kind::Integer { .. } => "N",
            Kind::Duration { .. } | Kind::OptionalDuration { .. } => "DURATION",
            Kind::Name(_) | Kind::Names(_) => "INTERFACE",
            Kind::Address(_) | Kind::Addresses(_) => "ADDRESS",
            Kind::Prefixes(_) => "PREFIX",
            Kind::IdentRanges(_) => "RANGE",
            Kind::Exceptions(_) => "LIMITS",
            Kind::Switch(_) | Kind::Backend(_) | Kind::DivertBy(_) | Kind::FallThrough(_) | Kind::LogFormat(_) => {
                "WHICH"
            }
            Kind::LogFilter(_) => "LEVEL",
            Kind::ControlSocket(_) => "PATH",
            Kind::Listen(_) => "ADDRESS:PORT",
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full_name())
    }
}

impl fmt::Display for KeyDefault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyDefault::Value(text) | KeyDefault::Computed(text) => text,
            KeyDefault::Required => "none: it must be given",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Integer { min, max, unit: "", .. } => write!(f, "{min} to {max}"),
            Kind::Integer { min, max, unit, .. } => write!(f, "{min} to {max} {unit}"),
            Kind::Duration { min_s, max_s, .. } | Kind::OptionalDuration { min_s, max_s, .. } => {
                let [min, max] =
                    [min_s, max_s].map(|seconds| humantime::format_duration(Duration::from_secs(*seconds)));
                write!(f, "{min} to {max}, with its unit, as in \"90s\" or \"5m\"")
            }
            Kind::Name(_) => f.write_str("1 to 15 letters, digits, '_', '.' and '-'"),
            Kind::Names(_) => f.write_str("interface names such as g0"),
            Kind::Address(_) => f.write_str("an IPv4 address such as 192.0.2.1"),
            Kind::Addresses(_) => f.write_str("IPv4 addresses such as 192.0.2.1"),
            Kind::Prefixes(_) => f.write_str("IPv4 prefixes such as 10.66.0.0/24"),
            Kind::IdentRanges(_) => f.write_str("ranges of idents such as 1000-1999, or single ones"),
            Kind::Exceptions(_) => f.write_str("prefixes with their limits, such as \"10.66.0.9/32 mappings=4096\""),
            Kind::Switch(_) => write_words(f, SWITCH.iter().map(|(word, _)| *word)),
            Kind::Backend(_) => write_words(f, BACKENDS.iter().map(|(word, _)| *word)),
            Kind::DivertBy(_) => write_words(f, DIVERTS.iter().map(|(word, _)| *word)),
            Kind::FallThrough(_) => write_words(f, FALL_THROUGHS.iter().map(|(word, _)| *word)),
            Kind::ControlSocket(_) => {
                write!(f, "a path from the root, of at most {SOCKET_PATH_BYTES_MAX} bytes, or {NOWHERE}")
            }
            Kind::Listen(_) => {
                write!(f, "an address with its port, such as 127.0.0.1:9428 or [::1]:9428, or {NOWHERE}")
            }
            Kind::LogFilter(_) => f.write_str(
                "off, error, warn, info, debug or trace, or a list of such with modules, as in info,echogate::host=debug",
            ),
            Kind::LogFormat(_) => write_words(f, LOG_FORMATS.iter().map(|(word, _)| *word)),
        }
    }
}

fn write_words<'a>(f: &mut fmt::Formatter<'_>, words: impl Iterator<Item = &'a str>) -> fmt::Result {
    for (index, word) in words.enumerate() {
        if index > 0 {
            f.write_str(" or ")?;
        }
        f.write_str(word)?;
    }
    Ok(())
}
