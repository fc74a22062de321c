//! The command as a user meets it: help, mistakes and exit codes. Nothing here needs privileges.

use std::fs;
use std::process::{Command, Output};

/// The command with a clean environment for what it reads from there.
fn echogate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_echogate"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .expect("the binary that this test was built with")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It exits with 2, says `expected` on standard error and nothing on standard output.
fn assert_refused(arguments: &[&str], expected: &str) {
    let output = echogate(arguments);
    assert_eq!(stderr(&output), expected, "{arguments:?}");
    assert_eq!(stdout(&output), "", "{arguments:?}");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
}

/// A file with this text, and its path.
fn file(text: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), text).expect("a temporary file can be written");
    let path = file.path().to_str().expect("a temporary path is text").to_owned();
    (file, path)
}

#[test]
fn help_names_every_command() {
    let output = echogate(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    for command in ["run", "stats", "top", "trace", "check", "demo", "ping"] {
        let line = format!("\n  {command} ");
        assert!(stdout(&output).contains(&line), "{command} is missing from:\n{}", stdout(&output));
    }
}

#[test]
fn help_tells_every_key_its_limits_and_its_default() {
    for command in ["run", "check"] {
        let output = echogate(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        let words: String = stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        for key in echogate::config::KEYS {
            let allowed = key.allowed();
            let default = format!("Default: {}", key.default);
            for expected in [key.full_name(), allowed, default] {
                assert!(words.contains(&expected), "{command} --help does not say {expected}");
            }
            if let Some(flag) = key.flag {
                assert!(
                    words.contains(&format!("--{flag} <{}>", key.placeholder())),
                    "{command} --help lacks --{flag}"
                );
            }
        }
    }
}

#[test]
fn without_a_command_it_says_what_there_is() {
    let output = echogate(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage: echogate"), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
}

#[test]
fn unknown_names_get_the_nearest() {
    for (arguments, nearest) in [
        (["run", "--clinets", "10.66.0.0/24"], "'--clients'"),
        (["check", "--mapping-idel", "60s"], "'--mapping-idle'"),
        (["demo", "--secondes", "1"], "'--seconds'"),
        (["demo", "--io", "urnig"], "'uring'"),
        (["chekc", "--clients", "10.66.0.0/24"], "'check'"),
    ] {
        let output = echogate(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(nearest), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn bad_flags_are_refused_with_the_remedy() {
    for command in ["run", "check"] {
        assert_refused(
            &[command, "--clients", "10.66.0.0/24", "--workers", "0"],
            "echogate: --workers: 0 is out of range\n  remedy: allowed: 1 to 64 threads\n",
        );
        assert_refused(
            &[command, "--clients", "10.66.0.0/24", "--clients", "10.66.0.0/25"],
            "echogate: --clients: 10.66.0.0/24 and 10.66.0.0/25 overlap\n  remedy: give each client's address in one prefix \
             only\n",
        );
        assert_refused(
            &[command, "--clients", "0.0.0.0/0"],
            "echogate: --clients: 0.0.0.0/0 is too large\n  remedy: a prefix of clients has a length of 8 to 32\n",
        );
    }
    assert_refused(
        &["run", "--clients", "10.66.0.0/24", "--log", "loud=x"],
        "echogate: --log: \"loud=x\" is no level: error parsing level filter: expected one of \"off\", \"error\", \"warn\", \
         \"info\", \"debug\", \"trace\", or a number 0-5\n  remedy: one of error, warn, info, debug and trace, or a list \
         such as info,echogate::host=debug\n",
    );
}

#[test]
fn bad_files_are_refused_with_line_and_nearest_name() {
    let (_unknown, path) = file("[inside]\nclients = [\"10.66.0.0/24\"]\n\n[run]\nwokers = 2\n");
    assert_refused(
        &["run", "--config", &path],
        &format!("echogate: {path}:5: run.wokers: there is no such key\n  remedy: the nearest key is run.workers\n"),
    );
    let (_wrong, path) = file("[inside]\nclients = [\"10.66.0.0/24\"\n[run]\n");
    let output = echogate(&["run", "--config", &path]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with(&format!("echogate: {path}:3: not TOML: ")), "{}", stderr(&output));
    assert_refused(
        &["check", "--config", "/nonexistent.toml"],
        "echogate: /nonexistent.toml: cannot be read: No such file or directory (os error 2)\n  remedy: give --config a \
         file that this user may read\n",
    );
}

#[test]
fn a_flag_wins_over_the_file() {
    let (_file, path) = file("[inside]\nclients = [\"10.66.0.0/24\"]\n[run]\nworkers = 2\n");
    assert_refused(
        &["run", "--config", &path, "--workers", "99"],
        "echogate: --workers: 99 is out of range\n  remedy: allowed: 1 to 64 threads\n",
    );
}
