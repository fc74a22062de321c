//! What people ping and trace with, through three routers and with every flag that could go wrong: Debian's own tools.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use echogate::lab::{GATEWAY_OUTSIDE, LabOptions, Namespace, responder};
use echogate::wire::ipv4::Ipv4;

use crate::ear::Ear;
use crate::in_every_setup;
use crate::process::{Echogate, Pipe};
use crate::scene::{Scene, Setup, run, wait_until};

in_every_setup!(
    traceroute_and_mtr_show_every_hop_across_three_routers,
    ping_with_a_ttl_says_which_hop_was_the_last,
    a_smaller_mtu_further_on_is_told_and_then_kept_to,
    pings_with_options_tos_ident_0_and_a_flood_come_back,
    a_thousand_hosts_are_pinged_at_once,
    what_is_damaged_stays_damaged_and_harms_nobody,
    a_dead_net_is_unreachable_at_once,
);

/// The gateway's device towards the client, three routers, the remote.
const HOPS: [&str; 5] = ["10.66.0.1", "198.18.0.254", "198.18.1.254", "198.18.2.254", "198.18.3.2"];

fn behind(routers: usize) -> Scene {
    Scene::with(&LabOptions { clients: 2, remotes: 3, routers, ..LabOptions::default() })
}

fn is_address(word: &str) -> bool {
    word.parse::<Ipv4Addr>().is_ok()
}

/// RFC 5508 REQ-4, RFC 1812, section 5.3.1.
fn traceroute_and_mtr_show_every_hop_across_three_routers(setup: &Setup) {
    let scene = behind(3);
    let gateway = scene.serve(setup);
    let remote = scene.remote(0);

    let text = run(scene.client(0), &format!("traceroute -I -n -q 3 -w 10 -m 8 {remote}"));
    let hops = text.lines().skip(1).map(|line| line.split_whitespace().filter(|word| is_address(word)));
    let hops: Vec<Vec<&str>> = hops.map(Iterator::collect).collect();
    assert_eq!(hops, HOPS.map(|hop| vec![hop]), "{text}");
    assert!(!text.contains('*'), "a probe was lost: {text}");

    let text = run(scene.client(1), &format!("mtr --report --report-cycles 5 --interval 0.2 --no-dns {remote}"));
    let lines = text.lines().filter(|line| line.contains("|--")).map(|line| line.split_whitespace().collect());
    let hops: Vec<Vec<&str>> = lines.collect();
    let seen: Vec<[&str; 2]> = hops.iter().map(|words| [words[1], words[2]]).collect();
    assert_eq!(seen, HOPS.map(|hop| [hop, "0.0%"]), "{text}");

    // Of each tool's probes those of hops two to four ended in errors from outside; the first hop's never came to us.
    let totals = gateway.stop();
    assert_eq!(totals.total("errors passed on"), 3 * 3 + 3 * 5, "{}", totals.printed);
    assert_eq!(totals.total("dropped"), 0, "{}", totals.printed);
}

/// RFC 1812, section 5.3.1.
fn ping_with_a_ttl_says_which_hop_was_the_last(setup: &Setup) {
    let scene = behind(3);
    let _gateway = scene.serve(setup);
    for (ttl, hop) in (1..).zip(&HOPS[..4]) {
        let pings = scene.ping(0, &format!("-c 1 -W 10 -t {ttl} {}", scene.remote(0)));
        assert!(pings.text.contains(&format!("From {hop} icmp_seq=1 Time to live exceeded")), "{}", pings.text);
    }
    let pings = scene.pings(0, 1, scene.remote(0), "-t 5");
    assert!(pings.all_came_back(1), "{}", pings.text);
    // Five routers there, five back, from Linux's 64: each counted once.
    assert!(pings.text.contains("ttl=60"), "{}", pings.text);
}

/// RFC 1191, section 4: the next-hop MTU is the client's to know. 1,472 bytes of payload are a datagram of 1,500.
fn a_smaller_mtu_further_on_is_told_and_then_kept_to(setup: &Setup) {
    let scene = behind(3);
    let grow = |namespace, device: &str| run(namespace, &format!("ip link set {device} mtu 1600"));
    let routers = scene.lab().routers();
    for (namespace, device) in [(scene.client(0), "eth0"), (scene.gateway(), "g0"), (scene.gateway(), "wan")] {
        grow(namespace, device);
    }
    for (near, far) in [(&routers[0], "far"), (&routers[1], "far")] {
        grow(near, "eth0");
        grow(near, far);
    }
    grow(&routers[2], "eth0");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), "[inside]\nmtu = 1600\n").expect("it is written");
    let mut arguments = scene.arguments(setup);
    arguments.extend(["--config".to_owned(), file.path().display().to_string()]);
    let gateway = Echogate::serve(scene.gateway(), &arguments);

    let remote = scene.remote(0);
    let ping = |size| scene.ping(0, &format!("-c 1 -W 10 -M do -s {size} {remote}"));
    let pings = ping(1473);
    assert!(pings.text.contains("From 198.18.2.254 icmp_seq=1 Frag needed and DF set (mtu = 1500)"), "{}", pings.text);
    let pings = ping(1472);
    assert!(pings.all_came_back(1), "{}", pings.text);
    let route = run(scene.client(0), &format!("ip route get {remote}"));
    assert!(route.contains("mtu 1500"), "the client's kernel took the error for its own: {route}");
    let route = run(scene.gateway(), &format!("ip route get {remote}"));
    assert!(!route.contains("mtu"), "the gateway's host did not: {route}");
    assert_eq!(gateway.stop().total("errors passed on"), 1);
}

/// RFC 791's options, TOS; RFC 792: ident 0 is as good as any.
/// RFC 1812, section 5.3.13.
fn pings_with_options_tos_ident_0_and_a_flood_come_back(setup: &Setup) {
    let scene = behind(1);
    let _gateway = scene.serve(setup);
    let remote = scene.remote(0);
    let ear = Ear::at(scene.internet(), remote);

    let pings = scene.pings(0, 2, remote, "-Q 0xb8");
    assert!(pings.all_came_back(2), "{}", pings.text);
    let heard = Ipv4::check(ear.packet()).expect("an IPv4 packet");
    assert_eq!((heard.source(), heard.tos()), (GATEWAY_OUTSIDE, 0xb8));

    // The kernel forwards a request into the device, whose address it records; the send socket leaves the options alone.
    // The reply is for the gateway's host, which records itself, and then is forwarded again.
    let pings = scene.pings(0, 1, remote, "-R -n");
    assert!(pings.all_came_back(1), "{}", pings.text);
    let words = pings.text.split_whitespace().skip_while(|word| *word != "RR:").take_while(|word| *word != "---");
    let recorded: Vec<&str> = words.filter(|word| is_address(word)).collect();
    let expected = [
        "10.66.0.2",
        "192.0.0.8",
        "198.18.1.1",
        "198.18.1.2",
        "198.18.1.2",
        "198.18.0.254",
        "198.18.0.1",
        "10.66.0.1",
        "10.66.0.2",
    ];
    assert_eq!(recorded, expected, "{}", pings.text);

    for stamps in ["tsonly", "tsandaddr", &format!("tsprespec {remote}")] {
        let pings = scene.pings(0, 1, remote, &format!("-T {stamps} -n"));
        assert!(pings.all_came_back(1) && pings.text.contains("TS:"), "{stamps}: {}", pings.text);
    }

    let pings = scene.pings(0, 2, remote, "-e 0");
    assert!(pings.all_came_back(2), "{}", pings.text);

    // With -w it goes on until so many have been answered, and does not say which; our own pinger's must all be.
    let pings = scene.ping(1, &format!("-f -c 500 -w 30 {remote}"));
    assert!(pings.received() == 500 && pings.is_flawless(), "{}", pings.text);
    let pings = scene.ping_to_the_last(1, &format!("-q -f -c 500 {remote}"));
    assert!(pings.all_came_back(500), "{}", pings.text);
}

/// RFC 5508 REQ-1a: one mapping serves them all.
fn a_thousand_hosts_are_pinged_at_once(setup: &Setup) {
    let scene = behind(1);
    run(scene.internet(), "ip route add local 198.18.8.0/22 dev lo");
    let gateway = scene.serve(setup);
    // Without a second try: each host answers the only request.
    let text = run(scene.client(0), "fping -q -s -i 2 -r 0 -t 15000 -g 198.18.8.1 198.18.11.232 2>&1");
    for what in ["1000 targets", "1000 alive", "1000 ICMP Echos sent", "1000 ICMP Echo Replies received"] {
        assert!(text.contains(what), "{what}: {text}");
    }
    let totals = gateway.stop();
    assert_eq!((totals.total("replies delivered"), totals.total("mappings at most")), (1000, 1), "{}", totals.printed);
}

/// A wrong ICMP checksum is the remote's to see, and not mended on the way.
fn what_is_damaged_stays_damaged_and_harms_nobody(setup: &Setup) {
    let scene = behind(1);
    let gateway = scene.serve(setup);
    let remote = scene.remote(0);
    let hping = |flags| run(scene.client(0), &format!("hping3 -1 -c 5 -i u50000 {flags} {remote} 2>&1 || true"));
    let text = hping("-b");
    assert!(text.contains("5 packets transmitted, 0 packets received"), "{text}");
    let counted = responder::counters(scene.internet()).expect("counters");
    assert_eq!((counted.requests_in, counted.checksum_errors), (0, 5));
    // Intact ones pass beside. hping3 waits a second at its end: on a busy machine the counters know more.
    let text = hping("");
    assert!(text.contains("5 packets transmitted"), "{text}");
    let arrived = || responder::counters(scene.internet()).expect("counters").replies_out == 5;
    wait_until("the remote has answered five", arrived);
    let totals = gateway.stop();
    assert_eq!((totals.total("to outside"), totals.total("replies delivered")), (10, 5), "{}", totals.printed);
    assert_eq!(totals.total("echoes outstanding"), 5, "nobody answers those: {}", totals.printed);
}

/// The kernel has no route for the request: the client is told by the gateway, as fast as it can be. How long the gateway
/// has it is what the kernel's time stamps say, from the request on the TUN to the error on the client's link; what of that its
/// workers waited for a CPU is the machine's, and told apart.
/// RFC 1812, section 5.2.7.1.
#[expect(clippy::print_stdout, reason = "figures for who runs it with --nocapture")]
fn a_dead_net_is_unreachable_at_once(setup: &Setup) {
    const ASKED: u16 = 30;
    let scene = behind(0);
    let gateway = scene.serve(setup);
    run(scene.gateway(), "ip route del default");
    let capture = Capture::of(scene.gateway());
    let client = Ear::at(scene.client(0), scene.client_address(0));
    let mut waits = Vec::new();
    for sequence in 1..=ASKED {
        // No faster than a client may be told.
        thread::sleep(Duration::from_millis(110));
        let waited_before = waited_for_a_cpu(gateway.id());
        let asked = Instant::now();
        client.ask(Ipv4Addr::new(203, 0, 113, 7), 1, sequence, b"is anybody there?");
        let told = client.packet();
        let round_trip = asked.elapsed();
        let told = Ipv4::check(told).expect("an IPv4 packet");
        assert_eq!((told.source(), &told.payload()[..2]), (GATEWAY_OUTSIDE, &[3, 0][..]));
        waits.push((round_trip, waited_for_a_cpu(gateway.id()) - waited_before));
    }
    let came = capture.times(ASKED.into(), ["echogate0 Out", "echo request"]);
    let left = capture.times(ASKED.into(), ["g0    Out", "unreachable"]);
    assert_eq!((came.len(), left.len()), (ASKED.into(), ASKED.into()), "each once");
    println!("dead net ({} on {} workers), each of {ASKED} in microseconds:", setup.io, setup.workers);
    println!("  for ping  in the gateway  of that waiting for a CPU");
    let mut own = Vec::new();
    for ((round_trip, waited), (came, left)) in waits.into_iter().zip(came.into_iter().zip(left)) {
        let in_gateway = left.saturating_sub(came);
        println!("  {:8}  {:14}  {:25}", round_trip.as_micros(), in_gateway.as_micros(), waited.as_micros());
        own.push(in_gateway.saturating_sub(waited));
    }
    own.sort_unstable();
    let (median, longest) = (own[own.len() / 2], own[own.len() - 1]);
    println!("  the gateway's own part: {median:?} in the median, {longest:?} at most");
    assert!(median < Duration::from_millis(10), "{own:?}");
    assert_eq!(gateway.stop().total("errors sent to clients"), u64::from(ASKED));
}

/// How long the gateway's workers have waited for a CPU, all together (schedstat, in proc(5)'s task directory).
fn waited_for_a_cpu(process: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let of_workers = tasks
        .map(|task| task.expect("a task").path())
        .filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("worker-")));
    let waited = of_workers.map(|task| {
        let text = fs::read_to_string(task.join("schedstat")).expect("this kernel counts it");
        text.split(' ').nth(1).and_then(|waited| waited.parse::<u64>().ok()).expect("nanoseconds")
    });
    Duration::from_nanos(waited.sum())
}

/// The ICMP that passes a host, on every device, with the kernel's time stamps, until dropped.
pub(crate) struct Capture {
    tcpdump: Child,
    printed: Pipe,
}

impl Capture {
    pub(crate) fn of(namespace: &Namespace) -> Capture {
        let mut command = Command::new("tcpdump");
        command.args(["-i", "any", "-n", "-tt", "-l", "-Z", "root", "--immediate-mode", "icmp"]);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = namespace.run(|| command.spawn()).expect("the namespace can be entered");
        let mut tcpdump = child.expect("tcpdump is installed: scripts/test does that");
        let said = Pipe::read(tcpdump.stderr.take().expect("piped"));
        let printed = Pipe::read(tcpdump.stdout.take().expect("piped"));
        wait_until("tcpdump listens", || said.text().contains("listening on"));
        Capture { tcpdump, printed }
    }

    /// The times of the lines that say all of this, once there are so many.
    pub(crate) fn times(&self, count: usize, words: [&str; 2]) -> Vec<Duration> {
        let times = || -> Vec<Duration> {
            let text = self.printed.text();
            // The last may not be whole yet.
            let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let lines = lines.filter(|line| words.iter().all(|word| line.contains(word)));
            lines.filter_map(|line| line.split(' ').next()?.parse().ok()).map(Duration::from_secs_f64).collect()
        };
        wait_until(&format!("{count} times {words:?}"), || times().len() >= count);
        times()
    }

    /// Where packets to this address have been seen so far: devices, and in which direction.
    pub(crate) fn ways_to(&self, address: Ipv4Addr) -> Vec<String> {
        let (text, to) = (self.printed.text(), format!(" > {address}: "));
        let seen = text.lines().filter(|line| line.contains(&to));
        seen.map(|line| line.split_whitespace().skip(1).take(2).collect::<Vec<_>>().join(" ")).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Harmless after its end: the number is kept until it has been waited for.
        drop(self.tcpdump.kill());
        drop(self.tcpdump.wait());
    }
}
