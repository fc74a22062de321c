//! The list of everything that can be configured.

use super::key::{Key, KeyDefault, Kind};
use crate::table::SHARDS;
use crate::table::echoes::WORDS_LOG2;

/// The most workers: one with no shard would receive nothing.
const WORKERS_MAX: u32 = 64;
const _: () = assert!(WORKERS_MAX as usize == SHARDS, "one worker a shard");

/// A second: whoever wants more wants a core for good, and gets that with less.
const BUSY_POLL_US_MAX: u32 = 1_000_000;

/// A day: longer than any session that pings, short enough for every clock in the tables.
const DAY_S: u64 = 86_400;

/// Every key, in the order of the documentation.
pub static KEYS: &[Key] = &[
    Key {
        table: "inside",
        name: "clients",
        flag: Some("clients"),
        meaning: "Prefixes that clients' addresses come from. Echo requests from elsewhere are not proxied, nor are \
                  those to an address among the clients",
        default: KeyDefault::Required,
        kind: Kind::Prefixes(|config| &mut config.inside.clients),
    },
    Key {
        table: "inside",
        name: "divert",
        flag: Some("divert"),
        meaning: "Interfaces that clients arrive by. Their echo requests to outside are led into the TUN device (undone \
                  at exit); everything else they send stays on its path. \
                  Leave it out to lead packets into the device yourself",
        default: KeyDefault::Computed("none"),
        kind: Kind::Names(|config| &mut config.inside.divert),
    },
    Key {
        table: "inside",
        name: "divert_by",
        flag: Some("divert-by"),
        meaning: "How `divert` does it: route (a mark, a rule and a route, by way of the host's firewall) or ingress (from the \
                  clients' interfaces straight into the TUN device: cheaper, but no chain of the host's firewall at prerouting and \
                  forward sees a diverted request)",
        default: KeyDefault::Value("route"),
        kind: Kind::DivertBy(|config| &mut config.inside.divert_by),
    },
    Key {
        table: "inside",
        name: "device",
        flag: Some("device"),
        meaning: "Name of the TUN device that the gateway makes",
        default: KeyDefault::Value("echogate0"),
        kind: Kind::Name(|config| &mut config.inside.device),
    },
    Key {
        table: "inside",
        name: "address",
        flag: None,
        meaning: "The TUN device's own address (a /32). It needs one for reverse path filtering to let packets in; \
                  nobody talks to it, and the default is the address reserved for that (RFC 7600)",
        default: KeyDefault::Value("192.0.0.8"),
        kind: Kind::Address(|config| &mut config.inside.address),
    },
    Key {
        table: "inside",
        name: "mtu",
        flag: None,
        meaning: "The TUN device's MTU: as large as the largest of the clients' interfaces",
        default: KeyDefault::Value("1500"),
        kind: Kind::Integer { min: 576, max: 65_535, unit: "bytes", field: |config| &mut config.inside.mtu },
    },
    Key {
        table: "inside",
        name: "queue_length",
        flag: None,
        meaning: "How many packets wait in the TUN device for a busy worker; more are dropped by the kernel",
        default: KeyDefault::Value("10000"),
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
            unit: "packets",
            field: |config| &mut config.inside.queue_length,
        },
    },
    Key {
        table: "inside",
        name: "mark",
        flag: None,
        meaning: "Firewall mark of diverted packets, within `mark_mask`. Change it where another program uses the bits",
        default: KeyDefault::Value("0x0ec00000"),
        kind: Kind::Integer { min: 1, max: u32::MAX, unit: "", field: |config| &mut config.inside.mark },
    },
    Key {
        table: "inside",
        name: "mark_mask",
        flag: None,
        meaning: "The bits of the firewall mark that are Echogate's; the others are left as they are",
        default: KeyDefault::Value("0x0ff00000"),
        kind: Kind::Integer { min: 1, max: u32::MAX, unit: "", field: |config| &mut config.inside.mark_mask },
    },
    Key {
        table: "inside",
        name: "table",
        flag: None,
        meaning: "Routing table that leads diverted packets to the TUN device. Must be otherwise empty",
        default: KeyDefault::Value("3776"),
        kind: Kind::Integer { min: 1, max: u32::MAX, unit: "", field: |config| &mut config.inside.table },
    },
    Key {
        table: "inside",
        name: "rule_priority",
        flag: None,
        meaning: "Priority of the rule that sends marked packets to `table`: after the local table (0), before the \
                  main one (32766), and before a VPN's own rules",
        default: KeyDefault::Value("3776"),
        kind: Kind::Integer { min: 1, max: 32_765, unit: "", field: |config| &mut config.inside.rule_priority },
    },
    Key {
        table: "outside",
        name: "addresses",
        flag: Some("outside"),
        meaning: "Addresses that proxied requests leave with; each must be local, and each carries up to 65,536 \
                  mappings",
        default: KeyDefault::Computed("the source address of the default route"),
        kind: Kind::Addresses(|config| &mut config.outside.addresses),
    },
    Key {
        table: "outside",
        name: "devices",
        flag: Some("outside-device"),
        meaning: "Interfaces that lead to the internet. With `divert`, only requests that the host routes out of one of them \
                  are taken; pings to networks behind other interfaces stay on the kernel's path, and under its firewall",
        default: KeyDefault::Computed("every interface"),
        kind: Kind::Names(|config| &mut config.outside.devices),
    },
    Key {
        table: "run",
        name: "workers",
        flag: Some("workers"),
        meaning: "Number of workers, each a thread on a core of its own. More than cores, or than four, seldom gains",
        default: KeyDefault::Computed("the usable cores, at most 4"),
        kind: Kind::Integer { min: 1, max: WORKERS_MAX, unit: "threads", field: |config| &mut config.run.workers },
    },
    Key {
        table: "run",
        name: "io",
        flag: Some("io"),
        meaning: "How packets are moved: uring (io_uring), syscalls (poll, read, write, recvmmsg, sendmmsg), or auto: \
                  io_uring, and system calls with one warning where the kernel refuses it",
        default: KeyDefault::Value("auto"),
        kind: Kind::Backend(|config| &mut config.run.io),
    },
    Key {
        table: "run",
        name: "fall_through",
        flag: Some("fall-through"),
        meaning: "What happens to packets that reach the TUN device and are not proxied: reinject (they go on along \
                  the kernel's path, unchanged) or drop. With `divert` alone hardly any do",
        default: KeyDefault::Value("reinject"),
        kind: Kind::FallThrough(|config| &mut config.run.fall_through),
    },
    Key {
        table: "run",
        name: "sandbox",
        flag: None,
        meaning: "Whether the process that moves the packets gives up its capabilities, the file system and the system calls that \
                  moving packets does not take. Off (or `--no-sandbox`) is for a debugger, a profiler or a kernel without seccomp: \
                  then who gets into that process by a packet has the gateway's capabilities",
        default: KeyDefault::Value("on"),
        kind: Kind::Switch(|config| &mut config.run.sandbox),
    },
    Key {
        table: "run",
        name: "busy_poll_us",
        flag: Some("busy-poll-us"),
        meaning: "How long a worker looks for the next packet, again and again, before it sleeps. Spares a ping the time \
                  that waking up takes, if packets come more often than this, and costs up to a whole core a worker",
        default: KeyDefault::Value("0"),
        kind: Kind::Integer {
            min: 0,
            max: BUSY_POLL_US_MAX,
            unit: "microseconds",
            field: |config| &mut config.run.busy_poll_us,
        },
    },
    Key {
        table: "mapping",
        name: "idle",
        flag: Some("mapping-idle"),
        meaning: "A mapping (a client's ident and the gateway's ident for it) expires when unused for this long. RFC \
                  5508 asks for 60s or more",
        default: KeyDefault::Value("60s"),
        kind: Kind::Duration { min_s: 1, max_s: DAY_S, field: |config| &mut config.mapping.idle },
    },
    Key {
        table: "mapping",
        name: "hold_down",
        flag: None,
        meaning: "How long an expired mapping's ident rests before anyone gets it again. Longer than `echo.timeout`, \
                  or a late reply could meet a new owner. RFC 6888 (REQ-8) would have 120s; each address can make \
                  65,536 / (idle + hold_down) new mappings a second",
        default: KeyDefault::Computed("the shortest that is safe"),
        kind: Kind::OptionalDuration { min_s: 1, max_s: DAY_S, field: |config| &mut config.mapping.hold_down },
    },
    Key {
        table: "mapping",
        name: "preserve_idents",
        flag: None,
        meaning: "Whether a mapping gets the client's own ident where that is free, instead of a random one, which is hard to \
                  guess (RFC 6888, REQ-15)",
        default: KeyDefault::Value("off"),
        kind: Kind::Switch(|config| &mut config.mapping.preserve_idents),
    },
    Key {
        table: "mapping",
        name: "reserved_idents",
        flag: None,
        meaning: "Idents that no mapping gets: those that programs on the gateway's host ping under. A reply to one of theirs \
                  is theirs alone then",
        default: KeyDefault::Computed("none"),
        kind: Kind::IdentRanges(|config| &mut config.mapping.reserved_idents),
    },
    Key {
        table: "echo",
        name: "timeout",
        flag: Some("echo-timeout"),
        meaning: "A reply later than this after its request is not delivered",
        default: KeyDefault::Value("60s"),
        kind: Kind::Duration { min_s: 1, max_s: 600, field: |config| &mut config.echo.timeout },
    },
    Key {
        table: "echo",
        name: "icmp_errors",
        flag: Some("icmp-errors"),
        meaning: "Whether ICMP errors about proxied echoes (time exceeded, unreachable, parameter problem) are brought to \
                  the clients. Without them traceroute shows no routers and path MTU discovery by ping finds nothing",
        default: KeyDefault::Value("on"),
        kind: Kind::Switch(|config| &mut config.echo.icmp_errors),
    },
    Key {
        table: "echo",
        name: "quoted_checksum",
        flag: None,
        meaning: "Whether an ICMP error is dropped if the IP header that it quotes has a wrong checksum, as RFC 5508 \
                  (REQ-3a) would have it. Some routers change the TTL and quote the header with its old checksum: with on \
                  they vanish from traceroute",
        default: KeyDefault::Value("off"),
        kind: Kind::Switch(|config| &mut config.echo.quoted_checksum),
    },
    Key {
        table: "echo",
        name: "table_words",
        flag: None,
        meaning: "Size of the table of outstanding echoes, a power of two: 8 bytes a word, one word an echo. When it \
                  is full the oldest is given up, and counted",
        default: KeyDefault::Value("1048576"),
        kind: Kind::Integer {
            min: 1 << *WORDS_LOG2.start(),
            max: 1 << *WORDS_LOG2.end(),
            unit: "words",
            field: |config| &mut config.echo.table_words,
        },
    },
    Key {
        table: "remotes",
        name: "deny",
        flag: Some("deny"),
        meaning: "Prefixes that clients may not ping, besides those that nobody can (this network, loopback, link-local, \
                  multicast, reserved, broadcast). The client is told now and then (unreachable, code 13)",
        default: KeyDefault::Computed("none"),
        kind: Kind::Prefixes(|config| &mut config.remotes.deny),
    },
    Key {
        table: "remotes",
        name: "allow",
        flag: Some("allow"),
        meaning: "Prefixes that clients may ping in spite of `deny`: the longest prefix of both lists decides. With \
                  `deny` 0.0.0.0/0 these are all",
        default: KeyDefault::Computed("none"),
        kind: Kind::Prefixes(|config| &mut config.remotes.allow),
    },
    Key {
        table: "remotes",
        name: "own",
        flag: None,
        meaning: "Whether requests to the gateway's own outside addresses go back to the kernel, which answers them, or are \
                  dropped (`remote_own`). Of interest only to who leads packets into the device without `divert`, which \
                  leaves such requests on the kernel's path",
        default: KeyDefault::Value("off"),
        kind: Kind::Switch(|config| &mut config.remotes.own),
    },
    Key {
        table: "limits",
        name: "enforce",
        flag: Some("limits"),
        meaning: "Whether each client is held to its share (the other keys of this table). What is over it is dropped, \
                  and the client is told now and then (unreachable, code 13)",
        default: KeyDefault::Value("on"),
        kind: Kind::Switch(|config| &mut config.limits.enforce),
    },
    Key {
        table: "limits",
        name: "packets_per_second",
        flag: None,
        meaning: "Echo requests that a client may send in the long run; 0 is no limit",
        default: KeyDefault::Value("1000"),
        kind: Kind::Integer {
            min: 0,
            max: u32::MAX,
            unit: "a second",
            field: |config| &mut config.limits.everybody.packets_per_second,
        },
    },
    Key {
        table: "limits",
        name: "packets_burst",
        flag: None,
        meaning: "Echo requests that a client may send at once",
        default: KeyDefault::Value("2000"),
        kind: Kind::Integer {
            min: 0,
            max: u32::MAX,
            unit: "packets",
            field: |config| &mut config.limits.everybody.packets_burst,
        },
    },
    Key {
        table: "limits",
        name: "bytes_per_second",
        flag: None,
        meaning: "Bytes of echo requests, IP header included, that a client may send in the long run; 0 is no limit",
        default: KeyDefault::Value("1000000"),
        kind: Kind::Integer {
            min: 0,
            max: u32::MAX,
            unit: "bytes a second",
            field: |config| &mut config.limits.everybody.bytes_per_second,
        },
    },
    Key {
        table: "limits",
        name: "bytes_burst",
        flag: None,
        meaning: "Bytes of echo requests that a client may send at once",
        default: KeyDefault::Value("4000000"),
        kind: Kind::Integer {
            min: 0,
            max: u32::MAX,
            unit: "bytes",
            field: |config| &mut config.limits.everybody.bytes_burst,
        },
    },
    Key {
        table: "limits",
        name: "mappings_per_second",
        flag: None,
        meaning: "New mappings (each ping that is started is one) that a client may make in the long run; 0 is no limit",
        default: KeyDefault::Value("20"),
        kind: Kind::Integer {
            min: 0,
            max: u32::MAX,
            unit: "a second",
            field: |config| &mut config.limits.everybody.mappings_per_second,
        },
    },
    Key {
        table: "limits",
        name: "mappings_burst",
        flag: None,
        meaning: "New mappings that a client may make at once",
        default: KeyDefault::Value("200"),
        kind: Kind::Integer {
            min: 0,
            max: u32::MAX,
            unit: "mappings",
            field: |config| &mut config.limits.everybody.mappings_burst,
        },
    },
    Key {
        table: "limits",
        name: "mappings",
        flag: None,
        meaning: "Mappings that a client may have at once; 0 is no limit",
        default: KeyDefault::Value("256"),
        kind: Kind::Integer {
            min: 0,
            max: u32::MAX,
            unit: "mappings",
            field: |config| &mut config.limits.everybody.mappings,
        },
    },
    Key {
        table: "limits",
        name: "overrides",
        flag: None,
        meaning: "Prefixes whose clients have other limits; what is not named is as for everybody, and of overlapping \
                  prefixes the longest decides",
        default: KeyDefault::Computed("none"),
        kind: Kind::Exceptions(|config| &mut config.limits.overrides),
    },
    Key {
        table: "observe",
        name: "control",
        flag: Some("control"),
        meaning: "Path of the control socket, which `stats`, `top` and their like talk to. Whoever may open it (mode 0600: \
                  the gateway's user and root) may look at everything",
        default: KeyDefault::Computed("DEVICE.sock in $RUNTIME_DIRECTORY, else in /run/echogate"),
        kind: Kind::ControlSocket(|config| &mut config.observe.control),
    },
    Key {
        table: "observe",
        name: "metrics",
        flag: Some("metrics"),
        meaning: "Address and port at which /metrics (for Prometheus) and /healthz are served, to whoever reaches it: it has \
                  neither encryption nor passwords",
        default: KeyDefault::Value("none"),
        kind: Kind::Listen(|config| &mut config.observe.metrics),
    },
    Key {
        table: "observe",
        name: "log",
        flag: None,
        meaning: "What is logged, unless `--log` says it. No level logs single packets",
        default: KeyDefault::Computed("what $RUST_LOG says, or info"),
        kind: Kind::LogFilter(|config| &mut config.observe.log),
    },
    Key {
        table: "observe",
        name: "log_format",
        flag: None,
        meaning: "How log lines look, unless `--log-format` says it: human (for the journal where that reads), or json, an object a line",
        default: KeyDefault::Value("human"),
        kind: Kind::LogFormat(|config| &mut config.observe.log_format),
    },
];
