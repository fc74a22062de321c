//! What makes a configuration one that the gateway can run with, and the reasons.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::key::{Key, Kind, SOCKET_PATH_BYTES_MAX};
use super::keys::KEYS;
use super::log::check_filter;
use super::sources::Origins;
use super::{CLIENTS_MAX, Config, ControlSocket};
use crate::error::SetupError;
use crate::policy::{Limits, Prefix, remotes};
use crate::proxy::BATCH_TIME_MAX;
use crate::table::ADDRESSES_MAX;

/// The longest name that the kernel gives an interface: IFNAMSIZ less the closing zero.
const INTERFACE_NAME_BYTES_MAX: usize = 15;

/// Prefixes shorter than this are a mistyped length: no private range is larger than 10.0.0.0/8.
const CLIENTS_LENGTH_MIN: u8 = 8;

/// Routing tables that are the kernel's: 253 default, 254 main, 255 local.
const KERNEL_TABLES: std::ops::RangeInclusive<u32> = 253..=255;

/// The fewest idents that are worth an address.
const IDENTS_MIN: usize = 1024;

/// Ranges that no host may send from (RFC 6890), with what they are.
const NOT_HOSTS: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "\"this network\" addresses"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback addresses"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast addresses"),
    (Ipv4Addr::BROADCAST, 32, "the broadcast address"),
];

impl Config {
    /// Whether the gateway can run with this; otherwise the first reason why not. A program that fills a [`Config`]
    /// itself, or changes one, need not call it: starting the gateway does.
    pub fn validate(&self) -> Result<(), SetupError> {
        self.check(&Origins::default())
    }

    /// As [`Config::validate`], naming the line or the flag that set the value in question.
    pub(super) fn check(&self, origins: &Origins) -> Result<(), SetupError> {
        let refuse = |key: &str, refusal: (String, String)| {
            Err(SetupError::new(format!("{}: {}", origins.name(key), refusal.0)).remedy(refusal.1))
        };
        let checks: [(&str, Check); 14] = [
            ("inside.clients", check_clients),
            ("inside.divert", check_divert),
            ("inside.address", check_inside_address),
            ("inside.mark", check_mark),
            ("inside.table", check_table),
            ("outside.addresses", check_outside),
            ("outside.devices", check_outside_devices),
            ("mapping.hold_down", check_hold_down),
            ("mapping.reserved_idents", check_reserved_idents),
            ("echo.table_words", check_table_words),
            ("remotes.deny", check_deny),
            ("remotes.allow", check_allow),
            ("limits.bytes_burst", check_bytes_burst),
            ("limits.overrides", check_overrides),
        ];
        for key in KEYS {
            if let Err(what) = key.check_limits(self) {
                return refuse(&key.full_name(), (what, format!("allowed: {}", key.allowed())));
            }
        }
        for (key, check) in checks {
            if let Err(refusal) = check(self) {
                return refuse(key, refusal);
            }
        }
        Ok(())
    }
}

/// `Err`: what is wrong, and the remedy.
type Verdict = Result<(), (String, String)>;

/// One rule about several values.
type Check = fn(&Config) -> Verdict;

fn refused(what: impl Into<String>, remedy: impl Into<String>) -> Verdict {
    Err((what.into(), remedy.into()))
}

impl Key {
    /// The limits of one value by itself.
    fn check_limits(&self, config: &Config) -> Result<(), String> {
        // The fields are reached by mutable reference; the copy is what is lent. This happens once, at start.
        let config = &mut config.clone();
        match &self.kind {
            Kind::Integer { min, max, field, .. } => match *field(config) {
                value if (*min..=*max).contains(&value) => Ok(()),
                value => Err(format!("{value} is out of range")),
            },
            Kind::Duration { min_s, max_s, field } => check_duration(*field(config), *min_s, *max_s),
            Kind::OptionalDuration { min_s, max_s, field } => {
                field(config).map_or(Ok(()), |value| check_duration(value, *min_s, *max_s))
            }
            Kind::Name(field) => check_device_name(field(config)),
            Kind::Names(field) => field(config).iter().try_for_each(|name| check_interface_name(name)),
            Kind::ControlSocket(field) => check_socket_path(field(config)),
            Kind::LogFilter(field) => field(config).as_deref().map_or(Ok(()), check_filter),
            Kind::Address(_)
            | Kind::Addresses(_)
            | Kind::Prefixes(_)
            | Kind::IdentRanges(_)
            | Kind::Exceptions(_)
            | Kind::Switch(_)
            | Kind::Backend(_)
            | Kind::DivertBy(_)
            | Kind::FallThrough(_)
            | Kind::Listen(_)
            | Kind::LogFormat(_) => Ok(()),
        }
    }
}

fn check_duration(value: Duration, min_s: u64, max_s: u64) -> Result<(), String> {
    if (Duration::from_secs(min_s)..=Duration::from_secs(max_s)).contains(&value) {
        return Ok(());
    }
    Err(format!("{} is out of range", humantime::format_duration(value)))
}

fn check_socket_path(socket: &ControlSocket) -> Result<(), String> {
    let ControlSocket::At(path) = socket else { return Ok(()) };
    let shown = path.display();
    if !path.is_absolute() {
        return Err(format!("{shown} depends on where the gateway is started"));
    }
    match path.as_os_str().len() {
        0..=SOCKET_PATH_BYTES_MAX => Ok(()),
        length => Err(format!("{shown} has {length} bytes")),
    }
}

/// What the kernel takes as a name (dev_valid_name) and nftables as one name: '*' would match a family of them, a quote
/// end the string.
fn check_interface_name(name: &str) -> Result<(), String> {
    let usable = |byte: u8| byte.is_ascii_graphic() && !b"/:*\"\\".contains(&byte);
    if name.is_empty() || name.len() > INTERFACE_NAME_BYTES_MAX {
        return Err(format!("{name:?} has {} bytes", name.len()));
    }
    if name == "." || name == ".." || !name.bytes().all(usable) {
        return Err(format!("{name:?} is no interface name"));
    }
    Ok(())
}

/// The device's name, which becomes part of an nftables table's.
fn check_device_name(name: &str) -> Result<(), String> {
    check_interface_name(name)?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) {
        return Err(format!("{name:?} cannot be part of an nftables name"));
    }
    Ok(())
}

/// A burst that no packet fits into refuses every packet.
fn fits_a_packet(limits: &Limits, mtu: u32) -> Verdict {
    if limits.bytes_per_second == 0 || limits.bytes_burst >= mtu {
        return Ok(());
    }
    let burst = limits.bytes_burst;
    refused(format!("{burst} bytes at once are less than one packet of inside.mtu ({mtu})"), format!("at least {mtu}"))
}

fn check_bytes_burst(config: &Config) -> Verdict {
    fits_a_packet(&config.limits.everybody, config.inside.mtu)
}

fn check_overrides(config: &Config) -> Verdict {
    let overrides = &config.limits.overrides;
    if overrides.len() > CLIENTS_MAX {
        return refused(
            format!("{} prefixes", overrides.len()),
            format!("at most {CLIENTS_MAX}: they are compared one by one"),
        );
    }
    for (position, exception) in overrides.iter().enumerate() {
        let prefix = exception.prefix;
        fits_a_packet(&exception.limits(config.limits.everybody), config.inside.mtu)
            .map_err(|(what, remedy)| (format!("{prefix}: {what}"), remedy))?;
        if overrides[..position].iter().any(|earlier| earlier.prefix == prefix) {
            return refused(format!("{prefix} stands there twice"), "name its limits in one entry");
        }
        if !config.inside.clients.iter().any(|clients| clients.overlaps(prefix)) {
            return refused(format!("{prefix} holds no client"), "a prefix among inside.clients");
        }
    }
    Ok(())
}

fn check_clients(config: &Config) -> Verdict {
    let clients = &config.inside.clients;
    if clients.is_empty() {
        return refused(
            "no clients",
            "name the prefixes that clients come from: --clients 10.66.0.0/24, or clients = [\"10.66.0.0/24\"] \
             under [inside]",
        );
    }
    if clients.len() > CLIENTS_MAX {
        return refused(
            format!("{} prefixes", clients.len()),
            format!("at most {CLIENTS_MAX}: join neighbours into shorter prefixes"),
        );
    }
    for (index, prefix) in clients.iter().enumerate() {
        if let Some(other) = clients[..index].iter().find(|other| other.overlaps(*prefix)) {
            return refused(format!("{other} and {prefix} overlap"), "give each client's address in one prefix only");
        }
        if prefix.length() < CLIENTS_LENGTH_MIN {
            return refused(
                format!("{prefix} is too large"),
                format!("a prefix of clients has a length of {CLIENTS_LENGTH_MIN} to 32"),
            );
        }
        if let Some(what) = not_hosts(*prefix) {
            return refused(
                format!("{prefix} holds {what}"),
                "give the prefixes that the VPN hands out to its clients",
            );
        }
    }
    Ok(())
}

fn check_divert(config: &Config) -> Verdict {
    let divert = &config.inside.divert;
    for (index, name) in divert.iter().enumerate() {
        if *name == config.inside.device {
            return refused(
                format!("{name} is the gateway's own TUN device"),
                "name the interfaces that clients arrive by",
            );
        }
        if divert[..index].contains(name) {
            return refused(format!("{name} is named twice"), "name each interface once");
        }
    }
    Ok(())
}

fn check_outside_devices(config: &Config) -> Verdict {
    let devices = &config.outside.devices;
    for (index, name) in devices.iter().enumerate() {
        if *name == config.inside.device {
            return refused(
                format!("{name} is the gateway's own TUN device"),
                "name the interfaces that lead to the internet",
            );
        }
        if devices[..index].contains(name) {
            return refused(format!("{name} is named twice"), "name each interface once");
        }
    }
    if !devices.is_empty() && config.inside.divert.is_empty() {
        return refused(
            "without inside.divert it has no effect",
            "name the interfaces that clients arrive by, or leave it out",
        );
    }
    Ok(())
}

fn check_inside_address(config: &Config) -> Verdict {
    let address = config.inside.address;
    let remedy = "leave it out: the default (192.0.0.8) is reserved for this";
    if let Some(what) = not_hosts(Prefix::host(address)) {
        return refused(format!("{address} is among {what}"), remedy);
    }
    if let Some(prefix) = client_prefix(config, address) {
        return refused(format!("{address} is among the clients ({prefix})"), remedy);
    }
    if config.outside.addresses.contains(&address) {
        return refused(format!("{address} is an outside address too"), remedy);
    }
    Ok(())
}

fn check_mark(config: &Config) -> Verdict {
    let (mark, mask) = (config.inside.mark, config.inside.mark_mask);
    if mark & !mask != 0 {
        return refused(
            format!("{mark:#010x} has bits outside inside.mark_mask {mask:#010x}, so the rule would match nothing"),
            "choose a mark within the mask",
        );
    }
    Ok(())
}

fn check_table(config: &Config) -> Verdict {
    let table = config.inside.table;
    if KERNEL_TABLES.contains(&table) {
        return refused(
            format!("{table} is one of the kernel's own tables"),
            "choose a number that `ip route show table N` shows empty",
        );
    }
    Ok(())
}

fn check_outside(config: &Config) -> Verdict {
    let addresses = &config.outside.addresses;
    if addresses.len() > ADDRESSES_MAX {
        return refused(format!("{} addresses", addresses.len()), format!("at most {ADDRESSES_MAX}"));
    }
    for (index, address) in addresses.iter().enumerate() {
        let remedy = "give an address of this host's that the internet answers to";
        if let Some(what) = not_hosts(Prefix::host(*address)) {
            return refused(format!("{address} is among {what}"), remedy);
        }
        if let Some(prefix) = client_prefix(config, *address) {
            return refused(format!("{address} is among the clients ({prefix})"), remedy);
        }
        if addresses[..index].contains(address) {
            return refused(format!("{address} is named twice"), "name each address once");
        }
    }
    Ok(())
}

/// An ident that is handed on while an echo of its last owner can still be answered would deliver that answer to the
/// wrong client. The exact limit depends on the table of outstanding echoes, which makes the last check itself.
fn check_hold_down(config: &Config) -> Verdict {
    let least = config.echo.timeout + 2 * BATCH_TIME_MAX;
    match config.mapping.hold_down {
        Some(hold_down) if hold_down <= least => {
            let [hold_down, timeout] = [hold_down, config.echo.timeout].map(humantime::format_duration);
            refused(
                format!(
                    "{hold_down} is not safely longer than echo.timeout ({timeout}): a late reply could reach the next \
                     client that gets the ident"
                ),
                "leave it out for the shortest that is safe",
            )
        }
        _ => Ok(()),
    }
}

/// Each worker must have some of what is left, whatever their number.
fn check_reserved_idents(config: &Config) -> Verdict {
    let reserved = |ident: u16| config.mapping.reserved_idents.iter().any(|range| range.0.contains(&ident));
    let left = (0..=u16::MAX).filter(|ident| !reserved(*ident)).count();
    if left < IDENTS_MIN {
        return refused(format!("{left} idents are left for mappings"), format!("leave {IDENTS_MIN} at least"));
    }
    Ok(())
}

fn check_table_words(config: &Config) -> Verdict {
    let words = config.echo.table_words;
    if !words.is_power_of_two() {
        let below = 1_u32 << words.ilog2();
        return refused(format!("{words} is not a power of two"), format!("{below} or {}", u64::from(below) * 2));
    }
    Ok(())
}

fn check_deny(config: &Config) -> Verdict {
    check_list(&config.remotes.deny)
}

fn check_allow(config: &Config) -> Verdict {
    let allow = &config.remotes.allow;
    let within = |prefix: &&Prefix| remotes::NEVER.iter().any(|never| never.covers(**prefix));
    if let Some(prefix) = allow.iter().find(within) {
        return refused(format!("{prefix} cannot be pinged by anybody"), "leave it out");
    }
    check_list(allow)
}

fn check_list(list: &[Prefix]) -> Verdict {
    if list.len() > remotes::LIST_MAX {
        return refused(
            format!("{} prefixes", list.len()),
            format!("at most {}: join neighbours into shorter prefixes", remotes::LIST_MAX),
        );
    }
    Ok(())
}

/// What in `prefix` can be nobody's address, if anything.
fn not_hosts(prefix: Prefix) -> Option<&'static str> {
    NOT_HOSTS.iter().find_map(|(address, length, what)| {
        Prefix::new(*address, *length).is_ok_and(|range| range.overlaps(prefix)).then_some(*what)
    })
}

fn client_prefix(config: &Config, address: Ipv4Addr) -> Option<Prefix> {
    config.inside.clients.iter().copied().find(|prefix| prefix.contains(address))
}
