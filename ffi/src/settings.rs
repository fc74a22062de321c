//! What a proxy is made from, as a struct that can grow: it begins with its size.

use std::net::Ipv4Addr;
use std::time::Duration;

use echogate::policy::{Limits, ORDINARY, Prefix};
use echogate::proxy::{Settings, Ttl};

use crate::pointers;
use crate::status::EchogateStatus;
use std::ffi::c_char;

/// What a proxy is made from. Let echogate_settings_init fill it, then set at least `clients` and `addresses`.
///
/// Lists are texts with commas between ("10.66.0.0/24, 10.67.0.0/24"), NULL for an empty one; they are read during
/// echogate_proxy_new only.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EchogateSettings {
    /// sizeof(EchogateSettings), set by echogate_settings_init. Later versions of the struct are longer: a field that the
    /// caller's does not have keeps its default.
    pub size: usize,
    /// The prefixes that clients come from.
    pub clients: *const c_char,
    /// The gateway's addresses outside, 1 to 16, in the order of their numbers.
    pub addresses: *const c_char,
    /// Prefixes that nobody may ping, besides those that nobody can.
    pub denied: *const c_char,
    /// Prefixes that may be pinged in spite of `denied`: the longest prefix of both decides.
    pub allowed: *const c_char,
    /// A mapping (a client's ident and the gateway's ident for it) ends when unused for so many milliseconds; 60,000.
    pub mapping_idle_ms: u64,
    /// How many milliseconds a reply is waited for; 60,000.
    pub echo_timeout_ms: u64,
    /// How many milliseconds an ident rests after its mapping; 0, the default, for the shortest that is safe.
    pub hold_down_ms: u64,
    /// Words of 8 bytes of the table of outstanding echoes, as a power of two: 14 to 26; 20.
    pub echo_words_log2: u32,
    /// The largest packet, in bytes, that reaches a client unfragmented: the tunnel's MTU; 1500.
    pub inside_mtu: u32,
    /// Threads that will take a handle, 1 to 64; 1. Those that only receive (echogate_receiver_new) do not count.
    pub workers: u32,
    /// Echo requests that a client may send in a second, in the long run; 1000. As for each limit, 0 is none.
    pub packets_per_second: u32,
    /// Echo requests that a client may send at once; 2000.
    pub packets_burst: u32,
    /// Bytes of echo requests, IP header included, in a second; 1,000,000.
    pub bytes_per_second: u32,
    /// Bytes of echo requests at once; 4,000,000.
    pub bytes_burst: u32,
    /// New mappings in a second, in the long run (each ping that is started is one); 20.
    pub mappings_per_second: u32,
    /// New mappings at once; 200.
    pub mappings_burst: u32,
    /// Mappings that a client may have at once; 256.
    pub mappings: u32,
    /// Whether Echogate takes one from the TTL of what it forwards and delivers: 1, the default, where the server takes packets
    /// out of its own tunnel; 0 where the kernel has routed them to it.
    pub decrement_ttl: u8,
    /// Whether errors about proxied echoes are brought to the clients (traceroute, path MTU); 1.
    pub icmp_errors: u8,
    /// Whether requests to the gateway's own addresses fall through, or are dropped; 0.
    pub pass_own: u8,
    /// Whether an error is dropped if the checksum of the IP header that it quotes is wrong (RFC 5508 REQ-3a); 0.
    pub quoted_checksum: u8,
    /// 0.
    pub reserved: [u8; 4],
}

/// The size of the struct's first version, which all later ones begin with.
const SIZE_MIN: usize = size_of::<EchogateSettings>();

impl EchogateSettings {
    /// What the Rust library's defaults say, but for the hop, which a server that embeds the proxy is.
    fn defaults() -> EchogateSettings {
        let defaults = Settings::new(Vec::new(), Vec::new());
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        EchogateSettings {
            size: size_of::<EchogateSettings>(),
            clients: std::ptr::null(),
            addresses: std::ptr::null(),
            denied: std::ptr::null(),
            allowed: std::ptr::null(),
            mapping_idle_ms: millis(defaults.mapping_idle),
            echo_timeout_ms: millis(defaults.echo_timeout),
            hold_down_ms: defaults.hold_down.map_or(0, millis),
            echo_words_log2: defaults.echo_words_log2,
            inside_mtu: u32::try_from(defaults.inside_mtu).unwrap_or(u32::MAX),
            workers: u32::try_from(defaults.workers).unwrap_or(u32::MAX),
            packets_per_second: ORDINARY.packets_per_second,
            packets_burst: ORDINARY.packets_burst,
            bytes_per_second: ORDINARY.bytes_per_second,
            bytes_burst: ORDINARY.bytes_burst,
            mappings_per_second: ORDINARY.mappings_per_second,
            mappings_burst: ORDINARY.mappings_burst,
            mappings: ORDINARY.mappings,
            decrement_ttl: 1,
            icmp_errors: defaults.icmp_errors.into(),
            pass_own: defaults.pass_own.into(),
            quoted_checksum: defaults.quoted_checksum.into(),
            reserved: [0; 4],
        }
    }

    /// The settings at `settings`, of whatever version of the struct.
    ///
    /// # Safety
    /// `settings` is NULL, or points to a struct that begins with its size and is as long.
    pub(crate) unsafe fn read(settings: *const EchogateSettings) -> Result<EchogateSettings, EchogateStatus> {
        pointers::check_value(settings)?;
        // SAFETY: the struct begins with it.
        let size = unsafe { settings.cast::<usize>().read() };
        if size < SIZE_MIN {
            return Err(EchogateStatus::Size);
        }
        // A longer one is a later version's: what it has beyond must be unset, or it would be ignored in silence.
        let beyond = size - size_of::<EchogateSettings>();
        // SAFETY: within the struct by its own size, if the size is sane; the slice checks that no packet is as long.
        let beyond = unsafe { pointers::bytes(settings.wrapping_add(1).cast(), beyond) };
        if beyond.map_err(|_| EchogateStatus::Size)?.iter().any(|byte| *byte != 0) {
            return Err(EchogateStatus::Unsupported);
        }
        // SAFETY: at least as long as ours.
        let settings = unsafe { pointers::get(settings) }?;
        let flags = [settings.decrement_ttl, settings.icmp_errors, settings.pass_own, settings.quoted_checksum];
        if settings.reserved != [0; 4] || flags.iter().any(|flag| *flag > 1) {
            return Err(EchogateStatus::Unsupported);
        }
        Ok(settings)
    }

    /// As the proxy takes them. The error says in words which text is wrong.
    ///
    /// # Safety
    /// The texts are NULL, or end with a NUL.
    pub(crate) unsafe fn parse(&self) -> Result<Settings, String> {
        // SAFETY: the caller's contract.
        let clients = unsafe { pointers::text(self.clients) };
        // SAFETY: as above.
        let addresses = unsafe { pointers::text(self.addresses) };
        // SAFETY: as above.
        let denied = unsafe { pointers::text(self.denied) };
        // SAFETY: as above.
        let allowed = unsafe { pointers::text(self.allowed) };
        let clients = prefixes("clients", clients)?;
        if clients.is_empty() {
            return Err("no clients: set the prefixes that they come from".to_owned());
        }
        let addresses = list("addresses", addresses, |text| {
            text.parse::<Ipv4Addr>().map_err(|_| format!("{text:?} is not an IPv4 address such as 198.51.100.1"))
        })?;
        let limits = Limits {
            packets_per_second: self.packets_per_second,
            packets_burst: self.packets_burst,
            bytes_per_second: self.bytes_per_second,
            bytes_burst: self.bytes_burst,
            mappings_per_second: self.mappings_per_second,
            mappings_burst: self.mappings_burst,
            mappings: self.mappings,
        };
        Ok(Settings {
            mapping_idle: Duration::from_millis(self.mapping_idle_ms),
            echo_timeout: Duration::from_millis(self.echo_timeout_ms),
            hold_down: (self.hold_down_ms != 0).then(|| Duration::from_millis(self.hold_down_ms)),
            echo_words_log2: self.echo_words_log2,
            inside_mtu: usize::try_from(self.inside_mtu).unwrap_or(usize::MAX),
            icmp_errors: self.icmp_errors == 1,
            quoted_checksum: self.quoted_checksum == 1,
            ttl: if self.decrement_ttl == 1 { Ttl::Decrement } else { Ttl::AlreadyDecremented },
            denied: prefixes("denied", denied)?,
            allowed: prefixes("allowed", allowed)?,
            pass_own: self.pass_own == 1,
            allowance: limits.into(),
            workers: usize::try_from(self.workers).unwrap_or(usize::MAX),
            ..Settings::new(clients, addresses)
        })
    }
}

fn prefixes(name: &str, text: Result<String, String>) -> Result<Vec<Prefix>, String> {
    list(name, text, |text| text.parse::<Prefix>().map_err(|error| error.to_string()))
}

fn list<T>(
    name: &str,
    text: Result<String, String>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let of = |error: String| format!("{name}: {error}");
    let text = text.map_err(of)?;
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(|item| parse(item).map_err(of)).collect()
}

/// Fills the settings with the defaults. `size` is sizeof(EchogateSettings).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_settings_init(settings: *mut EchogateSettings, size: usize) -> EchogateStatus {
    crate::guarded(|| {
        if size != size_of::<EchogateSettings>() {
            return Err(EchogateStatus::Size);
        }
        // SAFETY: the caller gives the size of what the pointer points to, and it is ours.
        unsafe { pointers::put(settings, EchogateSettings::defaults()) }
    })
}
