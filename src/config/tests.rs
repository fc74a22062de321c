//! Tables of good and bad inputs, with the exact words of the errors.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::key::Kind;
use super::{Config, ControlSocket, KEYS, Key, KeyDefault, LogFormat, Observe};
use crate::io::{Backend, FallThrough};

/// The least that is valid.
const CLIENTS: &str = "[inside]\nclients = [\"10.66.0.0/24\"]\n";

fn flags(given: &[(&str, &str)]) -> Vec<(&'static Key, String)> {
    given.iter().map(|(flag, value)| (key_of(flag), (*value).to_owned())).collect()
}

fn key_of(flag: &str) -> &'static Key {
    Key::of_flag(flag).expect("a flag of the list")
}

fn good(text: &str, given: &[(&str, &str)]) -> Config {
    Config::parse(text, "e.toml", &flags(given)).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn bad(text: &str, given: &[(&str, &str)]) -> String {
    match Config::parse(text, "e.toml", &flags(given)) {
        Ok(config) => panic!("accepted: {text} {given:?}: {config:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_defaults_are_what_the_list_says() {
    let defaults = Config::default();
    for key in KEYS {
        if let KeyDefault::Value(text) = key.default {
            let quote = if matches!(key.kind, Kind::Integer { .. }) { "" } else { "\"" };
            let text = format!("[{}]\n{} = {quote}{text}{quote}\n", key.table, key.name);
            let mut config = good(&text, &[("clients", "10.66.0.0/24")]);
            config.inside.clients.clear();
            assert_eq!(config, defaults, "{key:?}");
        }
    }
    assert!((1..=4).contains(&defaults.run.workers));
}

#[test]
fn every_key_of_a_file_arrives() {
    let config = good(
        r#"
        [inside]
        device = "echo7"
        clients = ["10.66.0.0/24", "10.67.0.9"]
        divert = ["g0", "wg1"]
        address = "192.0.2.7"
        mtu = 1420
        queue_length = 5_000
        mark = 0x00100000
        mark_mask = 0x00f00000
        table = 77
        rule_priority = 78
        [outside]
        addresses = ["198.18.0.1", "198.18.0.2"]
        [run]
        workers = 3
        io = "syscalls"
        fall_through = "drop"
        busy_poll_us = 50
        [mapping]
        idle = "90s"
        hold_down = "2m"
        [echo]
        timeout = "1m 30s"
        table_words = 16_384
        "#,
        &[],
    );
    assert_eq!(config.inside.device, "echo7");
    assert_eq!(
        config.inside.clients.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.66.0.0/24", "10.67.0.9/32"]
    );
    assert_eq!(config.inside.divert, ["g0", "wg1"]);
    assert_eq!(config.inside.address, Ipv4Addr::new(192, 0, 2, 7));
    assert_eq!((config.inside.mtu, config.inside.queue_length), (1420, 5000));
    assert_eq!((config.inside.mark, config.inside.mark_mask), (0x10_0000, 0xf0_0000));
    assert_eq!((config.inside.table, config.inside.rule_priority), (77, 78));
    assert_eq!(config.outside.addresses, [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)]);
    assert_eq!((config.run.workers, config.run.io, config.run.fall_through), (3, Backend::Syscalls, FallThrough::Drop));
    assert_eq!(config.run.busy_poll_us, 50);
    assert_eq!(
        (config.mapping.idle, config.mapping.hold_down),
        (Duration::from_secs(90), Some(Duration::from_secs(120)))
    );
    assert_eq!((config.echo.timeout, config.echo.table_words), (Duration::from_secs(90), 16_384));
    assert!(config.warnings().is_empty());
}

#[test]
fn flags_win_and_replace_lists() {
    let text = format!("{CLIENTS}divert = [\"g0\"]\n[run]\nworkers = 2\nio = \"syscalls\"\n");
    let config = good(
        &text,
        &[("clients", "10.1.0.0/16"), ("workers", "7"), ("clients", "10.2.0.0/16"), ("echo-timeout", "5s")],
    );
    assert_eq!(
        config.inside.clients.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.1.0.0/16", "10.2.0.0/16"]
    );
    assert_eq!((config.run.workers, config.run.io), (7, Backend::Syscalls));
    assert_eq!(config.inside.divert, ["g0"]);
    assert_eq!((config.echo.timeout, config.mapping.hold_down), (Duration::from_secs(5), None));
}

#[test]
fn a_short_idle_time_is_a_warning() {
    let config = good(CLIENTS, &[("mapping-idle", "59s")]);
    assert_eq!(
        config.warnings(),
        [
            "mapping.idle is 59s: RFC 5508 (REQ-2) asks for at least 60s, or a client that pings rarely changes its ident \
          between two pings"
        ]
    );
}

#[test]
fn bad_files_say_where_what_and_what_is_allowed() {
    let table = [
        // Not TOML.
        ("[inside\n", "e.toml:1: not TOML: unclosed table, expected `]`"),
        ("\n\nclients = [1,,2]", "e.toml:3: not TOML: extra comma in array, expected value"),
        ("[run]\nio = \"auto\"\nio = \"auto\"\n", "e.toml:3: not TOML: duplicate key"),
        // Unknown names.
        (
            "[inside]\nmtu = 1500\nclinets = []\n",
            "e.toml:3: inside.clinets: there is no such key\n  remedy: the nearest key is inside.clients",
        ),
        (
            "[run]\nfall-through = \"drop\"\n",
            "e.toml:2: run.fall-through: there is no such key\n  remedy: the nearest key is run.fall_through",
        ),
        (
            "[run]\nzebra = 1\n",
            "e.toml:2: run.zebra: there is no such key\n  remedy: the keys of [run] are workers, io, fall_through, sandbox, busy_poll_us",
        ),
        ("[run]\nidle = \"60s\"\n", "e.toml:2: run.idle: there is no such key\n  remedy: idle belongs under [mapping]"),
        ("[insde]\n", "e.toml:1: insde: there is no such table\n  remedy: the nearest table is [inside]"),
        (
            "[zebra]\n",
            "e.toml:1: zebra: there is no such table\n  remedy: the tables are inside, outside, run, mapping, echo, remotes, limits, observe",
        ),
        ("workers = 1\n", "e.toml:1: workers: stands outside its table\n  remedy: put it under [run]"),
        ("run = 1\n", "e.toml:1: run: there is no such key\n  remedy: the nearest table is [run]"),
        // Two mistakes: the first in the file is told.
        (
            "[run]\nzz = 1\n[echo]\naa = 1\n",
            "e.toml:2: run.zz: there is no such key\n  remedy: the keys of [run] are workers, io, fall_through, sandbox, busy_poll_us",
        ),
        // Wrong types.
        (
            "[inside]\nclients = \"10.0.0.0/8\"\n",
            "e.toml:2: inside.clients: the string \"10.0.0.0/8\" where a list belongs\n  remedy: clients = [...], with IPv4 prefixes such as 10.66.0.0/24",
        ),
        (
            "[inside]\nclients = [\n  \"10.0.0.0/8\",\n  7,\n]\n",
            "e.toml:4: inside.clients: the number 7 where a string belongs\n  remedy: allowed: IPv4 prefixes such as 10.66.0.0/24",
        ),
        (
            "[inside]\nmtu = \"1500\"\n",
            "e.toml:2: inside.mtu: the string \"1500\" where a number belongs\n  remedy: allowed: 576 to 65535 bytes",
        ),
        (
            "[inside]\nmtu = 1.5\n",
            "e.toml:2: inside.mtu: a number with a fraction where a number belongs\n  remedy: allowed: 576 to 65535 bytes",
        ),
        (
            "[inside]\ndevice = [\"a\"]\n",
            "e.toml:2: inside.device: a list where a string belongs\n  remedy: allowed: 1 to 15 letters, digits, '_', '.' and '-'",
        ),
        (
            "[echo]\ntimeout = 60\n",
            "e.toml:2: echo.timeout: 60 has no unit; write it as \"60s\" if seconds are meant\n  remedy: allowed: 1s to 10m, with its unit, as in \"90s\" or \"5m\"",
        ),
        // Wrong values.
        ("[inside]\nmtu = -1\n", "e.toml:2: inside.mtu: -1 is out of range\n  remedy: allowed: 576 to 65535 bytes"),
        (
            "[inside]\nmtu = 0x1_0000_0000\n",
            "e.toml:2: inside.mtu: 0x100000000 is out of range\n  remedy: allowed: 576 to 65535 bytes",
        ),
        ("[inside]\nmtu = 575\n", "e.toml:2: inside.mtu: 575 is out of range\n  remedy: allowed: 576 to 65535 bytes"),
        (
            "[inside]\nclients = [\"10.66.0.1/24\"]\n",
            "e.toml:2: inside.clients: 10.66.0.1/24 has host bits set; the prefix is 10.66.0.0/24\n  remedy: allowed: IPv4 prefixes such as 10.66.0.0/24",
        ),
        (
            "[run]\nio = \"urnig\"\n",
            "e.toml:2: run.io: there is no \"urnig\"; the nearest is \"uring\"\n  remedy: allowed: auto or uring or syscalls",
        ),
        (
            "[echo]\ntimeout = \"soon\"\n",
            "e.toml:2: echo.timeout: \"soon\" is not a length of time: expected number at 0\n  remedy: allowed: 1s to 10m, with its unit, as in \"90s\" or \"5m\"",
        ),
        (
            "[echo]\ntimeout = \"11m\"\n",
            "e.toml:2: echo.timeout: 11m is out of range\n  remedy: allowed: 1s to 10m, with its unit, as in \"90s\" or \"5m\"",
        ),
        (
            "[echo]\ntable_words = 20_000\n[inside]\nclients=[\"10.66.0.0/24\"]",
            "e.toml:2: echo.table_words: 20000 is not a power of two\n  remedy: 16384 or 32768",
        ),
        (
            "[inside]\ndevice = \"abcdefghijklmnop\"\n",
            "e.toml:2: inside.device: \"abcdefghijklmnop\" has 16 bytes\n  remedy: allowed: 1 to 15 letters, digits, '_', '.' and '-'",
        ),
        (
            "[inside]\ndevice = \"a b\"\n",
            "e.toml:2: inside.device: \"a b\" is no interface name\n  remedy: allowed: 1 to 15 letters, digits, '_', '.' and '-'",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(bad(text, &[]), expected, "{text}");
    }
}

#[test]
fn absurd_clients_are_refused() {
    let absurd = "give the prefixes that the VPN hands out to its clients";
    let table: [(&[&str], String); 9] = [
        (
            &["10.66.0.0/16", "10.66.7.0/24"],
            "10.66.0.0/16 and 10.66.7.0/24 overlap\n  remedy: give each client's address in one prefix only".to_owned(),
        ),
        (
            &["10.66.0.0/16", "10.66.0.0/16"],
            "10.66.0.0/16 and 10.66.0.0/16 overlap\n  remedy: give each client's address in one prefix only".to_owned(),
        ),
        (&["0.0.0.0/0"], "0.0.0.0/0 is too large\n  remedy: a prefix of clients has a length of 8 to 32".to_owned()),
        (&["10.0.0.0/7"], "10.0.0.0/7 is too large\n  remedy: a prefix of clients has a length of 8 to 32".to_owned()),
        (&["0.0.0.0/8"], format!("0.0.0.0/8 holds \"this network\" addresses\n  remedy: {absurd}")),
        (&["127.0.0.0/24"], format!("127.0.0.0/24 holds loopback addresses\n  remedy: {absurd}")),
        (&["239.1.0.0/16"], format!("239.1.0.0/16 holds multicast addresses\n  remedy: {absurd}")),
        (&["255.0.0.0/8"], format!("255.0.0.0/8 holds the broadcast address\n  remedy: {absurd}")),
        (
            &["192.0.0.0/24"],
            "inside.address: 192.0.0.8 is among the clients (192.0.0.0/24)\n  remedy: leave it out: the default (192.0.0.8) is reserved for this".to_owned(),
        ),
    ];
    for (clients, expected) in table {
        let given: Vec<_> = clients.iter().map(|prefix| ("clients", *prefix)).collect();
        let expected = if expected.starts_with("inside") { expected } else { format!("--clients: {expected}") };
        assert_eq!(bad("", &given), expected);
    }
    assert_eq!(
        bad("", &[]),
        "inside.clients: no clients\n  remedy: name the prefixes that clients come from: --clients 10.66.0.0/24, or \
         clients = [\"10.66.0.0/24\"] under [inside]"
    );
    let many: Vec<String> = (0..65).map(|third| format!("10.66.{third}.0/24")).collect();
    let many: Vec<_> = many.iter().map(|prefix| ("clients", prefix.as_str())).collect();
    assert_eq!(bad("", &many), "--clients: 65 prefixes\n  remedy: at most 64: join neighbours into shorter prefixes");
    assert_eq!(good("", &many[..64]).inside.clients.len(), 64);
}

#[test]
fn bad_flags_name_the_flag() {
    let table: [(&[(&str, &str)], &str); 20] = [
        (&[("workers", "0")], "--workers: 0 is out of range\n  remedy: allowed: 1 to 64 threads"),
        (&[("workers", "65")], "--workers: 65 is out of range\n  remedy: allowed: 1 to 64 threads"),
        (&[("workers", "many")], "--workers: \"many\" is no such number\n  remedy: allowed: 1 to 64 threads"),
        (
            &[("workers", "99999999999")],
            "--workers: \"99999999999\" is no such number\n  remedy: allowed: 1 to 64 threads",
        ),
        (&[("io", "fast")], "--io: there is no \"fast\"\n  remedy: allowed: auto or uring or syscalls"),
        (
            &[("mapping-idle", "60")],
            "--mapping-idle: \"60\" is not a length of time: time unit needed, for example 60sec or 60ms\n  remedy: allowed: 1s to 1day, with its unit, as in \"90s\" or \"5m\"",
        ),
        (
            &[("mapping-idle", "999ms")],
            "--mapping-idle: 999ms is out of range\n  remedy: allowed: 1s to 1day, with its unit, as in \"90s\" or \"5m\"",
        ),
        (
            &[("outside", "198.18.0.256")],
            "--outside: \"198.18.0.256\" is not an IPv4 address\n  remedy: allowed: IPv4 addresses such as 192.0.2.1",
        ),
        (
            &[("outside", "10.66.0.1")],
            "--outside: 10.66.0.1 is among the clients (10.66.0.0/24)\n  remedy: give an address of this host's that the internet answers to",
        ),
        (
            &[("outside", "127.0.0.1")],
            "--outside: 127.0.0.1 is among loopback addresses\n  remedy: give an address of this host's that the internet answers to",
        ),
        (
            &[("outside", "198.18.0.1"), ("outside", "198.18.0.1")],
            "--outside: 198.18.0.1 is named twice\n  remedy: name each address once",
        ),
        (
            &[("divert", "echogate0")],
            "--divert: echogate0 is the gateway's own TUN device\n  remedy: name the interfaces that clients arrive by",
        ),
        (
            &[("outside-device", "eth0")],
            "--outside-device: without inside.divert it has no effect\n  remedy: name the interfaces that clients arrive by, or leave it out",
        ),
        (
            &[("divert", "g0"), ("outside-device", "echogate0")],
            "--outside-device: echogate0 is the gateway's own TUN device\n  remedy: name the interfaces that lead to the internet",
        ),
        (
            &[("divert", "g0"), ("outside-device", "eth0"), ("outside-device", "eth0")],
            "--outside-device: eth0 is named twice\n  remedy: name each interface once",
        ),
        (&[("allow", "224.0.0.5")], "--allow: 224.0.0.5/32 cannot be pinged by anybody\n  remedy: leave it out"),
        (&[("divert", "g0"), ("divert", "g0")], "--divert: g0 is named twice\n  remedy: name each interface once"),
        (
            &[("device", "a@b")],
            "--device: \"a@b\" cannot be part of an nftables name\n  remedy: allowed: 1 to 15 letters, digits, '_', '.' and '-'",
        ),
        (&[("divert", "g*")], "--divert: \"g*\" is no interface name\n  remedy: allowed: interface names such as g0"),
        (
            &[("device", "a/b")],
            "--device: \"a/b\" is no interface name\n  remedy: allowed: 1 to 15 letters, digits, '_', '.' and '-'",
        ),
    ];
    for (given, expected) in table {
        assert_eq!(bad(CLIENTS, given), expected);
    }
    let seventeen: Vec<String> = (1..=17).map(|last| format!("198.18.0.{last}")).collect();
    let seventeen: Vec<_> = seventeen.iter().map(|address| ("outside", address.as_str())).collect();
    assert_eq!(bad(CLIENTS, &seventeen), "--outside: 17 addresses\n  remedy: at most 16");
    assert_eq!(good(CLIENTS, &seventeen[..16]).outside.addresses.len(), 16);
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let table = [
        (
            "mark = 0x10c00000",
            "e.toml:3: inside.mark: 0x10c00000 has bits outside inside.mark_mask 0x0ff00000, so the rule would match nothing\n  remedy: choose a mark within the mask",
        ),
        (
            "table = 254",
            "e.toml:3: inside.table: 254 is one of the kernel's own tables\n  remedy: choose a number that `ip route show table N` shows empty",
        ),
        (
            "[mapping]\nhold_down = \"61s\"",
            "e.toml:4: mapping.hold_down: 1m 1s is not safely longer than echo.timeout (1m): a late reply could reach the next client that gets the ident\n  remedy: leave it out for the shortest that is safe",
        ),
    ];
    for (line, expected) in table {
        assert_eq!(bad(&format!("{CLIENTS}{line}"), &[]), expected);
    }
    let longer = good(&format!("{CLIENTS}[mapping]\nhold_down = \"61001ms\""), &[]);
    assert_eq!(longer.mapping.hold_down, Some(Duration::from_millis(61_001)));
}

#[test]
fn a_program_that_fills_the_config_meets_the_same_rules() {
    let mut config = good(CLIENTS, &[]);
    assert!(config.validate().is_ok());
    config.run.workers = 0;
    let error = config.validate().expect_err("no workers");
    assert_eq!(error.to_string(), "run.workers: 0 is out of range\n  remedy: allowed: 1 to 64 threads");
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let missing = Config::load(Some(Path::new("/nonexistent/e.toml")), &[]).expect_err("no such file");
    assert_eq!(
        missing.to_string(),
        "/nonexistent/e.toml: cannot be read: No such file or directory (os error 2)\n  remedy: give --config a file that \
         this user may read"
    );
    let directory = Config::load(Some(Path::new("/")), &[]).expect_err("a directory");
    assert!(directory.to_string().starts_with("/: cannot be read: Is a directory"), "{directory}");
    let endless = Config::load(Some(Path::new("/dev/zero")), &[]).expect_err("endless");
    assert_eq!(endless.to_string(), "/dev/zero: longer than 1048576 bytes, so not a configuration");

    let mut latin1 = tempfile::NamedTempFile::new().unwrap();
    latin1.write_all(b"# one\n# caf\xe9\n").unwrap();
    let error = Config::load(Some(latin1.path()), &[]).expect_err("not UTF-8");
    let expected = format!("{}:2: not UTF-8 text\n  remedy: save the file as UTF-8", latin1.path().display());
    assert_eq!(error.to_string(), expected);
}

fn any_key() -> impl Strategy<Value = &'static Key> {
    (0..KEYS.len()).prop_map(|index| &KEYS[index])
}

/// Text that gets past the TOML parser often enough to reach the rest.
fn plausible() -> impl Strategy<Value = String> {
    let name = prop_oneof![any_key().prop_map(|key| key.name.to_owned()), "[a-z_.\"-]{0,12}".prop_map(|name| name),];
    let table = prop_oneof![any_key().prop_map(|key| key.table.to_owned()), "[a-z.]{1,8}"];
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        "\"[0-9a-z./: µ\u{1F980}-]{0,20}\"",
        "\"[0-9]{1,20}[a-z]{0,3}\"",
        "\\[(\"[0-9./]{0,18}\",){0,4}\\]",
        (any::<[u8; 4]>(), 0..40_u8).prop_map(|(a, length)| format!("[\"{}/{length}\"]", Ipv4Addr::from(a))),
        "[-+0-9a-fxob_.eTZ:\\[\\]{}=,]{0,12}",
    ];
    proptest::collection::vec((table, name, value), 0..6)
        .prop_map(|lines| lines.into_iter().map(|(table, name, value)| format!("{table}.{name} = {value}\n")).collect())
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC*|(?s).*") {
        let _ = Config::parse(&text, "e.toml", &[]);
    }

    #[test]
    fn what_is_accepted_is_valid(text in plausible(), value in "\\PC{0,20}", key in any_key()) {
        if let Ok(config) = Config::parse(&text, "e.toml", &[(key, value)]) {
            prop_assert!(config.validate().is_ok());
        }
    }
}

#[test]
fn sockets_to_be_looked_at_by_have_their_places_or_none() {
    let observe = |text: &str| good(&format!("{CLIENTS}[observe]\n{text}"), &[]).observe;
    assert_eq!(observe(""), Observe::default());
    let given = observe("control = \"/run/e.sock\"\nmetrics = \"[::1]:9428\"");
    let control = ControlSocket::At("/run/e.sock".into());
    let metrics = Some("[::1]:9428".parse().expect("an address"));
    assert_eq!(given, Observe { control, metrics, ..Observe::default() });
    let none = good(CLIENTS, &[("control", "none"), ("metrics", "none")]).observe;
    assert_eq!(none, Observe { control: ControlSocket::Nowhere, ..Observe::default() });

    let refused = |text: &str| bad(&format!("{CLIENTS}[observe]\n{text}"), &[]);
    let relative = refused("control = \"e.sock\"");
    assert!(
        relative.starts_with("e.toml:4: observe.control: e.sock depends on where the gateway is started"),
        "{relative}"
    );
    let long = refused(&format!("control = \"/{}\"", "x".repeat(107)));
    assert!(long.contains("has 108 bytes"), "{long}");
    let portless = refused("metrics = \"127.0.0.1\"");
    assert!(
        portless.starts_with("e.toml:4: observe.metrics: \"127.0.0.1\" is not an address with its port"),
        "{portless}"
    );
}

#[test]
fn what_is_logged_and_how_is_a_level_and_a_word() {
    let observe = |text: &str| good(&format!("{CLIENTS}[observe]\n{text}"), &[]).observe;
    assert_eq!((observe("").log, observe("").log_format), (None, LogFormat::Human));
    let given = observe("log = \"warn,echogate::host=debug\"\nlog_format = \"json\"");
    assert_eq!((given.log.as_deref(), given.log_format), (Some("warn,echogate::host=debug"), LogFormat::Json));

    let refused = |text: &str| bad(&format!("{CLIENTS}[observe]\n{text}"), &[]);
    let loud = refused("log = \"loud\"");
    assert!(loud.starts_with("e.toml:4: observe.log: \"loud\" is no level\n  remedy: allowed: off, error, "), "{loud}");
    let xml = refused("log_format = \"xml\"");
    assert!(xml.starts_with("e.toml:4: observe.log_format: there is no \"xml\""), "{xml}");
}
