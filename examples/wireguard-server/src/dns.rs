//! A forwarding DNS proxy: queries to the server's own address inside go to one resolver outside, and its answers back.
//!
//! Nothing here waits. A query is sent and remembered; the answer comes when it comes, by the loop's poll, or is forgotten
//! after [`TIMEOUT`] and the client asks again, as it would of any resolver. A resolver that is slow fills a bounded table,
//! which gives up its oldest.
//!
//! Who forges an answer must guess the query's port and id, and ask the same question (RFC 5452, sections 4 and 9): the id
//! that the client chose is replaced by a random one.
//!
//! Limits: UDP only (an answer too long for it says so, and its client's TCP goes to the kernel), one question a query, as
//! everywhere.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use echogate::checksum;
use echogate::clock::Instant;
use echogate::error::SetupError;
use echogate::wire::build::Datagram;
use echogate::wire::ipv4::{self, Ipv4};

use crate::drops::Drops;

/// How long an answer is waited for: longer than a client waits before it asks again.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Queries of the last [`TIMEOUT`] that are remembered.
const PENDING_MAX: usize = 4096;

const PORT: u16 = 53;
const UDP_HEADER: usize = 8;
/// RFC 1035, section 4.1.1; the id is its first two bytes, the number of questions the third pair.
const DNS_HEADER: usize = 12;

/// The longest answer: what UDP over IPv4 carries.
const ANSWER_BYTES_MAX: usize = 65_507;

pub(crate) struct Dns {
    own: Ipv4Addr,
    resolver: UdpSocket,
    pending: HashMap<u16, Query>,
    /// The ids of `pending` in the order in which they were asked, and those that have their answer: they keep their
    /// place until its time is over.
    order: VecDeque<(Instant, u16)>,
    buffer: Box<[u8]>,
    drops: Drops,
}

struct Query {
    asked: Instant,
    client: Ipv4Addr,
    port: u16,
    id: [u8; 2],
    question: Vec<u8>,
}

impl Dns {
    pub(crate) fn open(own: Ipv4Addr, resolver: SocketAddr) -> Result<Dns, SetupError> {
        let refused = |cause| {
            SetupError::caused(format!("cannot reach the resolver {resolver}"), cause)
                .remedy("give --dns the address of one that this host has a route to")
        };
        let any: SocketAddr = if resolver.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
        let socket = UdpSocket::bind(any).map_err(refused)?;
        // Connected: the kernel lets nobody else's answers through.
        socket.connect(resolver).and_then(|()| socket.set_nonblocking(true)).map_err(refused)?;
        Ok(Dns {
            own,
            resolver: socket,
            pending: HashMap::with_capacity(PENDING_MAX),
            order: VecDeque::with_capacity(PENDING_MAX),
            buffer: vec![0; ANSWER_BYTES_MAX].into(),
            drops: Drops::default(),
        })
    }

    /// Takes the packet if it is a query to us, and asks the resolver.
    pub(crate) fn take(&mut self, packet: &[u8], now: Instant) -> bool {
        let Some(query) = QueryPacket::read(packet, self.own) else { return false };
        let Some(question) = question(query.message) else {
            self.drops.count("dns_malformed");
            return true;
        };
        self.forget(now);
        if self.order.len() == PENDING_MAX {
            self.forget_first("dns_overtaken");
        }
        let id = self.unused_id();
        let mut message = query.message.to_vec();
        message[..2].copy_from_slice(&id.to_be_bytes());
        let [first, second, ..] = *query.message else { return true };
        if self.resolver.send(&message).is_err() {
            // Refused by the resolver's host some time ago, say, or no route now. The client asks again.
            self.drops.count("dns_not_sent");
            return true;
        }
        let question = question.to_vec();
        let (client, port) = (query.client, query.port);
        self.pending.insert(id, Query { asked: now, client, port, id: [first, second], question });
        self.order.push_back((now, id));
        true
    }

    /// The next answer that a client waits for, as a packet for it. None: nothing more is there.
    pub(crate) fn answer(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.forget(now);
        loop {
            let length = match self.resolver.recv(&mut self.buffer) {
                Ok(length) => length,
                // The resolver's host said that nobody listens: told once, and nothing to do about it.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
                Err(_) => return None,
            };
            let message = &mut self.buffer[..length];
            let Some(query) = asked_for(&mut self.pending, message) else {
                self.drops.count("dns_unasked");
                continue;
            };
            message[..2].copy_from_slice(&query.id);
            let udp = udp_datagram(self.own, query.client, query.port, message);
            return Some(Datagram::new(self.own, query.client, ipv4::UDP, udp).build());
        }
    }

    /// Gives up what was asked too long ago.
    fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(asked, _)| now.since(*asked) >= TIMEOUT) {
            self.forget_first("dns_unanswered");
        }
    }

    /// The first in order, if it still waits; if it has its answer, only its place in the order goes.
    fn forget_first(&mut self, name: &'static str) {
        let Some((asked, id)) = self.order.pop_front() else { return };
        if self.pending.get(&id).is_some_and(|query| query.asked == asked) {
            self.pending.remove(&id);
            self.drops.count(name);
        }
    }

    fn unused_id(&self) -> u16 {
        // The table holds a small part of all ids: the first is nearly always free.
        loop {
            let id = rand::random();
            if !self.pending.contains_key(&id) {
                return id;
            }
        }
    }

    pub(crate) fn drops(&self) -> &Drops {
        &self.drops
    }
}

impl AsFd for Dns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.resolver.as_fd()
    }
}

/// A client's query as it came.
struct QueryPacket<'p> {
    client: Ipv4Addr,
    port: u16,
    message: &'p [u8],
}

impl QueryPacket<'_> {
    /// None: not a whole UDP datagram to port 53 of `own`.
    fn read(packet: &[u8], own: Ipv4Addr) -> Option<QueryPacket<'_>> {
        let ip = Ipv4::check(packet).ok()?;
        if ip.destination() != own || ip.protocol() != ipv4::UDP || ip.is_fragment() {
            return None;
        }
        let header = ip.header_len();
        let (client, end) = (ip.source(), ip.total_len());
        let udp = packet.get(header..end)?;
        let (fields, message) = udp.split_at_checked(UDP_HEADER)?;
        let word = |at: usize| u16::from_be_bytes([fields[at], fields[at + 1]]);
        if word(2) != PORT {
            return None;
        }
        let message = message.get(..usize::from(word(4)).checked_sub(UDP_HEADER)?)?;
        Some(QueryPacket { client, port: word(0), message })
    }
}

/// The question of a message that has exactly one: name, type and class.
fn question(message: &[u8]) -> Option<&[u8]> {
    let [_, _, _, _, 0, 1, ..] = message else { return None };
    let after = message.get(DNS_HEADER..)?;
    let mut length = 0;
    loop {
        match *after.get(length)? {
            0 => break,
            // Two high bits are a pointer to an earlier name, and there is none.
            label if label < 64 => length += 1 + usize::from(label),
            _ => return None,
        }
    }
    after.get(..length + 1 + 4)
}

/// The query that the message answers, which then waits no more. Names are compared as they were sent: a resolver repeats
/// their case.
fn asked_for(pending: &mut HashMap<u16, Query>, message: &[u8]) -> Option<Query> {
    let [first, second, flags, ..] = *message else { return None };
    let is_response = flags & 0x80 != 0;
    let id = u16::from_be_bytes([first, second]);
    if !is_response || question(message)? != pending.get(&id)?.question {
        return None;
    }
    pending.remove(&id)
}

/// A UDP datagram from port 53, with its checksum (RFC 768).
fn udp_datagram(source: Ipv4Addr, destination: Ipv4Addr, port: u16, message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(UDP_HEADER + message.len()).expect("no longer than what UDP brought");
    let mut pseudo = [source.octets(), destination.octets(), [0, ipv4::UDP, 0, 0]].concat();
    pseudo[10..].copy_from_slice(&length.to_be_bytes());
    let header = pseudo.len();
    for word in [PORT, port, length, 0] {
        pseudo.extend(word.to_be_bytes());
    }
    pseudo.extend(message);
    // Zero says that there is none.
    let sum = match checksum::checksum(&pseudo) {
        0 => u16::MAX,
        sum => sum,
    };
    pseudo[header + 6..header + 8].copy_from_slice(&sum.to_be_bytes());
    pseudo.split_off(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
    const CLIENT_PORT: u16 = 5353;

    /// A resolver on the loopback, and the proxy in front of it.
    fn pair() -> (UdpSocket, Dns) {
        let resolver = UdpSocket::bind("127.0.0.1:0").unwrap();
        resolver.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let dns = Dns::open(OWN, resolver.local_addr().unwrap()).unwrap();
        (resolver, dns)
    }

    fn query(id: u16, name: u8) -> Vec<u8> {
        let [high, low] = id.to_be_bytes();
        vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, name, 0, 0, 1, 0, 1]
    }

    fn packet(to: Ipv4Addr, port: u16, message: &[u8]) -> Vec<u8> {
        let mut udp = udp_datagram(CLIENT, to, port, message);
        udp[..2].copy_from_slice(&CLIENT_PORT.to_be_bytes());
        Datagram::new(CLIENT, to, ipv4::UDP, udp).build()
    }

    fn at(seconds: u64) -> Instant {
        Instant::START + Duration::from_secs(seconds)
    }

    /// What the resolver got, and from where.
    fn asked(resolver: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2048];
        let (length, from) = resolver.recv_from(&mut buffer).unwrap();
        (buffer[..length].to_vec(), from)
    }

    fn respond(resolver: &UdpSocket, to: SocketAddr, query: &[u8]) {
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        answer.extend([9; 16]);
        resolver.send_to(&answer, to).unwrap();
    }

    fn await_answer(dns: &mut Dns, now: Instant) -> Vec<u8> {
        let patience = std::time::Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(answer) = dns.answer(now) {
                return answer;
            }
            assert!(std::time::Instant::now() < patience, "no answer");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_query_to_us_is_asked_under_an_id_of_our_own_and_its_answer_has_the_clients_again() {
        let (resolver, mut dns) = pair();
        assert!(dns.take(&packet(OWN, PORT, &query(7, b'a')), at(0)));
        let (message, from) = asked(&resolver);
        assert_eq!(message[2..], query(7, b'a')[2..]);
        respond(&resolver, from, &message);
        let answer = await_answer(&mut dns, at(0));
        let ip = Ipv4::check(&answer[..]).unwrap();
        assert_eq!((ip.source(), ip.destination()), (OWN, CLIENT));
        assert!(ip.header_is_intact());
        let udp = ip.payload();
        assert_eq!(udp[..4], [PORT.to_be_bytes(), CLIENT_PORT.to_be_bytes()].concat());
        let mut expected = query(7, b'a');
        expected[2] |= 0x80;
        expected.extend([9; 16]);
        assert_eq!(udp[UDP_HEADER..], expected);
    }

    #[test]
    fn the_checksum_is_that_of_udp() {
        for length in [12, 13, 512] {
            let udp = udp_datagram(OWN, CLIENT, 4000, &vec![0xa5; length]);
            let length = u16::try_from(udp.len()).unwrap().to_be_bytes();
            let pseudo = [&OWN.octets()[..], &CLIENT.octets(), &[0, 17], &length, &udp].concat();
            assert_eq!(checksum::sum(&pseudo), 0xffff);
        }
    }

    #[test]
    fn what_is_no_query_to_us_is_left_alone() {
        let (_resolver, mut dns) = pair();
        let elsewhere = Ipv4Addr::new(198, 18, 0, 2);
        let whole = packet(OWN, PORT, &query(7, b'a'));
        let others = [packet(elsewhere, PORT, &query(7, b'a')), packet(OWN, 5300, &query(7, b'a')), Vec::new()];
        assert!(!others.iter().any(|packet| dns.take(packet, at(0))));
        for length in 0..whole.len() {
            assert!(!dns.take(&whole[..length], at(0)), "{length} bytes");
        }
        let fragment =
            Datagram { more_fragments: true, ..Datagram::new(CLIENT, OWN, ipv4::UDP, vec![0, 9, 0, 53, 0, 8, 0, 0]) };
        assert!(!dns.take(&fragment.build(), at(0)));
        assert_eq!(dns.pending.len(), 0);
    }

    #[test]
    fn a_query_that_is_none_is_dropped_whatever_its_bytes() {
        let (_resolver, mut dns) = pair();
        let whole = query(7, b'a');
        for length in 0..whole.len() {
            assert!(dns.take(&packet(OWN, PORT, &whole[..length]), at(0)), "{length} bytes");
        }
        let mut pointer = whole.clone();
        pointer[DNS_HEADER] = 0xc0;
        assert!(dns.take(&packet(OWN, PORT, &pointer), at(0)));
        assert_eq!((dns.drops.of("dns_malformed"), dns.pending.len()), (20, 0));
    }

    #[test]
    fn an_answer_to_another_question_or_a_second_one_or_a_late_one_goes_nowhere() {
        let (resolver, mut dns) = pair();
        dns.take(&packet(OWN, PORT, &query(7, b'a')), at(0));
        let (message, from) = asked(&resolver);
        let mut forged = message.clone();
        forged[DNS_HEADER + 1] = b'b';
        respond(&resolver, from, &forged);
        resolver.send_to(&message, from).unwrap();
        resolver.send_to(&message[..5], from).unwrap();
        respond(&resolver, from, &message);
        respond(&resolver, from, &message);
        let answer = await_answer(&mut dns, at(0));
        assert_eq!(answer[28 + DNS_HEADER..][..2], [1, b'a'], "the forged one came first");
        dns.take(&packet(OWN, PORT, &query(8, b'a')), at(1));
        let (message, from) = asked(&resolver);
        dns.take(&packet(OWN, PORT, &query(9, b'z')), at(2));
        let (last, _) = asked(&resolver);
        respond(&resolver, from, &message);
        respond(&resolver, from, &last);
        let answer = await_answer(&mut dns, at(1) + TIMEOUT);
        assert_eq!(answer[28..30], [0, 9], "the late one came first");
        assert_eq!((dns.drops.of("dns_unasked"), dns.drops.of("dns_unanswered")), (5, 1));
        assert_eq!(dns.pending.len(), 0);
    }

    #[test]
    fn a_resolver_that_never_answers_fills_a_bounded_table() {
        let (_resolver, mut dns) = pair();
        for number in 0..PENDING_MAX + 10 {
            assert!(dns.take(&packet(OWN, PORT, &query(7, b'a')), at(0)), "{number}");
        }
        assert_eq!((dns.pending.len(), dns.order.len(), dns.drops.of("dns_overtaken")), (PENDING_MAX, PENDING_MAX, 10));
        assert_eq!(dns.answer(at(0) + TIMEOUT), None);
        assert_eq!((dns.pending.len(), dns.order.len()), (0, 0));
    }
}
