//! A contender's program: started inside a namespace of the lab, watched, ended.
//!
//! It ends with the thread that started it, whatever becomes of the bench; and it is in a process group of its own, so
//! that the Ctrl-C that interrupts the bench does not reach it first and leave the trial without its totals.

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::SetupError;
use crate::sys::process;

/// How long a program may take to end before it is killed. Echogate waits for its last replies and undoes its set-up.
const ENDING: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// A program that runs, killed when dropped.
#[derive(Debug)]
pub(super) struct Program {
    name: String,
    child: Child,
    printed: Pipe,
    complaints: Pipe,
}

impl Program {
    /// Starts it in the calling thread's namespaces. The thread has to outlive it.
    pub(super) fn start(command: &mut Command) -> Result<Program, SetupError> {
        let name = command.get_program().to_string_lossy().into_owned();
        process::end_with_this_thread(command);
        // What a user has in the environment is for the bench, not for what it measures.
        command.process_group(0).env_remove("RUST_LOG").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().map_err(|cause| SetupError::caused(format!("bench: cannot start {name}"), cause))?;
        let printed = Pipe::read(child.stdout.take());
        let complaints = Pipe::read(child.stderr.take());
        Ok(Program { name, child, printed, complaints })
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error if it has ended by itself.
    pub(super) fn expect_running(&mut self) -> Result<(), SetupError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended_badly(status)),
            Err(cause) => Err(SetupError::caused(format!("bench: cannot watch {}", self.name), cause)),
        }
    }

    /// Asks it to end, waits until it has, and returns what it printed.
    pub(super) fn stop(mut self) -> Result<String, SetupError> {
        self.expect_running()?;
        let failed = |name: &str, cause| SetupError::caused(format!("bench: cannot end {name}"), cause);
        process::terminate(&self.child).map_err(|cause| failed(&self.name, cause))?;
        let deadline = Instant::now() + ENDING;
        while Instant::now() < deadline {
            if self.child.try_wait().map_err(|cause| failed(&self.name, cause))?.is_some() {
                return Ok(self.printed.finish());
            }
            thread::sleep(PAUSE);
        }
        Err(SetupError::new(format!("bench: {} did not end within {} s", self.name, ENDING.as_secs())))
    }

    fn ended_badly(&mut self, status: ExitStatus) -> SetupError {
        let complaints = self.complaints.finish();
        let words = complaints.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        SetupError::new(format!("bench: {} ended by itself ({status}): {}", self.name, words.trim()))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Harmless after its end: the number is kept until it has been waited for, and then not used.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// All that is written to a pipe, read as it comes, so that the writer never waits.
#[derive(Debug)]
struct Pipe {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Pipe {
    fn read(pipe: Option<impl Read + Send + 'static>) -> Pipe {
        let text = Arc::new(Mutex::new(String::new()));
        let reader = pipe.map(|mut pipe| {
            let written = Arc::clone(&text);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                    let part = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    written.lock().unwrap_or_else(PoisonError::into_inner).push_str(&part);
                }
            })
        });
        Pipe { text, reader }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_program_prints_until_it_ends_is_kept() {
        let mut program =
            Program::start(&mut shell("trap 'echo bye; exit' TERM; echo hello; while :; do sleep 0.01; done"))
                .expect("sh runs");
        while !program.printed.text().contains("hello") {
            thread::sleep(PAUSE);
        }
        program.expect_running().expect("it waits for its end");
        assert_eq!(program.stop().expect("it ends"), "hello\nbye\n");
    }

    #[test]
    fn a_program_that_ends_by_itself_is_an_error_with_its_last_words() {
        let mut program = Program::start(&mut shell("echo no such luck >&2; exit 3")).expect("sh runs");
        let error = loop {
            match program.expect_running() {
                Ok(()) => thread::sleep(PAUSE),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("exit status: 3") && error.contains("no such luck"), "{error}");
        let missing = Program::start(&mut Command::new("/nonexistent")).expect_err("there is none");
        assert!(missing.to_string().contains("cannot start /nonexistent"), "{missing}");
    }
}
