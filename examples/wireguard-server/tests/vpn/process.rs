//! Processes of a scene: started in a namespace, read, ended by their number.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use echogate::lab::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::scene::PATIENCE;

/// A process of ours, killed when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    printed: Pipe,
    complaints: Pipe,
}

/// How it ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) printed: String,
    pub(crate) complaints: String,
}

impl Process {
    pub(crate) fn start(namespace: &Namespace, command: &mut Command) -> Process {
        let name = format!("{command:?} ({})", namespace.name());
        command.env_remove("RUST_LOG").env("LC_ALL", "C").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = namespace.run(|| command.spawn()).expect("the namespace can be entered");
        let mut child = child.unwrap_or_else(|error| panic!("{name}: {error}; remedy: scripts/test installs it"));
        let printed = Pipe::read(child.stdout.take().expect("piped"));
        let complaints = Pipe::read(child.stderr.take().expect("piped"));
        Process { name, child, printed, complaints }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far, on both ways.
    pub(crate) fn said(&self) -> String {
        self.printed.text() + &self.complaints.text()
    }

    /// Waits until `condition` holds, while the process runs.
    pub(crate) fn until(mut self, mut condition: impl FnMut(&Process) -> bool) -> Process {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self) {
            if self.child.try_wait().expect("a child of ours").is_some() || Instant::now() > deadline {
                drop(self.child.kill());
                let ended = self.collect();
                panic!("{} is not ready ({:?}): {}{}", self.name, ended.code, ended.printed, ended.complaints);
            }
            thread::sleep(Duration::from_millis(10));
        }
        self
    }

    /// Waits for its own end.
    pub(crate) fn ended(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().expect("a child of ours").is_none() {
            assert!(Instant::now() < deadline, "{} still runs: {}", self.name, self.said());
            thread::sleep(Duration::from_millis(10));
        }
        self.collect()
    }

    /// Ends it by SIGTERM, and asserts that it ends well.
    pub(crate) fn stop(self) -> Ended {
        let id = i32::try_from(self.child.id()).expect("a process number");
        // A child that has not been waited for: the number is nobody else's.
        kill(Pid::from_raw(id), Signal::SIGTERM).expect("it runs");
        let name = self.name.clone();
        let ended = self.ended();
        assert_eq!(ended.code, Some(0), "{name}: {}{}", ended.printed, ended.complaints);
        ended
    }

    fn collect(&mut self) -> Ended {
        let code = self.child.wait().expect("a child of ours").code();
        Ended { code, printed: self.printed.finish(), complaints: self.complaints.finish() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Harmless after its end: the number is kept until it has been waited for, and then not used.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// All that is written to a pipe, read as it comes.
struct Pipe {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Pipe {
    fn read(mut pipe: impl Read + Send + 'static) -> Pipe {
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

    fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All of it, once everybody has closed the other end.
    fn finish(&mut self) -> String {
        drop(self.reader.take().map(JoinHandle::join));
        self.text()
    }
}
