//! Running `nft`, the program that changes nftables rule sets, with a limit on how long it may take.
//!
//! The program and not its netlink protocol: rule sets are written and read as the text that administrators know, and
//! that text has stayed the same while the kernel's encoding of it has grown.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fmt};

use crate::error::SetupError;

/// nft answers within milliseconds; this is for a machine that swaps. A hung one must not hang the gateway.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// How often a running nft is looked at.
const PAUSE: Duration = Duration::from_millis(2);

/// Where administrators' programs are, whatever the caller's PATH says (`sudo` and units shorten it).
const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// How to come by nft.
pub const REMEDY: &str = "install nftables: `apt-get install nftables`, `dnf install nftables` or `apk add nftables`";

/// Why nft did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// It is not installed, could not be started, or was too slow.
    NotRun(io::Error),
    /// It ran and refused; its words.
    Refused(String),
}

impl Failure {
    /// The error of a set-up step that needed nft.
    pub fn into_setup_error(self, operation: &str) -> SetupError {
        match self {
            Failure::NotRun(error) if error.kind() == io::ErrorKind::NotFound => {
                SetupError::new(format!("{operation}: nft is not installed")).remedy(REMEDY)
            }
            Failure::NotRun(error) => SetupError::caused(format!("{operation}: running nft"), error),
            Failure::Refused(words) => {
                let error = SetupError::new(format!("{operation}: nft says: {words}"));
                match words.contains("not permitted") {
                    true => error.remedy(
                        "run as root or with CAP_NET_ADMIN; if that is so, another gateway owns this table: end it, or \
                         give this one another --device",
                    ),
                    false => error,
                }
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotRun(error) => write!(f, "running nft: {error}"),
            Failure::Refused(words) => f.write_str(words),
        }
    }
}

/// The nft program, if it is installed.
pub fn program() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(PLACES.into_iter().map(PathBuf::from))
        .map(|directory| directory.join("nft"))
        .find(|program| program.is_file())
}

/// A command that runs nft, its surroundings fixed: plain English messages, and no history file in anybody's home.
pub(super) fn command() -> Result<Command, Failure> {
    let program = program().ok_or_else(|| Failure::NotRun(io::ErrorKind::NotFound.into()))?;
    let mut command = Command::new(program);
    for (name, value) in [("LC_ALL", "C"), ("TERM", "dumb"), ("HOME", "/dev/null"), ("INPUTRC", "/dev/null")] {
        command.env(name, value);
    }
    Ok(command)
}

/// Runs nft with `arguments`, feeds it `input`, and returns what it printed.
pub fn run(arguments: &[&str], input: &str) -> Result<String, Failure> {
    let mut child = command()?
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Failure::NotRun)?;
    let mut stdin = child.stdin.take();
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    // Pipes are fed and emptied on threads of their own, so that neither side can wait for the other; killing the
    // child ends them.
    thread::scope(|scope| {
        scope.spawn(move || {
            // A child that ends early is judged by its status.
            let _ = stdin.as_mut().map(|pipe| pipe.write_all(input.as_bytes()));
        });
        let printed = scope.spawn(move || read_all(stdout.as_mut()));
        let complaints = scope.spawn(move || read_all(stderr.as_mut()));
        let deadline = Instant::now() + TIME_LIMIT;
        let status = loop {
            match child.try_wait().map_err(Failure::NotRun)? {
                Some(status) => break status,
                None if Instant::now() < deadline => thread::sleep(PAUSE),
                None => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(Failure::NotRun(io::ErrorKind::TimedOut.into()));
                }
            }
        };
        let printed = printed.join().unwrap_or_default();
        let complaints = complaints.join().unwrap_or_default();
        if status.success() { Ok(printed) } else { Err(Failure::Refused(first_error(&complaints))) }
    })
}

fn read_all(pipe: Option<&mut impl Read>) -> String {
    let mut bytes = Vec::new();
    // What was read before a failure is still worth showing.
    let _ = pipe.map(|pipe| pipe.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The first error of nft's, which repeats the whole input and underlines it.
pub(super) fn first_error(complaints: &str) -> String {
    let line = complaints.lines().find(|line| line.contains("Error:")).or_else(|| complaints.lines().next());
    let line = line.unwrap_or("(nothing)");
    let start = line.find("Error:").map_or(0, |at| at + "Error:".len());
    line.get(start..).unwrap_or(line).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nft_prints_comes_back() {
        let printed = run(&["--version"], "").expect("nft is installed: apt-get install nftables");
        assert!(printed.starts_with("nftables v"), "{printed}");
    }

    #[test]
    fn a_refusal_carries_nfts_words() {
        let refused = run(&["-c", "-f", "-"], "bogus\n").expect_err("not a command");
        assert!(matches!(&refused, Failure::Refused(words) if words.starts_with("syntax error")), "{refused}");
    }

    #[test]
    fn the_first_error_is_cut_out_of_its_surroundings() {
        let complaints = "/dev/stdin:1:1-22: Error: Could not process rule: No such file or directory\nadd x\n^^^\n";
        assert_eq!(first_error(complaints), "Could not process rule: No such file or directory");
        assert_eq!(first_error(""), "(nothing)");
    }
}
