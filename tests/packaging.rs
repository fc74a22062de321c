//! What packages contain agrees with the program: man pages, the sample configuration, completions, the unit. No root.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use echogate::config::{Config, KEYS, Key, KeyDefault};

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

/// Man pages, in a directory of their own.
fn pages() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    echogate(&["generate", "man", &directory.path().to_string_lossy()]);
    directory
}

fn help(command: &str) -> String {
    flowing(&echogate(&[command, "--help"]))
}

/// The flags that a text names.
fn flags(text: &str) -> BTreeSet<&str> {
    let ends = |word: &str| {
        let end = word[2..].find(|symbol: char| !symbol.is_ascii_alphanumeric() && symbol != '-');
        end.map_or(word.len(), |end| 2 + end)
    };
    let begins = text.match_indices("--").map(|(at, _)| &text[at..]);
    begins.map(|rest| &rest[..ends(rest)]).filter(|flag| flag.len() > 2 && !flag[2..].starts_with('-')).collect()
}

/// What help and man page say of a key: name, meaning, what is allowed and what holds without it.
fn entry(key: &Key) -> String {
    let (name, when) = (key.full_name(), if key.is_fixed() { " (read at a start only)" } else { "" });
    let list = "; may be given several times, and then replaces the file's list";
    let Key { meaning, default, .. } = key;
    let allowed = key.allowed();
    flowing(&match key.flag {
        None => format!("{name}{when} {meaning}. Allowed: {allowed} Default: {default}"),
        Some(flag) => format!(
            "--{flag} <{}> {meaning}. Allowed: {allowed}{} Default: {default} In the file: {name}{when}",
            key.placeholder(),
            if key.is_list() { list } else { "" }
        ),
    })
}

/// On what a command's man page and its help disagree, with each other and with the list of keys.
fn disagreements(page: &str, help: &str, keys: &[Key]) -> Vec<String> {
    let (in_page, in_help) = (flags(page), flags(help));
    let odd = in_page.symmetric_difference(&in_help);
    let mut found: Vec<String> = odd.map(|flag| format!("only one of them has {flag}")).collect();
    for (text, what) in [(page, "the man page"), (help, "--help")] {
        let missing = keys.iter().map(|key| (key.full_name(), entry(key))).filter(|(_, entry)| !text.contains(entry));
        found.extend(missing.map(|(name, entry)| format!("{what} does not say of {name}: {entry}")));
    }
    found
}

#[test]
fn every_command_has_a_man_page_that_says_what_its_help_and_the_list_of_keys_say() {
    let pages = pages();
    let first = page(pages.path(), "echogate");
    for command in COMMANDS {
        assert!(first.contains(&format!("echogate-{command}(1)")), "echogate(1) does not name {command}: {first}");
        let page = page(pages.path(), &format!("echogate-{command}"));
        let keys: &[Key] = if ["run", "check", "undo"].contains(&command) { KEYS } else { &[] };
        let found = disagreements(&page, &help(command), keys);
        assert!(found.is_empty(), "{command}: {}", found.join("\n"));
    }
}

#[test]
fn each_kind_of_disagreement_between_man_page_help_and_keys_is_seen() {
    let (page, help) = (page(pages().path(), "echogate-run"), help("run"));
    for (from, to, expected) in [
        ("--echo-timeout", "", "only one of them has --echo-timeout"),
        ("--takeover", "--taekover", "only one of them has --takeover"),
        (
            "Default: 60s In the file: mapping.idle",
            "Default: 90s In the file: mapping.idle",
            "does not say of mapping.idle",
        ),
        ("Allowed: 576 to 65535 bytes", "Allowed: 576 to 9000 bytes", "does not say of inside.mtu"),
        ("A reply later than this after its request is not delivered.", "", "does not say of echo.timeout"),
        ("mapping.hold_down How long", "mapping.hold How long", "does not say of mapping.hold_down"),
        ("inside.device (read at a start only)", "inside.device", "does not say of inside.device"),
    ] {
        for (page, help) in [(page.replacen(from, to, 99), help.clone()), (page.clone(), help.replacen(from, to, 99))] {
            let found = disagreements(&page, &help, KEYS);
            assert!(found.iter().any(|found| found.contains(expected)), "{from}: {found:?}");
        }
    }
}

/// On what a sample configuration and the list of keys disagree.
fn faults(sample: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut found = BTreeSet::new();
    let (mut table, mut comment) = (String::new(), String::new());
    for line in sample.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut table);
        } else if let Some(text) = line.strip_prefix("# ") {
            comment = flowing(&format!("{comment} {text}"));
        } else if let Some((name, value)) = line.split_once(" = ") {
            let full_name = format!("{table}.{}", name.trim_start_matches('#'));
            let key = KEYS.iter().find(|key| key.full_name() == full_name);
            let said = std::mem::take(&mut comment);
            let Some(key) = key else {
                faults.push(format!("there is no key {full_name}"));
                continue;
            };
            found.insert(full_name.clone());
            let when = if key.is_fixed() { "Read at a start only" } else { "" };
            let default = match key.default {
                KeyDefault::Computed(words) => format!("Default: {words}"),
                KeyDefault::Value(_) | KeyDefault::Required => String::new(),
            };
            let explained = flowing(&format!("{}. Allowed: {} {when} {default}", key.meaning, key.allowed()));
            if said != explained {
                faults.push(format!("{full_name} is not explained as: {explained}"));
            }
            if name.starts_with('#') == (key.default == KeyDefault::Required) || value != key.example() {
                faults.push(format!("{full_name}: what holds without it, or could be meant, is {}", key.example()));
            }
        } else if line.is_empty() {
            comment.clear();
        } else {
            faults.push(format!("nobody reads this: {line}"));
        }
    }
    let missing = KEYS.iter().map(Key::full_name).filter(|name| !found.contains(name));
    faults.extend(missing.map(|name| format!("{name} is missing")));
    faults
}

#[test]
fn the_sample_configuration_is_the_list_of_keys_and_is_accepted_with_every_line_in_force() {
    let sample = packaged("echogate.toml");
    let made = echogate(&["generate", "config"]);
    assert!(sample == made, "it is out of date: echogate generate config > packaging/echogate.toml");
    let faults = faults(&sample);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
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
}

#[test]
fn each_kind_of_fault_in_a_sample_configuration_is_seen() {
    let sample = packaged("echogate.toml");
    for (from, to, expected) in [
        ("#idle = \"60s\"\n", "", "mapping.idle is missing"),
        ("#idle = \"60s\"", "#idle = \"90s\"", "mapping.idle: what holds without it"),
        ("#idle = \"60s\"", "idle = \"60s\"", "mapping.idle: what holds without it"),
        ("\nclients = ", "\n#clients = ", "inside.clients: what holds without it"),
        ("#idle = ", "#idel = ", "there is no key mapping.idel"),
        ("[mapping]", "[mappings]", "there is no key mappings.idle"),
        ("# Allowed: 576 to 65535 bytes\n", "", "inside.mtu is not explained"),
        ("# Default: the shortest that is safe\n", "", "mapping.hold_down is not explained"),
        ("# A reply later than this after its request is not delivered.\n", "", "echo.timeout is not explained"),
        ("# Read at a start only\n#device", "#device", "inside.device is not explained"),
        ("# A reply later", "A reply later", "nobody reads this"),
    ] {
        assert!(sample.contains(from), "{from}");
        let found = faults(&sample.replacen(from, to, 1));
        assert!(found.iter().any(|found| found.contains(expected)), "{from}: {found:?}");
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
fn the_unit_waits_before_it_starts_again_what_could_not_start_or_gave_up_and_only_then() {
    let unit = packaged("echogate.service");
    let after: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("ExecStopPost=-")).collect();
    let [undo, wait] = after[..] else { panic!("first it undoes, then it waits: {after:?}") };
    assert!(undo.starts_with("/usr/bin/echogate undo "), "{undo}");
    let script = wait.strip_prefix("/bin/sh -c '").and_then(|rest| rest.strip_suffix('\'')).expect("a shell's line");
    // As systemd reads it; and with a sleep that says for how long.
    let directory = tempfile::tempdir().expect("a directory");
    let sleep = directory.path().join("sleep");
    fs::write(&sleep, "#!/bin/sh\necho $1\n").expect("it can be written");
    fs::set_permissions(&sleep, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    let waited = |status: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script.replace("$$", "$")]).env("PATH", directory.path()).env("EXIT_STATUS", status);
        successful(&mut command).trim().to_owned()
    };
    assert_eq!(["0", "1", "2", "KILL", "ABRT"].map(waited), ["", "5", "1", "", ""]);
}

#[test]
fn pages_that_the_package_speaks_of_are_in_it() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("a manifest");
    let mut texts: Vec<String> = COMMANDS.iter().map(|command| echogate(&[command, "--help"])).collect();
    texts.extend(["alerts.yml", "echogate.toml", "echogate.service", "grafana-dashboard.json"].map(packaged));
    let mut named = BTreeSet::new();
    for text in &texts {
        for word in text.split(|letter: char| !letter.is_ascii_alphanumeric() && !"/._-".contains(letter)) {
            let word = word.trim_end_matches('.');
            if word.starts_with("docs/") {
                named.insert(word.to_owned());
            }
        }
    }
    assert!(!named.is_empty(), "it speaks of none");
    for page in named {
        assert!(manifest.contains(&format!("[\"{page}\", \"usr/share/doc/echogate/docs/\"")), "{page} is not packaged");
    }
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
    let (workers, addresses, tables, note, nft, listeners) = (64, 16, 1, 1, 2, 2);
    assert!(stored >= workers * (2 + addresses) + tables + note + nft + listeners, "a restart would lose descriptors");
    // A restart leaves everything to the next start, and nobody kills the nft that owns the table meanwhile.
    assert_eq!((of("RestartKillSignal="), of("KillMode=")), ("SIGUSR2", "process"));
}
