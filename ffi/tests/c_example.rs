//! The example in C, built with all warnings as errors, pings through the lab: from the gateway's namespace, by a raw socket, to a
//! remote that has no route to the client. As root.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use echogate::lab::{Lab, LabOptions, Namespace};
use tempfile::TempDir;

const CLIENT: &str = "10.66.0.2";

/// Where cargo has put the libraries that C links: beside this test.
fn libraries() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn build(directory: &TempDir, link: &[&str]) -> PathBuf {
    let ffi = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = directory.path().join("ping_through");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-I"]).arg(ffi.join("include"));
    compiler.arg(ffi.join("examples/ping_through.c")).arg("-o").arg(&program);
    let output =
        compiler.arg("-L").arg(libraries()).args(link).output().expect("cc; scripts/install-test-tools has it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

fn run(namespace: &Namespace, program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).env("LD_LIBRARY_PATH", libraries());
    namespace.run(|| command.output()).unwrap().unwrap()
}

fn pings(link: &[&str]) {
    let lab = Lab::build(&LabOptions::default()).expect("it makes network namespaces: run it as root (scripts/test)");
    let (gateway, remote) = ("198.18.0.1", lab.remotes()[0].to_string());
    let directory = TempDir::new().unwrap();
    let program = build(&directory, link);
    let output = run(lab.gateway(), &program, &[CLIENT, gateway, &remote]);
    let (printed, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}{complaints}");
    let reply = format!("36 bytes from {remote} for {CLIENT}: type 0, ident 1, sequence 7, echogate");
    assert_eq!(printed.lines().collect::<Vec<_>>(), ["verdict 2 (none), errno 0, 0 bytes to tell the client", &reply]);

    // What is not forwarded, and what the kernel does not send: each as its words say.
    let refused = run(lab.gateway(), &program, &[CLIENT, gateway, "127.0.0.1"]);
    assert_eq!(refused.stdout, b"verdict 6 (remote_refused), errno 0, 0 bytes to tell the client\n");
    let nowhere = run(&lab.clients()[0].namespace, &program, &[CLIENT, "198.51.100.9", &remote]);
    let complaint = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(complaint.contains("outside: the set-up failed") && complaint.contains("remedy: "), "{complaint}");
    let wrong = run(lab.gateway(), &program, &["10.66.0.2/24", gateway, &remote]);
    let complaint = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(complaint.contains("clients: 10.66.0.2/24 has host bits set; the prefix is 10.66.0.0/24"), "{complaint}");
}

#[test]
fn the_c_example_pings_through_the_lab() {
    pings(&["-lechogate_c"]);
}

#[test]
fn the_c_example_pings_with_the_library_linked_into_it() {
    pings(&["-l:libechogate_c.a", "-lgcc_s", "-lpthread", "-lm", "-ldl"]);
}
