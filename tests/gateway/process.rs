//! The command `echogate` as a process: started in a namespace, watched, ended by its number.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use echogate::lab::Namespace;
use tempfile::TempDir;

use crate::scene::{PATIENCE, wait_until};
use crate::sys;

/// A process of ours, killed when dropped.
pub(crate) struct Echogate {
    child: Child,
    printed: Pipe,
    complaints: Pipe,
    /// Where it has its control socket: those of gateways in other namespaces are in the same file system.
    run_directory: TempDir,
}

/// How it ended.
pub(crate) struct Ended {
    /// Its exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) printed: String,
    pub(crate) complaints: String,
}

impl Echogate {
    /// The command with this subcommand.
    pub(crate) fn command(subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_echogate"));
        command.arg(subcommand);
        command
    }

    /// Starts a command in the namespace.
    pub(crate) fn start(namespace: &Namespace, command: &mut Command) -> Echogate {
        let run_directory = tempfile::tempdir().expect("a temporary directory");
        command.env("RUNTIME_DIRECTORY", run_directory.path());
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = namespace.run(|| command.spawn()).expect("the namespace can be entered");
        let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let printed = Pipe::read(child.stdout.take().expect("piped"));
        let complaints = Pipe::read(child.stderr.take().expect("piped"));
        Echogate { child, printed, complaints, run_directory }
    }

    /// A gateway with these arguments, once it serves.
    pub(crate) fn serve(namespace: &Namespace, arguments: &[String]) -> Echogate {
        Echogate::start(namespace, Echogate::command("run").args(arguments)).serving()
    }

    /// Waits until it says that it serves.
    pub(crate) fn serving(mut self) -> Echogate {
        let deadline = Instant::now() + PATIENCE;
        while !self.printed.text().starts_with("serving ") || !self.printed.text().ends_with('\n') {
            let over = self.child.try_wait().expect("a child of ours").is_some();
            if over || Instant::now() > deadline {
                let ended = self.killed();
                panic!("it does not serve ({:?}): {}{}", ended.code, ended.printed, ended.complaints);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self
    }

    /// What `echogate` with these arguments prints about it.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_echogate"));
        command.args(arguments).env("RUNTIME_DIRECTORY", self.run_directory.path()).env_remove("RUST_LOG");
        command.output().expect("echogate runs")
    }

    /// Where its control socket is.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.run_directory.path().join("echogate0.sock")
    }

    /// Whether this stands in its log by now.
    pub(crate) fn has_said(&self, what: &str) -> bool {
        self.complaints.text().contains(what)
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The number of the process that moves the packets.
    pub(crate) fn packets_id(&self) -> u32 {
        self.find_packets().expect("a packet process")
    }

    /// The same, if it is there just now.
    pub(crate) fn find_packets(&self) -> Option<u32> {
        self.find("echogate-packet")
    }

    /// The number of the process that waits to take its place, once it is ready.
    pub(crate) fn spare_id(&self) -> u32 {
        wait_until("another packet process is ready", || self.find_spare().is_some());
        self.find_spare().expect("it waits")
    }

    /// The same, if it is there just now.
    pub(crate) fn find_spare(&self) -> Option<u32> {
        self.find("echogate-spare")
    }

    /// A child by its name.
    fn find(&self, name: &str) -> Option<u32> {
        let id = self.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("it runs");
        let named = |child: &&str| {
            fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|found| found.trim_end() == name)
        };
        children.split_whitespace().find(named)?.parse().ok()
    }

    /// Waits for its own end.
    pub(crate) fn ended(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().expect("a child of ours").is_none() {
            assert!(Instant::now() < deadline, "still running: {}{}", self.printed.text(), self.complaints.text());
            thread::sleep(Duration::from_millis(5));
        }
        self.collect()
    }

    /// Ends it with SIGTERM.
    pub(crate) fn terminated(self) -> Ended {
        sys::terminate(self.child.id()).expect("it runs");
        self.ended()
    }

    /// Ends it with SIGKILL.
    pub(crate) fn killed(mut self) -> Ended {
        self.child.kill().expect("it can be killed");
        self.collect()
    }

    /// Ends it with SIGTERM and asserts that it ends well.
    pub(crate) fn stop(self) -> Ended {
        let ended = self.terminated();
        assert_eq!(ended.code, Some(0), "{}{}", ended.printed, ended.complaints);
        ended.assert_conserved();
        ended
    }

    fn collect(&mut self) -> Ended {
        let code = self.child.wait().expect("a child of ours").code();
        Ended { code, printed: self.printed.finish(), complaints: self.complaints.finish() }
    }
}

impl Drop for Echogate {
    fn drop(&mut self) {
        // Harmless after its end: the number is kept until it has been waited for, and then not used.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Ended {
    /// The packets in one line of the totals.
    pub(crate) fn total(&self, name: &str) -> u64 {
        let line = self.printed.lines().find_map(|line| line.trim_start().strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next()).map(|digits| digits.replace(',', ""));
        number.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no total {name:?}: {}", self.printed))
    }

    /// What came in went out or was dropped under a name.
    fn assert_conserved(&self) {
        let came = self.total("from inside") + self.total("from outside");
        let went = self.total("to outside") + self.total("to inside") + self.total("dropped");
        assert_eq!(came, went, "{}", self.printed);
    }
}

/// All that is written to a pipe, read as it comes.
pub(crate) struct Pipe {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Pipe {
    pub(crate) fn read(mut pipe: impl Read + Send + 'static) -> Pipe {
        let text = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                let part = String::from_utf8_lossy(&buffer[..length]).into_owned();
                written.lock().unwrap_or_else(PoisonError::into_inner).push_str(&part);
            }
        });
        Pipe { text, reader: Some(reader) }
    }

    pub(crate) fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All of it, once everybody has closed the other end.
    fn finish(&mut self) -> String {
        drop(self.reader.take().map(JoinHandle::join));
        self.text()
    }
}
