//! The control socket: who asks is answered, and who misbehaves is bounded, while packets go on.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::in_every_setup;
use crate::process::Echogate;
use crate::scene::{PATIENCE, Scene, Setup, run, wait_until};
use crate::serves::limits_off;

const ANY: Setup = Setup { io: "auto", workers: 2 };

in_every_setup!(its_numbers_can_be_asked_for);

fn its_numbers_can_be_asked_for(setup: &Setup) {
    let scene = Scene::new(1);
    let gateway = scene.serve(setup);
    scene.assert_pings("a gateway that is looked at");
    let asked = gateway.ask(&["stats", "--json"]);
    let stats: Value = serde_json::from_slice(&asked.stdout).unwrap_or_else(|error| panic!("{error}: {asked:?}"));
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    assert_eq!((&stats["inside_in"]["packets"], &stats["delivered"]["packets"]), (&3.into(), &3.into()), "{stats}");
    assert_eq!((&stats["workers"], &stats["healthy"]), (&setup.workers.into(), &true.into()), "{stats}");
    let engine = if setup.io == "uring" { "io_uring" } else { "syscalls" };
    assert_eq!((stats["engine"].as_str(), stats["device"].as_str()), (Some(engine), Some("echogate0")), "{stats}");

    let people = text(&gateway.ask(&["stats", "--device", "echogate0"]));
    assert!(people.starts_with("serving pings of 10.66.0.0/24 from 198.18.0.1"), "{people}");
    assert!(people.contains("every worker moves\n"), "{people}");
    assert!(people.lines().any(|line| line.split_whitespace().eq(["replies", "delivered", "3", "252"])), "{people}");

    let mode = fs::metadata(gateway.control_socket()).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let socket = gateway.control_socket();
    gateway.stop();
    assert!(!socket.exists(), "it goes with its gateway");
}

#[test]
fn who_asks_no_gateway_is_told_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("none.sock");
    let mut command = Echogate::command("stats");
    command.args(["--control", path.to_str().expect("text")]);
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot reach a gateway at") && said.contains("remedy: is it running?"), "{said}");
    let output = Echogate::command("stats").env("RUNTIME_DIRECTORY", directory.path()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("echogate: no gateway is running") && output.stdout.is_empty(), "{said}");
}

#[test]
fn without_a_control_socket_it_serves_all_the_same() {
    let scene = Scene::new(1);
    let off = ["--control", "none"].map(str::to_owned).to_vec();
    let gateway = Echogate::serve(scene.gateway(), &[scene.arguments(&ANY), off].concat());
    scene.assert_pings("without one");
    assert!(!gateway.control_socket().exists());
    gateway.stop();
}

#[test]
fn what_a_killed_gateway_left_is_taken_over_and_another_ones_is_not() {
    let scene = Scene::new(1);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("e.sock");
    let at = ["--control".to_owned(), path.to_str().expect("text").to_owned()].to_vec();
    let arguments = [scene.arguments(&ANY), at].concat();
    Echogate::serve(scene.gateway(), &arguments).killed();
    assert!(path.exists(), "it had no time to clean up");
    wait_until("its device is gone", || !crate::scene::run(scene.gateway(), "ip link").contains("echogate0"));
    let gateway = Echogate::serve(scene.gateway(), &arguments);
    let second = Echogate::start(scene.gateway(), Echogate::command("run").args(&arguments)).ended();
    second.assert_refused(&["is another gateway's", "remedy: "]);
    assert!(UnixStream::connect(&path).is_ok());
    gateway.stop();
}

#[test]
fn garbage_half_requests_and_clients_that_never_read_are_bounded_and_packets_go_on() {
    let scene = Scene::new(1);
    let gateway = scene.serve(&ANY);
    let connect = || UnixStream::connect(gateway.control_socket()).expect("it listens");

    // Not a word of the protocol.
    for garbage in [&b"\n"[..], b"stats\n", b"\x00\xff\xfe\n", b"{\"v\":1,\"verb\":\"juggle\"}\n"] {
        let mut stream = connect();
        stream.write_all(garbage).expect("it takes it");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("it answers");
        let answer: Value = serde_json::from_str(&answer).expect("a line of JSON");
        assert!(answer["error"].is_string() && answer["remedy"].is_string(), "{answer}");
    }
    // Longer than any request: told, and cut off.
    let mut long = connect();
    let sent = long.write_all(&[b'x'; 100_000]);
    assert!(sent.is_ok() || sent.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe));
    let mut answer = String::new();
    // The rest of what was sent lies unread when it hangs up, and that is told as a reset.
    drop(long.read_to_string(&mut answer));
    assert!(answer.contains("at most 4096 bytes"), "{answer}");

    // Far more connections than it keeps; half a request each, and some that ask and never read.
    let idle: Vec<UnixStream> = (0..100)
        .map(|number| {
            let mut stream = connect();
            let part: &[u8] = if number % 2 == 0 { b"{\"v\":1,\"ver" } else { b"{\"v\":1,\"verb\":\"stats\"}\n" };
            // It may have made room for a later one already.
            drop(stream.write_all(part));
            stream
        })
        .collect();
    let mut deaf = connect();
    deaf.set_write_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    // Until it takes no more: what waits for an answer to be read waits on this side.
    while deaf.write_all(b"{\"v\":1,\"verb\":\"stats\"}\n").is_ok() {}
    scene.assert_pings("while a hundred hold it up");
    let asked = gateway.ask(&["stats", "--json"]);
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");

    // The one that does not read is hung up on.
    wait_until("it is hung up on", || matches!(deaf.write(b"\n"), Err(error) if error.kind() == ErrorKind::BrokenPipe));
    drop(idle);
    scene.assert_pings("after them");
    gateway.stop();
}

/// The number of a thread of the packet process.
fn thread_called(process: u32, name: &str) -> u32 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let mut threads = threads.map(|thread| thread.expect("it can be listed").path());
    let is_it = |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|found| found.trim_end() == name);
    let path = threads.find(|path| is_it(path)).expect("it has that thread");
    path.file_name().and_then(|number| number.to_str()?.parse().ok()).expect("a number")
}

/// How much CPU time a thread has used, in the kernel's ticks, of which there are a hundred a second.
fn ticks_of(process: u32, thread: u32) -> u64 {
    let line = fs::read_to_string(format!("/proc/{process}/task/{thread}/stat")).expect("it runs");
    let fields = line.rsplit(')').next().expect("fields behind the name").split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

#[test]
fn without_a_descriptor_left_nobody_is_accepted_nothing_spins_and_packets_go_on() {
    let scene = Scene::new(1);
    let gateway = scene.serve(&ANY);
    let packets = gateway.packets_id();
    let control = thread_called(packets, "control");
    let limits = fs::read_to_string(format!("/proc/{packets}/limits")).expect("it runs");
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    let limit = limit.split_whitespace().next().expect("a number");
    let limit_to = |number: &str| run(scene.gateway(), &format!("prlimit --pid {packets} --nofile={number}:"));
    // Those that are open stay; there is no number for another one.
    limit_to("1");
    let before = ticks_of(packets, control);
    let mut stream = UnixStream::connect(gateway.control_socket()).expect("it waits to be accepted");
    stream.write_all(b"{\"v\":1,\"verb\":\"stats\"}\n").expect("it takes it");
    stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a time-out");
    let unanswered = stream.read(&mut [0]).expect_err("nobody accepts");
    assert_eq!(unanswered.kind(), ErrorKind::WouldBlock);
    let spent = ticks_of(packets, control) - before;
    assert!(spent < 30, "{spent} hundredths of three seconds were spent on accepting nobody");
    scene.assert_pings("while nobody can be accepted");
    limit_to(limit);
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("it is answered");
    assert!(line.starts_with("{\"ok\":{"), "{line}");
    gateway.stop();
}

#[test]
fn several_questions_on_one_connection_are_answered_in_their_order() {
    let scene = Scene::new(1);
    let gateway = scene.serve(&ANY);
    let mut stream = UnixStream::connect(gateway.control_socket()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
        .write_all(b"{\"v\":1,\"verb\":\"stats\"}\n{\"v\":1,\"verb\":\"juggle\"}\n{\"v\":2}\n")
        .expect("it takes them");
    let answers: Vec<Value> = BufReader::new(stream)
        .lines()
        .take(3)
        .map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON"))
        .collect();
    assert!(answers[0]["ok"].is_object(), "{answers:?}");
    assert!(answers[1]["error"].as_str().is_some_and(|error| error.contains("juggle")), "{answers:?}");
    assert!(answers[2]["error"].as_str().is_some_and(|error| error.contains("version 2")), "{answers:?}");
    gateway.stop();
}

fn text(output: &Output) -> String {
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_trace_tells_what_becomes_of_one_clients_packets_and_of_nobody_elses() {
    let scene = Scene::new(2);
    let gateway = scene.serve(&ANY);
    let (traced, remote) = (scene.client_address(0), scene.remote(0));
    let mut stream = UnixStream::connect(gateway.control_socket()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
        .write_all(format!("{{\"v\":1,\"verb\":\"trace\",\"client\":\"{traced}\"}}\n").as_bytes())
        .expect("it takes it");
    let mut lines = BufReader::new(stream).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().expect("a line").expect("a line")).expect("JSON") };
    assert!(next()["ok"].is_object());

    let second = gateway.ask(&["trace", "--remote", "198.18.0.2"]);
    assert_eq!(second.status.code(), Some(2), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("somebody is tracing already"), "{second:?}");

    // The other client's go first: what comes first then is not theirs.
    assert!(scene.pings(1, 3, remote, "-e 9").all_came_back(3));
    assert!(scene.pings(0, 2, remote, "-e 7").all_came_back(2));
    let mut seen: Vec<Value> = (0..4).map(|_| next()["traced"].clone()).collect();
    // The two directions may be two workers' to tell.
    seen.sort_by_key(|packet| (packet["direction"] == "inbound", packet["sequence"].as_u64()));
    for (number, packet) in seen.iter().enumerate() {
        let outbound = number < 2;
        let words = |name: &str| packet[name].as_str().map(str::to_owned).unwrap_or_default();
        assert_eq!(packet["sequence"], (number % 2 + 1) as u64, "{seen:?}");
        assert_eq!(packet["bytes"], 84, "{seen:?}");
        if outbound {
            assert_eq!((words("source"), words("destination")), (traced.to_string(), remote.to_string()), "{seen:?}");
            assert_eq!((words("fate"), &packet["ident"]), ("forwarded".to_owned(), &Value::from(7)), "{seen:?}");
        } else {
            assert_eq!((words("source"), words("client")), (remote.to_string(), traced.to_string()), "{seen:?}");
            assert_eq!(
                (words("fate"), &packet["ident"]),
                ("delivered".to_owned(), &seen[0]["gateway_ident"]),
                "{seen:?}"
            );
        }
    }
    gateway.stop();
}

#[test]
fn a_trace_of_a_flood_is_limited_and_costs_no_packet() {
    let scene = Scene::alone(1);
    let gateway = Echogate::serve(scene.gateway(), &[scene.arguments(&ANY), limits_off()].concat());
    let mut stream = UnixStream::connect(gateway.control_socket()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let remote = scene.remote(0);
    stream
        .write_all(format!("{{\"v\":1,\"verb\":\"trace\",\"remote\":\"{remote}\"}}\n").as_bytes())
        .expect("it takes it");
    let mut lines = BufReader::new(stream).lines();
    let begun = lines.next().expect("a line").expect("a line");
    assert!(begun.contains("\"ok\""), "from here on all is told: {begun}");
    let pings = scene.ping_to_the_last(0, &format!("-q -f -c 20000 {remote}"));
    assert!(pings.all_came_back(20_000), "{}", pings.text);
    let (mut told, mut missed) = (0_u64, 0_u64);
    for line in lines {
        let line: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        told += u64::from(line["traced"].is_object());
        missed += line["missed"].as_u64().unwrap_or(0);
        if told + missed >= 40_000 {
            break;
        }
    }
    assert_eq!(told + missed, 40_000, "each request and each reply is told, or counted");
    assert!(told > 0 && missed > told, "{told} told, {missed} not");
    gateway.stop();
}

#[test]
fn the_busiest_clients_and_remotes_are_those_that_ping_most() {
    let scene = Scene::alone(3);
    let gateway = Echogate::serve(scene.gateway(), &[scene.arguments(&ANY), limits_off()].concat());
    let floods = [(0, 12_000, 1), (1, 3000, 0), (2, 64, 2)];
    std::thread::scope(|scope| {
        for (client, count, remote) in floods {
            let scene = &scene;
            scope.spawn(move || {
                let pings = scene.ping_to_the_last(client, &format!("-q -f -c {count} {}", scene.remote(remote)));
                assert!(pings.all_came_back(count), "{}", pings.text);
            });
        }
    });
    // Samples are taken in once a second.
    wait_until("it knows who is busy", || {
        let stats: Value = serde_json::from_slice(&gateway.ask(&["stats", "--json"]).stdout).expect("JSON");
        let busiest = |side: &str| -> Vec<String> {
            let busy = stats["busiest"][side].as_array().expect("a list").iter();
            busy.map(|busy| busy["address"].as_str().expect("an address").to_owned()).collect()
        };
        let (clients, remotes) = (busiest("clients"), busiest("remotes"));
        let expected_clients = [scene.client_address(0), scene.client_address(1)].map(|address| address.to_string());
        let expected_remotes = [scene.remote(1), scene.remote(0)].map(|address| address.to_string());
        clients.starts_with(&expected_clients) && remotes.starts_with(&expected_remotes)
    });
    gateway.stop();
}
