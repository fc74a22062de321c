//! The configuration's flags, made from its list of keys: a key that gets a flag there has it in every command, with
//! its help.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::builder::styling::Style;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{Config, KEYS, Key, Source};
use crate::error::SetupError;

/// The id and the name of the flag for the file.
const FILE: &str = "config";

/// Behind the name of a key that a reload does not change.
const READ_AT_START: &str = " (read at a start only)";

/// The configuration as the command line gives it.
#[derive(Debug)]
pub(super) struct ConfigFlags {
    file: Option<PathBuf>,
    values: Vec<(&'static Key, String)>,
}

impl ConfigFlags {
    /// What was given, with the file read.
    pub(super) fn source(&self) -> Result<Source, SetupError> {
        Source::read(self.file.as_deref(), &self.values)
    }

    /// Reads the file, adds the flags and the defaults, and checks the result.
    pub(super) fn resolve(&self) -> Result<Config, SetupError> {
        Config::load(self.file.as_deref(), &self.values)
    }

    fn arguments() -> impl Iterator<Item = Arg> {
        let file = Arg::new(FILE)
            .long(FILE)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("TOML file to read; flags win over what it says [default: none]");
        let keys = KEYS.iter().filter_map(|key| Some(argument(key, key.flag?)));
        std::iter::once(file).chain(keys)
    }
}

fn argument(key: &Key, flag: &'static str) -> Arg {
    let repeatable = if key.is_list() { "; may be given several times, and then replaces the file's list" } else { "" };
    Arg::new(flag)
        .long(flag)
        .value_name(key.placeholder())
        .action(if key.is_list() { ArgAction::Append } else { ArgAction::Set })
        .allow_negative_numbers(true)
        .help_heading("Configuration")
        .help(format!("{} [default: {}]", key.meaning, key.default))
        .long_help(format!(
            "{}.\n\nAllowed: {}{repeatable}\nDefault: {}\nIn the file: {}{}",
            key.meaning,
            key.allowed(),
            key.default,
            key.full_name(),
            if key.is_fixed() { READ_AT_START } else { "" },
        ))
}

/// The keys without a flag, for the end of `--help`.
pub(super) fn file_only_help() -> String {
    let bold = Style::new().bold().underline();
    let mut text = format!("{bold}Only in the file (--config):{bold:#}\n");
    for key in KEYS.iter().filter(|key| key.flag.is_none()) {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "  {}{}\n          {}.\n          Allowed: {}\n          Default: {}\n\n",
            key.full_name(),
            if key.is_fixed() { READ_AT_START } else { "" },
            key.meaning,
            key.allowed(),
            key.default
        );
    }
    text.push_str(
        "The file is TOML, its keys the names above, the part before the point being the table:\n\n  \
         [inside]\n  clients = [\"10.66.0.0/24\"]\n  divert = [\"g0\"]\n\n  [mapping]\n  idle = \"90s\"\n",
    );
    text
}

impl Args for ConfigFlags {
    fn augment_args(command: Command) -> Command {
        command.args(ConfigFlags::arguments())
    }

    fn augment_args_for_update(command: Command) -> Command {
        command.args(ConfigFlags::arguments())
    }
}

impl FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<ConfigFlags, clap::Error> {
        let mut flags = ConfigFlags { file: None, values: Vec::new() };
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.file = matches.get_one::<PathBuf>(FILE).cloned();
        self.values = KEYS
            .iter()
            .filter_map(|key| Some((key, matches.get_many::<String>(key.flag?)?)))
            .flat_map(|(key, values)| values.map(move |value| (key, value.clone())))
            .collect();
        Ok(())
    }
}
