//! What the fuzz targets (`fuzz/targets/`) and `tests/fuzz.rs` run: any bytes at all, and what must hold of them.

use std::net::Ipv4Addr;
use std::time::Duration;

use echogate::clock::Instant;
use echogate::config::Config;
use echogate::proxy::{Handle, Inbound, Outbound, Proxy, Settings};
use echogate::wire::build;
use echogate::wire::error::{self, Message};
use echogate::wire::icmpv4::{Echo, EchoKind};
use echogate::wire::ipv4::Ipv4;
use echogate::wire::quote::Quote;
use echogate::wire::transport;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// One packet, as it is and as it is rewritten: nothing panics, nothing reads beyond what its header says, and what was
/// intact stays so.
pub(crate) fn wire(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    let Ok(packet) = Ipv4::check(&bytes[..]) else { return };
    let (header_len, total) = (packet.header_len(), packet.total_len());
    assert!((20..=60).contains(&header_len) && (header_len..=bytes.len()).contains(&total));
    assert_eq!(packet.payload().len(), total - header_len);
    assert_eq!(packet.is_later_fragment(), packet.fragment_offset() > 0);
    let _ = (packet.has_source_route(), packet.options(), transport::destination_port(&packet));
    let mut told = [0; error::LEN_MAX];
    if let Some(length) = error::about(&bytes, GATEWAY, Message::Prohibited, &mut told) {
        let told = Ipv4::check(&told[..length]).expect("an error is a packet");
        assert!(told.header_is_intact() && told.total_len() == length);
    }
    let intact = packet.header_is_intact();
    let echo_intact = Echo::check(packet.payload()).map(|echo| echo.is_intact());
    let quote_intact = Quote::check(packet.payload()).map(|quote| quote.is_intact());
    let mut packet = Ipv4::check(&mut bytes[..]).expect("it was one a moment ago");
    packet.set_source(GATEWAY);
    packet.set_ttl(9);
    assert_eq!(packet.header_is_intact(), intact);
    if let Ok(mut echo) = Echo::check(packet.payload_mut()) {
        echo.set_ident(0xbeef);
        assert_eq!(Ok(echo.is_intact()), echo_intact);
    }
    if let Ok(mut quote) = Quote::check(packet.payload_mut()) {
        quote.restore(Ipv4Addr::new(10, 66, 0, 2), 7);
        assert_eq!(Ok(quote.is_intact()), quote_intact);
    }
}

/// A history: each step is a byte that says what, and what follows it. Whatever comes, what goes out is a request of a client
/// under the gateway's name, what comes in reaches only a client that waits for it, what is dropped is as it was, and the tables
/// contradict nothing.
pub(crate) fn proxy(bytes: &[u8]) {
    let mut settings = Settings::new(vec!["10.66.0.0/28".parse().expect("a prefix")], vec![GATEWAY]);
    settings.echo_words_log2 = 14;
    settings.seed = Some(1);
    settings.idents.reserved = vec![0..=0x0FFF, 0x1080..=u16::MAX];
    settings.mapping_idle = Duration::from_secs(2);
    settings.echo_timeout = Duration::from_secs(1);
    let proxy = Proxy::new(&settings).expect("settings that are possible");
    let mut handle = proxy.handle(0).expect("nobody has it");
    let mut history = History { now: Instant::START, sent: Vec::new() };
    let mut rest = bytes;
    while let Some((&step, tail)) = rest.split_first() {
        let length = tail.first().map_or(0, |length| usize::from(*length)).min(tail.len().saturating_sub(1));
        let (mut given, tail) = tail.split_at((length + 1).min(tail.len()));
        given = given.get(1..).unwrap_or_default();
        rest = tail;
        history.step(&mut handle, step, given);
    }
    handle.audit().expect("tables that agree");
}

struct History {
    now: Instant,
    sent: Vec<Vec<u8>>,
}

impl History {
    fn step(&mut self, handle: &mut Handle, step: u8, given: &[u8]) {
        let byte = |at: usize| given.get(at).copied().unwrap_or(0);
        match step % 6 {
            0 => self.outbound(handle, given.to_vec()),
            1 => self.inbound(handle, given.to_vec()),
            2 => {
                let client = Ipv4Addr::new(10, 66, 0, byte(0) % 20);
                let remote = Ipv4Addr::new(198, 18, byte(1) % 3, byte(2));
                let body = given.get(5..).unwrap_or_default();
                let request = build::echo_request(client, remote, byte(3).into(), byte(4).into(), 64, body);
                self.outbound(handle, request);
            }
            3 if !self.sent.is_empty() => {
                let sent = self.sent[usize::from(byte(0)) % self.sent.len()].clone();
                let request = Ipv4::check(&sent[..]).expect("what was sent is a packet");
                let Ok(echo) = Echo::check(request.payload()) else { return };
                let from = Ipv4Addr::from(u32::from(request.destination()) ^ u32::from(byte(1) & 1));
                let (ident, sequence) = (echo.ident() ^ u16::from(byte(2) & 1), echo.sequence());
                self.inbound(handle, build::echo_reply(from, GATEWAY, ident, sequence, 60, echo.payload()));
            }
            4 if !self.sent.is_empty() => {
                let sent = &self.sent[usize::from(byte(0)) % self.sent.len()];
                let quoted = &sent[..sent.len().min(20 + usize::from(byte(1)))];
                let message = build::error_message(byte(2), byte(3), 0, quoted);
                let router = Ipv4Addr::new(203, 0, 113, 1);
                self.inbound(handle, build::Datagram::new(router, GATEWAY, 1, message).build());
            }
            _ => {
                self.now = self.now + Duration::from_millis(u64::from(byte(0)) * 20);
                handle.batch(self.now).expire();
            }
        }
    }

    fn outbound(&mut self, handle: &mut Handle, mut packet: Vec<u8>) {
        let before = packet.clone();
        match handle.batch(self.now).outbound(&mut packet) {
            Outbound::Forward { length, remote, .. } | Outbound::Carry { length, remote, .. } => {
                packet.truncate(length);
                let sent = Ipv4::check(&packet[..]).expect("what leaves is a packet");
                assert_eq!((sent.source(), sent.destination(), sent.total_len()), (GATEWAY, remote, length));
                assert!(sent.header_is_intact());
                if sent.is_later_fragment() {
                    return;
                }
                assert_eq!(Echo::check(sent.payload()).map(|echo| echo.kind()), Ok(EchoKind::Request));
                if self.sent.len() < 64 {
                    self.sent.push(packet);
                }
            }
            _ => assert_eq!(packet, before, "what goes nowhere is changed"),
        }
    }

    fn inbound(&mut self, handle: &mut Handle, mut packet: Vec<u8>) {
        let before = packet.clone();
        match handle.batch(self.now).inbound(&mut packet) {
            Inbound::Deliver { client, length } | Inbound::Tell { client, length, .. } => {
                let delivered = Ipv4::check(&packet[..length]).expect("what is delivered is a packet");
                assert_eq!(delivered.destination(), client);
                let [a, b, c, host] = client.octets();
                assert!((a, b, c) == (10, 66, 0) && host < 16, "{client} is no client");
            }
            Inbound::Drop(_) => assert_eq!(packet, before, "what is dropped is changed"),
        }
    }
}

/// A configuration file: taken, or refused in words.
pub(crate) fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(refusal) = Config::parse(text, "echogate.toml", &[]) {
        assert!(!refusal.to_string().is_empty());
    }
}
