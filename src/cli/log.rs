//! The log: lines on standard error, for people, for programs (`--log-format json`) or, where standard error leads to the
//! journal, with the priorities that it reads (`<4>`, see sd-daemon(3)).
//!
//! Whoever logs never waits for whoever reads: a gateway's lines go through a bounded queue to a thread that writes them. If
//! that one is held up (a pipe that nobody reads, a disk that hangs) lines are lost, counted, and told of as soon as there is a
//! reader again.
//!
//! The command line wins over the configuration, which may change while a gateway runs: its keeper's log follows, and its packet
//! process is another one then.
//!
//! Rejected: the journal's own protocol (its socket may block too, and would need a queue of its own), and a crate for the
//! queue: it is this one page.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::os::linux::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::builder::PossibleValue;
use crossbeam::channel::{self, Receiver, Sender};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{DefaultFields, Format, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, Formatter, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, reload};

use crate::config::{LogFormat, Observe};
use crate::error::SetupError;
use crate::keeper::LogControl;

/// Lines that may wait to be written.
const WAITING_MAX: usize = 1024;

/// How long the end of a command waits for its lines to be written.
const ENDING_MAX: Duration = Duration::from_millis(500);

/// What the command line says of the log.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct LogFlags {
    /// What is logged, on standard error: error, warn, info, debug or trace, or a list such as
    /// info,echogate::host=debug. No level logs single packets [default: the configuration's observe.log, $RUST_LOG, or info]
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,

    /// How log lines look [default: the configuration's observe.log_format, or human]
    #[arg(long, global = true, value_name = "FORMAT", value_enum)]
    log_format: Option<LogFormat>,
}

impl clap::ValueEnum for LogFormat {
    fn value_variants<'a>() -> &'a [LogFormat] {
        &[LogFormat::Human, LogFormat::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.word()).help(match self {
            LogFormat::Human => "For people; for the journal where that reads",
            LogFormat::Json => "A JSON object a line",
        }))
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
#[derive(Debug)]
pub(super) struct Log {
    queue: Option<Queue>,
    control: Arc<Control>,
}

/// What can change about the log.
#[derive(Debug)]
struct Control {
    flags: LogFlags,
    filter: reload::Handle<EnvFilter, Formatter<DefaultFields, Form, Lines>>,
    is_json: Arc<AtomicBool>,
}

impl Log {
    /// Begins to log what the command line says, else the environment, else from info up.
    pub(super) fn start(flags: &LogFlags, patience: Patience) -> Result<Log, SetupError> {
        let filter = filter(flags.log.as_deref())?;
        let queue = match patience {
            Patience::Writer => None,
            Patience::None => Some(Queue::start(io::stderr(), WAITING_MAX)?),
        };
        let is_json = Arc::new(AtomicBool::new(flags.log_format == Some(LogFormat::Json)));
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(Lines(queue.clone()))
            .with_ansi(io::stderr().is_terminal())
            .event_format(Form::new(Arc::clone(&is_json)))
            .with_filter_reloading();
        let control = Control { flags: flags.clone(), filter: builder.reload_handle(), is_json };
        builder.init();
        Ok(Log { queue, control: Arc::new(control) })
    }

    /// How many lines were lost so far.
    pub(super) fn lost(&self) -> Arc<AtomicU64> {
        self.queue.as_ref().map(|queue| Arc::clone(&queue.counts.lost)).unwrap_or_default()
    }

    /// What has it follow a configuration.
    pub(super) fn control(&self) -> Arc<dyn LogControl> {
        Arc::clone(&self.control) as Arc<dyn LogControl>
    }
}

impl LogFlags {
    fn level<'a>(&'a self, observe: &'a Observe) -> Option<&'a str> {
        self.log.as_deref().or(observe.log.as_deref())
    }

    fn format(&self, observe: &Observe) -> LogFormat {
        self.log_format.unwrap_or(observe.log_format)
    }

    /// What makes another process of this gateway log so.
    fn arguments(&self, observe: &Observe) -> Vec<String> {
        let level = self.level(observe).map(|level| format!("--log={level}"));
        level.into_iter().chain([format!("--log-format={}", self.format(observe).word())]).collect()
    }
}

impl LogControl for Control {
    fn follow(&self, observe: &Observe) {
        // What the configuration lets pass is a filter, and the subscriber is for good.
        if let Ok(filter) = filter(self.flags.level(observe)) {
            let _ = self.filter.reload(filter);
        }
        // Relaxed: nothing else goes with it.
        self.is_json.store(self.flags.format(observe) == LogFormat::Json, Ordering::Relaxed);
    }

    fn arguments(&self, observe: &Observe) -> Vec<String> {
        self.flags.arguments(observe)
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

/// Lines in the form that holds at the moment.
#[derive(Debug)]
struct Form {
    is_json: Arc<AtomicBool>,
    json: Format<Json>,
    people: Format<Full>,
    /// Instead of the one for people.
    journal: Option<Prioritised>,
}

impl Form {
    fn new(is_json: Arc<AtomicBool>) -> Form {
        let plain = || Format::default().with_target(false);
        // The journal notes the time, and shows the priority.
        let journal = leads_to_journal().then(|| Prioritised(plain().without_time().with_level(false)));
        Form { is_json, json: plain().json().flatten_event(true), people: plain(), journal }
    }
}

impl<S, N> FormatEvent<S, N> for Form
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        match &self.journal {
            // Relaxed: nothing else goes with it.
            _ if self.is_json.load(Ordering::Relaxed) => self.json.format_event(context, writer, event),
            Some(journal) => journal.format_event(context, writer, event),
            None => self.people.format_event(context, writer, event),
        }
    }
}

/// Lines that begin with their priority.
#[derive(Debug)]
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
#[derive(Debug)]
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
    fn the_command_line_wins_over_the_configuration_and_the_environment_is_what_remains() {
        let said = |log: Option<&str>, log_format| LogFlags { log: log.map(str::to_owned), log_format };
        let configured = Observe { log: Some("warn".to_owned()), log_format: LogFormat::Json, ..Observe::default() };
        assert_eq!(said(None, None).arguments(&Observe::default()), ["--log-format=human"]);
        assert_eq!(said(None, None).arguments(&configured), ["--log=warn", "--log-format=json"]);
        let both = said(Some("debug"), Some(LogFormat::Human));
        assert_eq!(both.arguments(&configured), ["--log=debug", "--log-format=human"]);
    }

    #[test]
    fn what_the_configuration_takes_as_a_filter_is_one() {
        for text in
            ["off", "error", "warn", "info", "debug", "trace", "info,echogate::host=debug", "a=off,b_1::c=trace"]
        {
            assert!(filter(Some(text)).is_ok(), "{text}");
        }
    }

    #[test]
    fn priorities_are_those_of_syslog() {
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        assert_eq!(levels.map(priority), [3, 4, 6, 7, 7]);
    }
}
