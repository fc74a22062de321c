//! `echogate generate`: what packages contain besides the program, from the same lists as the help.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::print;
use crate::config::{KEYS, KeyDefault};
use crate::error::SetupError;

/// Write man pages, completions of a shell, or a configuration file to start from
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// A man page for each command, into a directory (which is made if need be)
    Man {
        /// Where they go
        directory: PathBuf,
    },
    /// Completions for one shell, on standard output
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// A configuration file with every key, explained and commented out, on standard output
    Config,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    match &arguments.what {
        What::Man { directory } => man(directory).map_err(|cause| {
            SetupError::caused(format!("cannot write man pages into {}", directory.display()), cause)
                .remedy("a directory that this user may write to")
        })?,
        What::Completions { shell } => {
            let mut script = Vec::new();
            let mut command = super::Arguments::command();
            clap_complete::generate(*shell, &mut command, "echogate", &mut script);
            print(&String::from_utf8_lossy(&script));
        }
        What::Config => print(&sample()),
    }
    Ok(ExitCode::SUCCESS)
}

/// A page for each command that somebody types.
fn man(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(super::Arguments::command(), directory)
}

/// Every key with its meaning, what it may be and its default, commented out; those that must be set are not.
fn sample() -> String {
    let mut text = "\
# The configuration of echogate (echogate run --config FILE), with every key. A line #KEY = VALUE is the default, or an example
# where the default is told in words. Try it with: echogate check --config FILE. After a change: systemctl reload echogate.
# What is read at a start only says so; a reload that changes it is refused, and changes nothing.
"
    .to_owned();
    let mut table = "";
    for key in KEYS {
        if key.table != table {
            table = key.table;
            let _ = write!(text, "\n[{table}]\n");
        }
        text.push('\n');
        for line in wrapped(&format!("{}.", key.meaning)) {
            let _ = writeln!(text, "# {line}");
        }
        for line in wrapped(&format!("Allowed: {}", key.allowed())) {
            let _ = writeln!(text, "# {line}");
        }
        if key.is_fixed() {
            text.push_str("# Read at a start only\n");
        }
        let (name, example) = (key.name, key.example());
        let _ = match key.default {
            KeyDefault::Required => writeln!(text, "{name} = {example}"),
            KeyDefault::Value(_) => writeln!(text, "#{name} = {example}"),
            KeyDefault::Computed(words) => writeln!(text, "# Default: {words}\n#{name} = {example}"),
        };
    }
    text
}

/// The text in lines that fit beside a comment's sign.
fn wrapped(text: &str) -> Vec<String> {
    const WIDTH: usize = 110;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().filter(|line| line.is_empty() || line.len() + 1 + word.len() <= WIDTH);
        match last {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}
