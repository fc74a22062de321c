//! What the fuzz targets (`fuzz/targets/`) and `tests/fuzz.rs` run: any bytes at all, and what must hold of them.

#[path = "pinger.rs"]
mod pinger;

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use echogate::clock::Instant;
use echogate::config::Config;
use echogate::control::http::{self, Body, Wanted};
use echogate::control::{Request, read_answer, read_followed};
use echogate::proxy::{Handle, Inbound, Outbound, Proxy, Settings};
use echogate::state::{Shape, State};
use echogate::wire::build;
use echogate::wire::error::{self, Message};
use echogate::wire::icmpv4::{Echo, EchoKind};
use echogate::wire::ipv4::Ipv4;
use echogate::wire::quote::Quote;
use echogate::wire::transport;

#[allow(unused_imports, reason = "each target runs one of the bodies")]
pub(crate) use pinger::pinger;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// The idents that a history's proxy has.
const FIRST_IDENT: u16 = 0x1000;
const LAST_IDENT: u16 = 0x107F;

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

fn settings() -> Settings {
    let mut settings = Settings::new(vec!["10.66.0.0/28".parse().expect("a prefix")], vec![GATEWAY]);
    settings.echo_words_log2 = 14;
    settings.seed = Some(1);
    settings.idents.reserved = vec![0..=FIRST_IDENT - 1, LAST_IDENT + 1..=u16::MAX];
    settings.mapping_idle = Duration::from_secs(2);
    settings.echo_timeout = Duration::from_secs(1);
    settings
}

thread_local! {
    /// A proxy that has forgotten all that it was told, its time, and how many histories it has had: making one takes
    /// longer than thousands of steps. The last one is not dropped when its thread ends: papaya then looks for a thread-local
    /// of its own, which may be gone.
    static PROXY: Cell<Option<(ManuallyDrop<Handle>, Instant, u32)>> = const { Cell::new(None) };

    /// Memory as a packet process leaves it to the next.
    static MEMORY: State = State::create(&shape(), &[GATEWAY]).expect("memory for tables");
}

/// How many histories a proxy has, one after the other.
const HISTORIES: u32 = 1000;

/// A history: each step is a byte that says what, and what follows it. Whatever comes, what goes out is a request of a client
/// under the gateway's name, what comes in reaches who asked for it, in time, and a reply once; what is dropped is as it was, the
/// tables contradict nothing, and in the end nothing is left in them.
pub(crate) fn proxy(bytes: &[u8]) {
    let (mut handle, now, histories) = PROXY.take().unwrap_or_else(|| {
        let proxy = Proxy::new(&settings()).expect("settings that are possible");
        (ManuallyDrop::new(proxy.handle(0).expect("nobody has it")), Instant::START, 0)
    });
    let mut history = History::new(now, true);
    history.steps(&mut handle, bytes);
    handle.audit().expect("tables that agree");
    history.let_all_end(&mut handle);
    // One in which something is wrong has not come here, and is not used again.
    if histories < HISTORIES {
        PROXY.set(Some((handle, history.now, histories + 1)));
    } else {
        drop(ManuallyDrop::into_inner(handle));
    }
}

fn shape() -> Shape {
    let settings = settings();
    Shape { echo_words_log2: settings.echo_words_log2, echo_timeout: settings.echo_timeout }
}

/// Where the slot of an ident and the echoes are in the memory (`src/state.rs`).
fn slot_at(ident: u16) -> u64 {
    ECHOES_AT + (8 << 14) + 64 * u64::from(ident)
}
const ECHOES_AT: u64 = 4096;

/// A history, after which the process is gone, with slots and echoes torn: a byte says how many writes there are, and each
/// is two bytes of where and nine of what. The next process goes on over what it finds, with a history of its own, and of that
/// everything holds that holds of any.
pub(crate) fn restart(bytes: &[u8]) {
    let (&[before, writes], rest) = bytes.split_first_chunk().unwrap_or((&[0, 0], &[]));
    let (before, rest) = rest.split_at(usize::from(before).min(rest.len()));
    let (torn, after) = rest.split_at((usize::from(writes % 16) * 11).min(rest.len()));
    MEMORY.with(|memory| {
        let file = File::from(memory.as_fd().try_clone_to_owned().expect("another descriptor"));
        // As it was at first, wherever the last one may have written.
        let slots = usize::from(LAST_IDENT - FIRST_IDENT + 1) * 64;
        file.write_all_at(&vec![0; slots], slot_at(FIRST_IDENT)).expect("it is as long as that");
        file.write_all_at(&vec![0; 8 << 14], ECHOES_AT).expect("it is as long as that");
        let take_up = |used: Instant, now: Instant| {
            let over = Proxy::over(&settings(), memory.tables(), used, now);
            over.expect("whatever is in the tables, a proxy can be made of them").0.handle(0).expect("nobody has it")
        };
        let mut history = History::new(Instant::START, true);
        history.steps(&mut take_up(history.now, history.now), before);
        let used = history.now;
        // What was asked before may be answered still. Who gets that then depends on what has been torn.
        history = History { sent: history.sent, ..History::new(used, false) };
        for write in torn.chunks_exact(11) {
            let place = u16::from_le_bytes([write[0], write[1]]);
            let what = &write[3..];
            // A slot's words begin at each eighth byte: the last of them is padding.
            let slot = slot_at(FIRST_IDENT + (place >> 3) % (LAST_IDENT - FIRST_IDENT + 1)) + 8 * u64::from(place & 7);
            let at = if write[2] & 1 == 0 { slot } else { ECHOES_AT + 8 * u64::from(place % (1 << 14)) };
            file.write_all_at(what, at).expect("it is as long as that");
        }
        let mut handle = take_up(used, history.now);
        handle.audit().expect("tables that agree, whatever was found");
        history.steps(&mut handle, after);
        handle.audit().expect("tables that agree");
        history.let_all_end(&mut handle);
    });
}

/// What names an echo outside: the gateway's ident, the sequence, the remote.
type Key = (u16, u16, Ipv4Addr);

/// A client, the ident that it chose, and when it asked last.
type Asked = (Ipv4Addr, u16, Instant);

/// No echo is answered later: the timeout, and a stamp's coarseness.
const LIFE_MAX: Duration = Duration::from_millis(1100);

struct History {
    now: Instant,
    sent: Vec<Vec<u8>>,
    /// Who waits for what, by what left.
    asked: HashMap<Key, Asked>,
    /// Whether that is all that anybody waits for.
    is_all: bool,
}

impl History {
    fn new(now: Instant, is_all: bool) -> History {
        History { now, sent: Vec::new(), asked: HashMap::new(), is_all }
    }

    /// Time passes, and as a worker would the handle sleeps no longer than its tables allow.
    fn pass(&mut self, handle: &mut Handle, time: Duration) {
        let until = self.now + time;
        loop {
            let left = until.since(self.now);
            self.now = self.now + handle.sleep_max(self.now).map_or(left, |sleep| sleep.min(left));
            handle.batch(self.now).expire();
            if self.now >= until {
                return;
            }
        }
    }

    fn steps(&mut self, handle: &mut Handle, mut rest: &[u8]) {
        while let Some((&step, tail)) = rest.split_first() {
            let length = tail.first().map_or(0, |length| usize::from(*length)).min(tail.len().saturating_sub(1));
            let (given, tail) = tail.split_at((length + 1).min(tail.len()));
            rest = tail;
            self.step(handle, step, given.get(1..).unwrap_or_default());
        }
    }

    /// Passes the time until nothing is left, and then so much that nobody's share is of what was before.
    fn let_all_end(&mut self, handle: &mut Handle) {
        self.pass(handle, Duration::from_secs(40));
        assert_eq!((handle.mappings(), handle.held()), (0, 0), "mappings, and idents that rest");
        assert_eq!(handle.sleep_max(self.now), None, "nothing is left to be done");
    }

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
            _ => self.pass(handle, Duration::from_millis(u64::from(byte(0)) * 20)),
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
                let request = Ipv4::check(&before[..]).expect("what leaves came as a packet");
                let [asked, echo] = [&request, &sent].map(|packet| Echo::check(packet.payload()).expect("an echo"));
                assert_eq!((echo.kind(), echo.sequence()), (EchoKind::Request, asked.sequence()));
                self.asked.insert((echo.ident(), echo.sequence(), remote), (request.source(), asked.ident(), self.now));
                if self.sent.len() < 64 {
                    self.sent.push(packet);
                }
            }
            _ => assert_eq!(packet, before, "what goes nowhere is changed"),
        }
    }

    fn inbound(&mut self, handle: &mut Handle, mut packet: Vec<u8>) {
        let before = packet.clone();
        let verdict = handle.batch(self.now).inbound(&mut packet);
        let (client, length) = match verdict {
            Inbound::Deliver { client, length } | Inbound::Tell { client, length, .. } => (client, length),
            Inbound::Drop(_) => return assert_eq!(packet, before, "what is dropped is changed"),
        };
        let came = Ipv4::check(&before[..]).expect("what is delivered came as a packet");
        let delivered = Ipv4::check(&packet[..length]).expect("what is delivered is a packet");
        assert_eq!((delivered.source(), length), (came.source(), came.total_len()));
        assert_eq!(delivered.destination(), client);
        let [a, b, c, host] = client.octets();
        assert!((a, b, c) == (10, 66, 0) && host < 16, "{client} is no client");
        // A reply uses up what it answers.
        let (asked, told) = if matches!(verdict, Inbound::Deliver { .. }) {
            let [came_as, echo] = [&came, &delivered].map(|packet| Echo::check(packet.payload()).expect("an echo"));
            assert_eq!((echo.kind(), echo.sequence()), (EchoKind::Reply, came_as.sequence()));
            assert_eq!(echo.payload(), came_as.payload());
            (self.asked.remove(&(came_as.ident(), echo.sequence(), came.source())), (client, echo.ident()))
        } else {
            let [came_as, quote] = [&came, &delivered].map(|packet| Quote::check(packet.payload()).expect("a quote"));
            assert_eq!(quote.destination(), came_as.destination());
            assert_eq!((quote.source(), quote.sequence()), (client, came_as.sequence()));
            let key = (came_as.ident(), quote.sequence(), quote.destination());
            (self.asked.get(&key).copied(), (client, quote.ident()))
        };
        match asked {
            Some((client, ident, since)) => {
                assert_eq!(told, (client, ident), "what one asked for goes to another");
                assert!(self.now.since(since) <= LIFE_MAX, "late by {:?}", self.now.since(since));
            }
            None => assert!(!self.is_all, "nobody waits for what {told:?} gets"),
        }
    }
}

/// What somebody says on the control socket, on the socket of /metrics, or in the gateway's place to whoever asks: a request,
/// or told why it is none; and never longer in the answer than in a bound.
pub(crate) fn control(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        match Request::read(line) {
            // What is read as a request is written as one that is read as the same.
            Ok(request) => assert_eq!(Request::read(request.line().as_bytes()).expect("a request"), request),
            Err(refusal) => {
                let refusal = refusal.to_string();
                assert!(!refusal.is_empty() && refusal.len() < 1024 + 16 * line.len());
            }
        }
        if let Ok(line) = std::str::from_utf8(line) {
            let _ = (read_answer(line), read_followed(line));
        }
    }
    // However much of it has come: whole once, it stays so, and says what it said.
    let whole = (0..=bytes.len().min(512)).find(|length| http::read(&bytes[..*length]).is_some());
    if let Some(first) = whole {
        assert_eq!(http::read(&bytes[..first]), http::read(bytes));
        if let Some(Wanted::Path(path, body)) = http::read(bytes) {
            assert!(!path.contains(['?', ' ', '\r', '\n']));
            let answer = http::answer("404 Not Found", "text/plain", "four", body);
            assert_eq!(answer.ends_with(b"\r\n\r\nfour"), body == Body::Sent);
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
