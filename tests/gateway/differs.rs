//! The kernel's masquerade is what users know: where Echogate differs from it, docs/differences.md says why.
//!
//! One corpus of requests, and of what a remote or a router says to each, takes its way through both. What arrives, at the
//! remote and at the client, is compared field by field; of what the translation chooses (the ident outside) only the
//! effect on checksums is. The differences must be exactly those of the list below, and the list that of the document:
//! a difference that is gone fails the test too.
//!
//! "Nothing came" is known by a marker, a request of the same flow that is sent behind: what comes before it came, and
//! what does not never will.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use echogate::checksum;
use echogate::lab::{LabOptions, Namespace};
use echogate::wire::build::{Datagram, echo_message, error_message};
use echogate::wire::icmpv4::{Echo, EchoKind};
use echogate::wire::ipv4::{ICMP, Ipv4};
use socket2::{Domain, Protocol, Socket, Type};

use crate::ear::Ear;
use crate::in_every_setup;
use crate::scene::{Scene, Setup, nft};

in_every_setup!(echogate_differs_from_the_masquerade_only_where_the_documentation_says_so);

/// Somebody on the way who has something to say.
const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// The identification of what the test sends.
const IDENTIFICATION: u16 = 0x5a5a;
const MARKERS: [u16; 2] = [0xeee0, 0xeee1];

/// Which cases may differ, in what, and the first words of the line of docs/differences.md that says why.
const ALLOWED: [(&str, &str, &str); 14] = [
    ("no DF", "identification at the remote", "identification without DF"),
    ("time exceeded, no DF", "identification at the remote", "identification without DF"),
    ("time exceeded, no DF", "quoted identification at the client", "identification without DF"),
    ("time exceeded, no DF", "quoted header checksum at the client", "identification without DF"),
    ("record route", "options at the remote", "recorded routes"),
    ("a reply that records its route", "options at the client", "recorded routes"),
    ("a damaged request", "source at the remote", "damaged requests"),
    ("a damaged reply", "packets at the client", "damaged replies"),
    ("a reply twice", "packets at the client", "repeated replies"),
    ("a reply to nothing asked", "packets at the client", "replies to nothing asked"),
    ("a reply that expires at the gateway", "packets at the remote afterwards", "replies that expire here"),
    ("a quote of another sequence", "packets at the client", "errors about nothing asked"),
    ("the reply, then an error", "packets at the client", "errors about nothing asked"),
    ("source quench", "packets at the client", "source quench"),
];

/// A request, and what is sent back for it by whom.
struct Case {
    name: &'static str,
    request: Datagram,
    answers: Answers,
}

type Answers = fn(&Request) -> Vec<Vec<u8>>;

/// A request as it arrived at the remote.
struct Request(Ipv4<Vec<u8>>);

impl Request {
    /// The reply, and what is to be different about it.
    fn reply(&self, change: impl FnOnce(&mut Datagram)) -> Vec<u8> {
        let echo = Echo::check(self.0.payload()).expect("an echo");
        let message = echo_message(EchoKind::Reply, echo.ident(), echo.sequence(), echo.payload());
        let reply = Datagram::new(self.0.destination(), self.0.source(), ICMP, message);
        let mut reply = Datagram { identification: IDENTIFICATION, ..reply };
        change(&mut reply);
        reply.build()
    }

    /// An error about it, of this type, code and second word, that quotes these bytes.
    fn error(&self, [icmp_type, code]: [u8; 2], rest: u32, quote: &[u8]) -> Vec<u8> {
        self.outer(error_message(icmp_type, code, rest, quote))
    }

    fn outer(&self, message: Vec<u8>) -> Vec<u8> {
        let error = Datagram::new(ROUTER, self.0.source(), ICMP, message);
        Datagram { identification: IDENTIFICATION, ..error }.build()
    }

    /// Its bytes as they arrived, with these at the given offset turned over.
    fn bytes(&self, damaged: &[usize]) -> Vec<u8> {
        let mut bytes = [self.0.header(), self.0.payload()].concat();
        damaged.iter().for_each(|at| bytes[*at] ^= 0x40);
        bytes
    }
}

fn corpus(client: Ipv4Addr, remote: Ipv4Addr) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |name, ident: u16, sequence: u16, payload: &[u8], change: fn(&mut Datagram), answers: Answers| {
        let message = echo_message(EchoKind::Request, ident, sequence, payload);
        let request = Datagram { identification: 0x1234, ..Datagram::new(client, remote, ICMP, message) };
        let mut request = Datagram { dont_fragment: true, ..request };
        change(&mut request);
        cases.push(Case { name, request, answers });
    };
    let as_it_is: fn(&mut Datagram) = |_| {};
    let answered: Answers = |request| vec![request.reply(|_| {})];
    let unanswered: Answers = |_| Vec::new();
    let long = [0x77; 1472];

    // What clients send.
    case("no payload", 100, 1, b"", as_it_is, answered);
    case("one byte", 101, 1, b"x", as_it_is, answered);
    case("an odd length", 102, 1, &long[..57], as_it_is, answered);
    case("a full datagram", 103, 1, &long, as_it_is, answered);
    case("ident 0, sequence 0", 0, 0, b"payload", as_it_is, answered);
    case("ident and sequence 65535", 0xffff, 0xffff, b"payload", as_it_is, answered);
    case("nothing but zeroes", 0, 1, &[0; 32], as_it_is, |request| {
        // The reply that sums up to nothing: its checksum must be 0xffff.
        let zeroes = |reply: &mut Datagram| {
            let ident = Echo::check(&reply.payload[..]).expect("an echo").ident();
            reply.payload = echo_message(EchoKind::Reply, ident, 1, &[0; 32]);
        };
        vec![request.reply(zeroes)]
    });
    case("a checksum of zero", 104, 1, &[0xf7, 0x96 - 1], as_it_is, answered);
    case("expedited", 105, 1, b"payload", |d| d.tos = 0xb8, answered);
    case("congestion was experienced", 106, 1, b"payload", |d| d.tos = 0x03, answered);
    case("all of TOS", 107, 1, b"payload", |d| d.tos = 0xff, answered);
    case("no identification, DF", 108, 1, b"payload", |d| d.identification = 0, answered);
    case("no DF", 109, 1, b"payload", |d| d.dont_fragment = false, answered);
    case("a TTL of 255", 110, 1, b"payload", |d| d.ttl = 255, answered);
    case("a TTL of 3", 111, 1, b"payload", |d| d.ttl = 3, answered);
    case("expires at the router", 112, 1, b"payload", |d| d.ttl = 2, unanswered);
    case("expires at the gateway", 113, 1, b"payload", |d| d.ttl = 1, unanswered);
    case("options that do nothing", 114, 1, b"payload", |d| d.options = vec![1, 1, 1, 0], answered);
    case("router alert", 115, 1, b"payload", |d| d.options = vec![148, 4, 0, 0], answered);
    case("an unknown option", 116, 1, b"payload", |d| d.options = vec![0x5e, 4, 0xaa, 0xbb], answered);
    case("record route", 117, 1, b"payload", |d| d.options = [&[7, 31, 4][..], &[0; 28]].concat(), answered);
    case("record route, full", 118, 1, b"payload", |d| d.options = vec![7, 7, 8, 192, 0, 2, 1], answered);
    case("a loose source route", 119, 1, b"payload", |d| d.options = vec![131, 7, 4, 192, 0, 2, 1], answered);
    case("an option without end", 120, 1, b"payload", |d| d.options = vec![7, 200, 4, 0], answered);
    case("a damaged request", 121, 1, b"payload", |d| d.payload[9] ^= 0x10, unanswered);
    case("an echo request with a code", 122, 1, b"payload", |d| d.payload[1] = 5, unanswered);
    case("to nobody", 123, 1, b"payload", |d| d.destination = Ipv4Addr::new(240, 0, 0, 1), unanswered);

    // What is replied.
    case("a reply with everything", 200, 1, b"payload", as_it_is, |request| {
        vec![request.reply(|d| {
            (d.tos, d.ttl, d.dont_fragment) = (0x2e, 17, true);
            d.options = vec![1, 1, 1, 0];
        })]
    });
    case("another payload", 201, 1, b"payload", as_it_is, |request| {
        let other = |d: &mut Datagram| {
            let ident = Echo::check(&d.payload[..]).expect("an echo").ident();
            d.payload = echo_message(EchoKind::Reply, ident, 1, b"something else");
        };
        vec![request.reply(other)]
    });
    case("a reply that expires at the gateway", 202, 1, b"payload", as_it_is, |request| {
        vec![request.reply(|d| d.ttl = 2)]
    });
    case("a reply on its last hop", 208, 1, b"payload", as_it_is, |request| vec![request.reply(|d| d.ttl = 3)]);
    case("a reply that records its route", 209, 1, b"payload", as_it_is, |request| {
        vec![request.reply(|d| d.options = [&[7, 31, 4][..], &[0; 28]].concat())]
    });
    case("a damaged reply", 203, 1, b"payload", as_it_is, |request| vec![request.reply(|d| d.payload[9] ^= 0x10)]);
    case("a reply twice", 204, 1, b"payload", as_it_is, |request| vec![request.reply(|_| {}), request.reply(|_| {})]);
    case("a reply to nothing asked", 205, 1, b"payload", as_it_is, |request| {
        let other = |d: &mut Datagram| {
            let ident = Echo::check(&d.payload[..]).expect("an echo").ident();
            d.payload = echo_message(EchoKind::Reply, ident, 77, b"payload");
        };
        vec![request.reply(other)]
    });
    case("a reply by another", 206, 1, b"payload", as_it_is, |request| vec![request.reply(|d| d.source = ROUTER)]);
    case("a reply with a code", 207, 1, b"payload", as_it_is, |request| vec![request.reply(|d| d.payload[1] = 1)]);

    // Errors from outside.
    case("time exceeded", 300, 1, b"payload", as_it_is, |request| vec![request.error([11, 0], 0, &request.bytes(&[]))]);
    case(
        "time exceeded, no DF",
        301,
        1,
        b"payload",
        |d| d.dont_fragment = false,
        |request| vec![request.error([11, 0], 0, &request.bytes(&[]))],
    );
    case("unreachable, the shortest quote", 302, 1, b"payload", as_it_is, |request| {
        vec![request.error([3, 1], 0, &request.bytes(&[])[..28])]
    });
    case("fragmentation needed", 303, 1, &long, as_it_is, |request| {
        vec![request.error([3, 4], 1400, &request.bytes(&[])[..548])]
    });
    case("a parameter problem", 304, 1, b"payload", as_it_is, |request| {
        vec![request.error([12, 0], 20 << 24, &request.bytes(&[]))]
    });
    case("an error with extensions", 305, 1, b"payload", as_it_is, |request| {
        let mut quote = request.bytes(&[]);
        quote.resize(128, 0);
        quote.extend([0x20, 0, 0xAB, 0xCD, 0, 8, 1, 1, 0, 0x3A, 0xE1, 0x40]);
        vec![request.error([11, 0], 32 << 16, &quote)]
    });
    case(
        "an error about options",
        306,
        1,
        b"payload",
        |d| d.options = vec![1; 12],
        |request| vec![request.error([11, 0], 0, &request.bytes(&[]))],
    );
    case("an error about zeroes", 0, 2, &[0; 32], as_it_is, |request| {
        vec![request.error([11, 0], 0, &request.bytes(&[]))]
    });
    case("a damaged error", 307, 1, b"payload", as_it_is, |request| {
        let mut message = error_message(11, 0, 0, &request.bytes(&[]));
        message[2] ^= 0x10;
        vec![request.outer(message)]
    });
    case("a quote with a stale checksum", 308, 1, b"payload", as_it_is, |request| {
        vec![request.error([11, 0], 0, &request.bytes(&[8]))]
    });
    case("a quote with a damaged message", 309, 1, b"payload", as_it_is, |request| {
        vec![request.error([11, 0], 0, &request.bytes(&[30]))]
    });
    case("a quote cut short", 310, 1, b"payload", as_it_is, |request| {
        [20, 22, 26, 27].map(|length| request.error([11, 0], 0, &request.bytes(&[])[..length])).into()
    });
    case("a quote of another ident", 311, 1, b"payload", as_it_is, |request| {
        vec![request.error([11, 0], 0, &request.bytes(&[24]))]
    });
    case("a quote of another remote", 312, 1, b"payload", as_it_is, |request| {
        vec![request.error([11, 0], 0, &request.bytes(&[19]))]
    });
    case("a quote of another sequence", 313, 1, b"payload", as_it_is, |request| {
        vec![request.error([11, 0], 0, &request.bytes(&[27]))]
    });
    case("source quench", 314, 1, b"payload", as_it_is, |request| vec![request.error([4, 0], 0, &request.bytes(&[]))]);
    case("an error twice", 315, 1, b"payload", as_it_is, |request| {
        let error = request.error([11, 0], 0, &request.bytes(&[]));
        vec![error.clone(), error]
    });
    case("an error, then the reply", 316, 1, b"payload", as_it_is, |request| {
        vec![request.error([11, 0], 0, &request.bytes(&[])), request.reply(|_| {})]
    });
    case("the reply, then an error", 317, 1, b"payload", as_it_is, |request| {
        vec![request.reply(|_| {}), request.error([11, 0], 0, &request.bytes(&[]))]
    });
    cases
}

/// Both ends of one way through.
struct Ends<'s> {
    scene: &'s Scene,
    client: Ear,
    remote: Ear,
    /// Send whole datagrams.
    client_mouth: Socket,
    remote_mouth: Socket,
}

/// What one case looked like: at the remote, at the client, and at the remote afterwards.
struct Seen([Vec<Vec<u8>>; 3]);

const PLACES: [&str; 3] = ["at the remote", "at the client", "at the remote afterwards"];

impl<'s> Ends<'s> {
    fn of(scene: &'s Scene) -> Ends<'s> {
        scene.internet().sysctl(&[("net/ipv4/icmp_echo_ignore_all", "1")]).expect("a sysctl of the lab");
        let (client, remote) = (scene.client(0), scene.internet());
        Ends {
            scene,
            client: Ear::at(client, scene.client_address(0)),
            remote: Ear::at(remote, scene.remote(0)),
            client_mouth: mouth(client),
            remote_mouth: mouth(remote),
        }
    }

    fn play(&self, case: &Case) -> Seen {
        let ident = Echo::check(&case.request.payload[..]).map_or(1, |echo| echo.ident());
        say(&self.client_mouth, &case.request.build());
        let (outside, marker) = self.until_marker(ident, MARKERS[0]);
        for packet in &outside {
            if let Ok(request) = Ipv4::check(packet.clone())
                && Echo::check(request.payload()).is_ok()
            {
                (case.answers)(&Request(request)).iter().for_each(|answer| say(&self.remote_mouth, answer));
            }
        }
        say(&self.remote_mouth, &marker.reply(|_| {}));
        let mut inside = Vec::new();
        loop {
            let packet = self.client.packet();
            let is_marker = sequence_of(&packet) == Some(MARKERS[0]) && packet[20] == 0;
            if is_marker {
                break;
            }
            inside.push(packet);
        }
        let (afterwards, _) = self.until_marker(ident, MARKERS[1]);
        Seen([outside, inside, afterwards])
    }

    /// Sends a marker from the client; what the remote hears before it, and the marker.
    fn until_marker(&self, ident: u16, sequence: u16) -> (Vec<Vec<u8>>, Request) {
        let (client, remote) = (self.scene.client_address(0), self.scene.remote(0));
        let message = echo_message(EchoKind::Request, ident, sequence, b"marker");
        say(&self.client_mouth, &Datagram::new(client, remote, ICMP, message).build());
        let mut heard = Vec::new();
        loop {
            let packet = self.remote.packet();
            if sequence_of(&packet) == Some(sequence) {
                return (heard, Request(Ipv4::check(packet).expect("an IPv4 packet")));
            }
            heard.push(packet);
        }
    }
}

fn mouth(namespace: &Namespace) -> Socket {
    let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
    namespace.run(open).expect("the namespace can be entered").expect("raw sockets take root: scripts/test")
}

fn say(mouth: &Socket, datagram: &[u8]) {
    let to = Ipv4::check(datagram).expect("an IPv4 packet").destination();
    let sent = mouth.send_to(datagram, &SocketAddrV4::new(to, 0).into());
    assert!(sent.is_ok() || is_refused_for_its_options(&sent), "{sent:?}: {datagram:02x?}");
}

/// A kernel that reads the options of what it is given may refuse them.
fn is_refused_for_its_options(sent: &io::Result<usize>) -> bool {
    sent.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

fn sequence_of(packet: &[u8]) -> Option<u16> {
    let packet = Ipv4::check(packet).ok()?;
    Some(Echo::check(packet.payload()).ok()?.sequence())
}

/// A packet as fields with their values. `outside`: its ident is the translation's choice.
fn fields(packet: &[u8], outside: bool) -> Vec<(String, String)> {
    let packet = Ipv4::check(packet).expect("an IPv4 packet");
    let mut fields = header_fields("", &packet);
    fields.extend(message_fields("", packet.payload(), outside));
    let is_error = is_error(packet.payload());
    if let (true, Some(quote)) = (is_error, packet.payload().get(8..)) {
        // The quote may be cut: what it says of its length is one of the fields.
        let mut whole = quote.to_vec();
        whole.resize(quote.len().max(20), 0);
        let header = usize::from(whole[0] & 15) * 4;
        let stated = [whole[2], whole[3]];
        let length = u16::try_from(whole.len()).expect("no longer than its packet");
        whole[2..4].copy_from_slice(&length.to_be_bytes());
        fields.push(("quoted length".into(), format!("{} of {stated:?}", quote.len())));
        fields.push(("quoted header checksum".into(), format!("{:02x?}", quote.get(10..12))));
        if let Ok(quoted) = Ipv4::check(&whole[..]) {
            fields.extend(header_fields("quoted ", &quoted));
        }
        fields.extend(message_fields("quoted ", quote.get(header..).unwrap_or(&[]), outside));
    }
    fields
}

fn header_fields<B: AsRef<[u8]>>(prefix: &str, packet: &Ipv4<B>) -> Vec<(String, String)> {
    // Whoever makes an error in the lab chooses its identification.
    let identification = match packet.identification() {
        own @ (0 | IDENTIFICATION | 0x1234) => format!("{own:#06x}"),
        _ => "another".to_owned(),
    };
    [
        ("source", packet.source().to_string()),
        ("destination", packet.destination().to_string()),
        ("TOS", packet.tos().to_string()),
        ("identification", identification),
        ("DF", packet.dont_fragment().to_string()),
        ("TTL", packet.ttl().to_string()),
        ("options", format!("{:?}", packet.options())),
    ]
    .map(|(name, value)| (format!("{prefix}{name}"), value))
    .into()
}

fn is_error(message: &[u8]) -> bool {
    matches!(message.first(), Some(3 | 4 | 11 | 12))
}

fn message_fields(prefix: &str, message: &[u8], outside: bool) -> Vec<(String, String)> {
    let word = |at: usize| message.get(at..at + 2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let ident = word(4).filter(|_| outside && !is_error(message));
    // What an error quotes has fields of its own.
    let end = if is_error(message) { 8 } else { message.len() };
    // What the checksum would be for ident 0.
    let check = word(2).map(|check| ident.map_or(check, |ident| checksum::update(check, ident, 0)));
    [
        ("type and code", format!("{:?}", message.get(..2))),
        ("ICMP checksum", format!("{check:04x?}")),
        ("ident", ident.map_or_else(|| format!("{:04x?}", word(4)), |_| "whichever".to_owned())),
        ("what follows", format!("{:02x?}", message.get(6..end))),
    ]
    .map(|(name, value)| (format!("{prefix}{name}"), value))
    .into()
}

/// In which fields the two differ.
fn differences(case: &Case, [kernel, echogate]: &[Seen; 2]) -> Vec<(&'static str, String, String)> {
    let mut found = Vec::new();
    for (place, (kernel, echogate)) in PLACES.iter().zip(kernel.0.iter().zip(&echogate.0)) {
        if kernel.len() != echogate.len() {
            let what = format!("packets {place}");
            found.push((
                case.name,
                what,
                format!("{} and {}: {kernel:02x?} {echogate:02x?}", kernel.len(), echogate.len()),
            ));
            continue;
        }
        let outside = *place != PLACES[1];
        for (kernel, echogate) in kernel.iter().zip(echogate) {
            for (one, other) in fields(kernel, outside).into_iter().zip(fields(echogate, outside)) {
                if one != other {
                    found.push((case.name, format!("{} {place}", one.0), format!("{} and {}", one.1, other.1)));
                }
            }
        }
    }
    found
}

fn echogate_differs_from_the_masquerade_only_where_the_documentation_says_so(setup: &Setup) {
    let options = LabOptions { clients: 1, remotes: 1, routers: 1, ..LabOptions::default() };
    let scenes = [(); 2].map(|()| Scene::with(&options));
    nft(
        scenes[0].gateway(),
        "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan masquerade; }; }",
    );
    let gateway = scenes[1].serve(setup);
    let ends = scenes.each_ref().map(Ends::of);
    let cases = corpus(scenes[0].client_address(0), scenes[0].remote(0));
    let found: Vec<_> =
        cases.iter().flat_map(|case| differences(case, &ends.each_ref().map(|ends| ends.play(case)))).collect();
    let totals = gateway.stop();
    let what_was_seen = found.iter().map(|difference| format!("{difference:?}\n")).collect::<String>();
    let found: BTreeSet<(&str, &str)> = found.iter().map(|(case, what, _)| (*case, what.as_str())).collect();
    let allowed: BTreeSet<(&str, &str)> = ALLOWED.iter().map(|(case, what, _)| (*case, *what)).collect();
    assert_eq!(found, allowed, "{what_was_seen}{}", totals.printed);
    // It was Echogate, and not the kernel's own path.
    assert!(totals.total("to outside") > 2 * 50, "{}", totals.printed);
}

#[test]
fn every_difference_that_is_allowed_has_its_line_in_the_documentation_and_the_other_way_round() {
    // Up to the differences of the pinger, which are no packets'.
    let (gateways, _) = include_str!("../../docs/differences.md").split_once("\n## ").expect("a section a part");
    let rows = gateways.lines().filter_map(|line| line.strip_prefix("| "));
    let documented: BTreeSet<&str> = rows.filter_map(|row| row.split(" |").next()).collect();
    let expected: BTreeSet<&str> = ALLOWED.iter().map(|(_, _, why)| *why).chain(["what", "---"]).collect();
    assert_eq!(documented, expected);
}
