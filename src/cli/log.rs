//! The log: lines on standard error, for people, for programs (`--log-format json`) or, where standard error leads to the
//! journal, with the priorities that it reads (`<4>`, see sd-daemon(3)).
//!
//! Whoever logs never waits for whoever reads: a gateway's lines go through a bounded queue to a thread that writes them. If
//! that one is held up (a pipe that nobody reads, a disk that hangs) lines are lost, counted, and told of as soon as there is a
//! reader again.
//!
//! Rejected: the journal's own protocol (its socket may block too, and would need a queue of its own), and a crate for the
//! queue: it is this one page.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::os::linux::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::error::SetupError;

/// Lines that may wait to be written.
const WAITING_MAX: usize = 1024;

/// How long the end of a command waits for its lines to be written.
const ENDING_MAX: Duration = Duration::from_millis(500);

/// How lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// For people; for the journal where that reads
    #[default]
    Human,
    /// A JSON object a line
    Json,
}

impl LogFormat {
    /// The word on the command line.
    pub(super) const fn word(self) -> &'static str {
        match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        }
    }
}

/// Who waits for the lines to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Patience {
    /// Whoever logs: a command that people wait for.
    Writer,
    /// Nobody: a gateway.
    None,
}

/// The log of this process. Dropped, it waits a moment for what has not been written yet.
#[derive(Debug, Default)]
pub(super) struct Log {
    queue: Option<Queue>,
}

impl Log {
    /// Begins to log what `--log` says, else the environment, else from info up.
    pub(super) fn start(level: Option<&str>, format: LogFormat, patience: Patience) -> Result<Log, SetupError> {
        let filter = filter(level)?;
        let queue = match patience {
            Patience::Writer => None,
            Patience::None => Some(Queue::start(io::stderr(), WAITING_MAX)?),
        };
        let to_journal = format == LogFormat::Human && leads_to_journal();
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(Lines(queue.clone()))
            .with_ansi(io::stderr().is_terminal())
            .with_target(false);
        match format {
            LogFormat::Json => builder.json().flatten_event(true).init(),
            // The journal notes the time, and shows the priority.
            LogFormat::Human if to_journal => {
                builder
                    .event_format(Prioritised(Format::default().without_time().with_target(false).with_level(false)))
                    .init();
            }
            LogFormat::Human => builder.init(),
        }
        Ok(Log { queue })
    }

    /// How many lines were lost so far.
    pub(super) fn lost(&self) -> Arc<AtomicU64> {
        self.queue.as_ref().map(|queue| Arc::clone(&queue.counts.lost)).unwrap_or_default()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.finish(ENDING_MAX);
        }
    }
}

fn filter(level: Option<&str>) -> Result<EnvFilter, SetupError> {
    let environment = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|text| !text.is_empty());
    let (source, directives) = match (level, &environment) {
        (Some(level), _) => ("--log", level),
        (None, Some(text)) => ("RUST_LOG", text.as_str()),
        (None, None) => ("", "info"),
    };
    EnvFilter::builder().parse(directives).map_err(|error| {
        SetupError::new(format!("{source}: {directives:?} is no level: {error}"))
            .remedy("one of error, warn, info, debug and trace, or a list such as info,echogate::host=debug")
    })
}

/// Whether standard error is the stream that systemd has connected to the journal, and names (systemd.exec(5)).
fn leads_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let place = std::fs::metadata("/proc/self/fd/2").map(|data| format!("{}:{}", data.st_dev(), data.st_ino()));
    place.is_ok_and(|place| place == stream)
}

/// Lines that begin with their priority.
struct Prioritised(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Prioritised
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// As syslog(3) counts.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Where the subscriber writes: into the queue, or, without one, at once.
struct Lines(Option<Queue>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.0.clone())
    }
}

/// Takes one line, which the subscriber writes whole.
struct Line(Option<Queue>);

impl io::Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(queue) => queue.put(line),
            None => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines on their way to the thread that writes them.
#[derive(Clone, Debug)]
struct Queue {
    lines: Sender<Box<[u8]>>,
    counts: Counts,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    put: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
}

impl Queue {
    fn start(to: impl io::Write + Send + 'static, room: usize) -> Result<Queue, SetupError> {
        let (lines, waiting) = channel::bounded(room);
        let counts = Counts::default();
        let of_thread = counts.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || of_thread.write(&waiting, to))
            .map_err(|cause| SetupError::caused("cannot start the thread that writes the log", cause))?;
        Ok(Queue { lines, counts })
    }

    fn put(&self, line: &[u8]) {
        // Before, or it could be written before it was put. Relaxed, here and below: numbers alone.
        self.counts.put.fetch_add(1, Ordering::Relaxed);
        if self.lines.try_send(line.into()).is_err() {
            self.counts.put.fetch_sub(1, Ordering::Relaxed);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all is written that has been put, or for `time`.
    fn finish(&self, time: Duration) {
        let until = Instant::now() + time;
        while self.counts.written.load(Ordering::Relaxed) < self.counts.put.load(Ordering::Relaxed)
            && Instant::now() < until
        {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Counts {
    fn write(&self, waiting: &Receiver<Box<[u8]>>, mut to: impl io::Write) {
        let mut told = 0;
        // Until the process ends: the subscriber is for good.
        for line in waiting {
            // Nobody is left to tell if standard error is gone.
            let _ = to.write_all(&line);
            self.written.fetch_add(1, Ordering::Relaxed);
            let lost = self.lost.load(Ordering::Relaxed);
            // When the rush is over, or this line would be one more of it.
            if lost > told && waiting.is_empty() {
                let _ = writeln!(to, "echogate: {} lines of the log were lost: nobody read them in time", lost - told);
                told = lost;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc;

    use super::*;

    /// A reader that takes a line when it is told to.
    struct Held {
        go_on: mpsc::Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl io::Write for Held {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Hung up: everything may pass.
            let _ = self.go_on.recv();
            self.taken.lock().expect("whole").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_logs_does_not_wait_and_what_finds_no_room_is_counted_and_told() {
        let (go_on, held) = mpsc::channel();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let queue = Queue::start(Held { go_on: held, taken: Arc::clone(&taken) }, 4).expect("a thread");
        for number in 0..100 {
            queue.put(format!("line {number}\n").as_bytes());
        }
        let lost = queue.counts.lost.load(Ordering::Relaxed);
        assert!((95..=96).contains(&lost), "four wait, and one may be held: {lost} lost");
        queue.finish(Duration::from_millis(1));
        drop(go_on);
        queue.finish(Duration::from_secs(10));
        // What was lost is told after the last line.
        let until = Instant::now() + Duration::from_secs(10);
        let text = || String::from_utf8(taken.lock().expect("whole").clone()).expect("text");
        while !text().contains("lost") && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        let text = text();
        assert!(text.starts_with("line 0\nline 1\n"), "{text}");
        assert!(
            text.ends_with(&format!("echogate: {lost} lines of the log were lost: nobody read them in time\n")),
            "{text}"
        );
    }

    #[test]
    fn priorities_are_those_of_syslog() {
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        assert_eq!(levels.map(priority), [3, 4, 6, 7, 7]);
    }
}
