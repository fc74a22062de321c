//! What packages contain agrees with the program: man pages, the sample configuration, completions, the unit. No root.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use echogate::config::{Config, KEYS, KeyDefault};

/// The commands that somebody types.
const COMMANDS: [&str; 12] =
    ["run", "restart", "reload", "stats", "top", "trace", "check", "undo", "demo", "bench", "ping", "generate"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn packaged(file: &str) -> String {
    fs::read_to_string(root().join("packaging").join(file)).unwrap_or_else(|error| panic!("packaging/{file}: {error}"))
}

fn echogate(arguments: &[&str]) -> String {
    successful(Command::new(env!("CARGO_BIN_EXE_echogate")).args(arguments))
}

fn successful(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(status.success(), "{command:?}: {}{}", text(&stdout), text(&stderr));
    text(&stdout)
}

/// On one line, however it was wrapped.
fn flowing(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A man page's text: without its requests, and its escapes undone.
fn page(directory: &Path, name: &str) -> String {
    let file = directory.join(format!("{name}.1"));
    let source = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert!(!source.contains('\x1b'), "{name}: the terminal's colours are in it");
    let lines = source.lines().filter(|line| !line.starts_with('.') && !line.starts_with("'\\\""));
    let text = lines.collect::<Vec<_>>().join(" ");
    let text = [r"\fB", r"\fI", r"\fR", r"\fP", r"\&"].iter().fold(text, |text, escape| text.replace(escape, ""));
    flowing(&text.replace(r"\*(Aq", "'").replace(r"\-", "-").replace(r"\(aq", "'").replace(r"\\", "\\"))
}

#[test]
fn every_command_has_a_man_page_that_says_what_its_help_says() {
    let directory = tempfile::tempdir().expect("a directory");
    echogate(&["generate", "man", &directory.path().to_string_lossy()]);
    let first = page(directory.path(), "echogate");
    for command in COMMANDS {
        assert!(first.contains(&format!("echogate-{command}(1)")), "echogate(1) does not name {command}: {first}");
        let (page, help) = (page(directory.path(), &format!("echogate-{command}")), echogate(&[command, "--help"]));
        let flags = help.split_whitespace().filter(|word| word.starts_with("--")).map(|word| {
            let end = word[2..].find(|symbol: char| !symbol.is_ascii_alphanumeric() && symbol != '-');
            &word[..end.map_or(word.len(), |end| 2 + end)]
        });
        for flag in flags.filter(|flag| flag.len() > 2) {
            assert!(page.contains(flag), "echogate-{command}(1) lacks {flag}, which --help has");
        }
    }
    for command in ["run", "check", "undo"] {
        let page = page(directory.path(), &format!("echogate-{command}"));
        for key in KEYS {
            for part in [key.full_name(), format!("{}.", key.meaning), format!("Allowed: {}", key.allowed())] {
                let (part, name) = (flowing(&part), key.full_name());
                assert!(page.contains(&part), "echogate-{command}(1) does not say of {name}: {part}");
            }
        }
    }
}

#[test]
fn the_sample_configuration_is_the_list_of_keys_and_is_accepted_with_every_line_in_force() {
    let sample = packaged("echogate.toml");
    let made = echogate(&["generate", "config"]);
    assert!(sample == made, "it is out of date: echogate generate config > packaging/echogate.toml");
    Config::parse(&sample, "packaging/echogate.toml", &[]).unwrap_or_else(|error| panic!("{error}"));

    // What it comments out, uncommented.
    let in_force = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|first: char| first.is_ascii_lowercase()) => rest.to_owned(),
        _ => line.to_owned(),
    };
    let all: String = sample.lines().map(|line| in_force(line) + "\n").collect();
    let config = Config::parse(&all, "all of it", &[]).unwrap_or_else(|error| panic!("{error}\n{all}"));
    let defaults = Config::parse("[inside]\nclients = [\"10.66.0.0/24\"]", "least", &[]).expect("a configuration");
    assert_eq!((config.echo, config.limits.everybody), (defaults.echo, defaults.limits.everybody));

    let text =
        flowing(&sample.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).collect::<Vec<_>>().join(" "));
    for key in KEYS {
        let name = key.full_name();
        assert!(text.contains(&flowing(&format!("{}.", key.meaning))), "{name} is not explained");
        assert!(
            text.contains(&flowing(&format!("Allowed: {}", key.allowed()))),
            "{name}: what is allowed, in which unit?"
        );
        let default = match key.default {
            KeyDefault::Value(value) => value.to_owned(),
            KeyDefault::Computed(words) => format!("Default: {words}"),
            KeyDefault::Required => format!("{} =", key.name),
        };
        assert!(text.contains(&default), "{name}: what holds when it is left out?");
    }
}

#[test]
fn each_shells_completions_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = echogate(&["generate", "completions", shell]);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
        if shell == "bash" {
            let file = tempfile::NamedTempFile::new().expect("a file");
            fs::write(file.path(), &script).expect("it can be written");
            successful(Command::new("bash").arg("-n").arg(file.path()));
            // What a user at a prompt would be offered.
            let ask = "COMP_WORDS=(echogate che); COMP_CWORD=1; _echogate echogate che echogate; echo ${COMPREPLY[@]}";
            let offered = successful(Command::new("bash").arg("-c").arg(format!("{script}\n{ask}")));
            assert_eq!(offered.trim(), "check");
        }
    }
}

/// The unit with this build in place of the installed one, where it can be looked at.
fn unit(directory: &Path) -> PathBuf {
    let text = packaged("echogate.service");
    assert_eq!(text.matches("/usr/bin/echogate ").count(), 3, "one binary starts, reloads and undoes");
    let file = directory.join("echogate.service");
    fs::write(&file, text.replace("/usr/bin/echogate ", &format!("{} ", env!("CARGO_BIN_EXE_echogate"))))
        .expect("it can be written");
    file
}

#[test]
fn systemd_understands_the_unit_and_finds_little_that_it_could_still_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = unit(directory.path());
    let mut verify = Command::new("systemd-analyze");
    let verified = verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&file).output();
    let verified = verified.unwrap_or_else(|error| panic!("systemd-analyze: {error}: scripts/install-test-tools"));
    let complaints = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !complaints.contains("echogate.service"), "{complaints}");

    // Of 100; a unit without any protection has 96.
    let mut security = Command::new("systemd-analyze");
    successful(security.args(["security", "--offline=true", "--no-pager", "--threshold=30"]).arg(&file));
}

#[test]
fn the_unit_restarts_for_ever_and_undoes_what_is_left() {
    let unit = packaged("echogate.service");
    for line in ["Restart=always", "RestartSec=0", "StartLimitIntervalSec=0", "Type=notify", "NoNewPrivileges=yes"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    let of = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key}"));
    assert_eq!(of("AmbientCapabilities="), of("CapabilityBoundingSet="));
    for key in ["ExecStart=", "ExecReload=", "ExecStopPost=-"] {
        let mut words = of(key).split(' ');
        assert_eq!(words.next(), Some("/usr/bin/echogate"), "{key}");
        let help = echogate(&[words.next().expect("a command"), "--help"]);
        for flag in words.filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "{key} gives {flag}, which the command does not know");
        }
    }
    let stored: usize = of("FileDescriptorStoreMax=").parse().expect("a number");
    let (workers, addresses, tables, note, nft) = (64, 16, 1, 1, 2);
    assert!(stored >= workers * (2 + addresses) + tables + note + nft, "a restart would lose descriptors");
    // A restart leaves everything to the next start, and nobody kills the nft that owns the table meanwhile.
    assert_eq!((of("RestartKillSignal="), of("KillMode=")), ("SIGUSR2", "process"));
}
