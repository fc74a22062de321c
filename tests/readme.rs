//! What the documentation names exists: keys, flags, drops, totals, files, tests. So README and docs/ cannot drift from
//! the program unnoticed.
//!
//! Tables between `<!-- name` and `<!-- /name -->` are compared as wholes; a failure prints what belongs there. The Rust in
//! the README is compiled and run as a documentation test (see `src/lib.rs`).
//!
//! Limits: sentences are not checked, and a code span may not run over the end of a line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use echogate::config::{Config, KEYS, Key, KeyDefault};
use echogate::metrics::Counters;
use echogate::proxy::Reason;

/// Those whose flags are looked at where a line shows them.
const COMMANDS: [&str; 8] = ["run", "stats", "top", "trace", "check", "demo", "bench", "ping"];

#[test]
fn the_table_of_keys_is_the_list_of_keys() {
    let head = "| key | flag | default | allowed | meaning |\n| --- | --- | --- | --- | --- |\n";
    let expected: String = std::iter::once(head.to_owned()).chain(KEYS.iter().map(row)).collect();
    let found = section(&readme(), "keys");
    assert!(
        found.trim() == expected.trim(),
        "between <!-- keys and <!-- /keys --> in README.md belongs:\n\n{expected}"
    );
}

fn row(key: &Key) -> String {
    let flag = key.flag.map(|flag| format!("`--{flag}`")).unwrap_or_default();
    let default = match key.default {
        KeyDefault::Value(value) => format!("`{value}`"),
        words => words.to_string(),
    };
    format!("| `{}` | {flag} | {default} | {} | {} |\n", key.full_name(), key.allowed(), key.meaning)
}

#[test]
fn the_keys_that_the_text_names_exist() {
    let tables: BTreeSet<&str> = KEYS.iter().map(|key| key.table).collect();
    let names: BTreeSet<String> = KEYS.iter().map(Key::full_name).collect();
    for (file, text) in documents() {
        for span in spans(&text) {
            let is_key =
                span.split_once('.').is_some_and(|(table, name)| tables.contains(table) && is_identifier(name));
            assert!(!is_key || names.contains(&span), "{}: there is no key {span}", file.display());
        }
    }
}

#[test]
fn the_sample_file_is_accepted() {
    let samples = fenced(&readme(), "toml");
    assert!(!samples.is_empty(), "README.md has no sample of the file");
    for sample in samples {
        Config::parse(&sample, "the sample in README.md", &[]).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn the_commands_take_the_flags_that_are_shown() {
    let readme = readme();
    let mut shown = 0;
    for line in fenced(&readme, "sh").iter().flat_map(|block| block.lines()) {
        // The system's ping is none of ours.
        let ours = line.starts_with("echogate ping") || !line.contains("ping");
        let mut words = line.split_whitespace().filter(|_| ours).skip_while(|word| !COMMANDS.contains(word));
        // `cargo run --release -- demo` is the demo.
        let command = match words.next() {
            Some("run") if line.contains("cargo run") => words.find(|word| COMMANDS.contains(word)),
            command => command,
        };
        let Some(command) = command else { continue };
        // `bench load` takes flags of its own.
        let rest: Vec<&str> = words.collect();
        let below = rest.first().filter(|word| command == "bench" && ["compare", "load", "respond"].contains(word));
        let command = below.map_or(command.to_owned(), |below| format!("bench {below}"));
        let taken = flags_of(&command);
        for flag in rest.into_iter().filter(|word| word.starts_with("--")) {
            assert!(taken.contains(flag), "echogate {command} takes no {flag}: {line}");
        }
        shown += 1;
    }
    assert!(shown >= 4, "README.md shows {shown} commands only");
    let all: BTreeSet<String> =
        COMMANDS.into_iter().chain(["bench load", "bench respond"]).flat_map(flags_of).collect();
    for (file, text) in documents() {
        for flag in spans(&text).iter().filter_map(|span| span.split(' ').next()).filter(|word| word.starts_with("--"))
        {
            assert!(all.contains(flag), "{}: no command takes {flag}", file.display());
        }
    }
}

#[test]
fn the_sizes_that_are_shown_are_those_of_check() {
    let command = ["check", "--clients", "10.66.0.0/24"];
    let output = Command::new(env!("CARGO_BIN_EXE_echogate")).args(command).output().expect("it runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let sizes = printed.find("\ntables: ").map(|start| &printed[start..]).expect("check prints the sizes");
    assert!(readme().contains(sizes), "README.md does not show what check prints:{sizes}");
}

fn flags_of(command: &str) -> BTreeSet<String> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_echogate")).args(command.split(' ')).arg("--help").output().expect("it runs");
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = help.split(|letter: char| letter.is_whitespace() || letter == ',');
    words.filter(|word| word.starts_with("--")).map(str::to_owned).collect()
}

#[test]
fn the_drops_are_those_that_are_counted() {
    let mut expected: Vec<String> = Reason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    // The worker's own drops have no list of their own: their names stand where they are summed up.
    let source = read(Path::new("src/metrics.rs"));
    let own = source.split("add(\"").skip(1).filter_map(|rest| rest.split('"').next());
    expected.extend(own.map(str::to_owned));
    expected.extend(["send_outside_*".to_owned(), "send_inside_*".to_owned()]);
    assert!(expected.contains(&"ending".to_owned()), "src/metrics.rs sums up in another way: mend this test");
    assert_eq!(first_column(&section(&readme(), "drops")), expected);
}

#[test]
fn the_errnos_that_the_text_names_are_counted_so() {
    let counters = Counters::new(1, 1);
    for errno in 0..134 {
        counters.worker(0).send_outside.count(errno);
        counters.worker(0).send_inside.count(errno);
    }
    let snapshot = counters.snapshot();
    for (file, text) in documents() {
        for span in spans(&text).iter().filter(|span| span.starts_with("send_") && !span.ends_with('*')) {
            assert_eq!(snapshot.dropped(span), 1, "{}: no drop is called {span}", file.display());
        }
    }
}

#[test]
fn every_answer_of_the_proxy_is_explained_to_servers_that_embed_it() {
    let source = read(Path::new("src/proxy/verdict.rs"));
    let variants = ["Outbound", "Inbound"].into_iter().flat_map(|name| {
        let body = source.split(&format!("pub enum {name} {{\n")).nth(1).expect("an enum of this name");
        let lines = body.split("\n}").next().expect("its end").lines();
        let names =
            lines.filter_map(|line| line.strip_prefix("    ")).filter(|line| line.starts_with(char::is_uppercase));
        names.map(move |line| format!("{name}::{}", line.split([' ', '(', ',']).next().expect("a name")))
    });
    let explained = first_column(&section(&read(Path::new("docs/embedding.md")), "answers"));
    assert_eq!(explained, variants.collect::<Vec<_>>());
}

#[test]
fn the_totals_are_those_that_are_printed() {
    let source = read(Path::new("src/cli/totals.rs"));
    let table = source.split("fn row(").next().expect("a first part");
    let quoted = table.split('"').skip(1).step_by(2).map(str::trim);
    let names = quoted.filter(|text| text.contains(' ') || ["reinjected", "dropped"].contains(text));
    let printed: Vec<String> = names.map(|name| name.replace("{worker}", "N")).collect();
    assert!(printed.len() > 10, "src/cli/totals.rs is written in another way: mend this test");
    assert_eq!(first_column(&section(&readme(), "totals")), printed);
}

#[test]
fn the_files_and_places_that_are_named_exist() {
    for (file, text) in documents() {
        let named = spans(&text).into_iter().filter(|span| {
            ["src/", "tests/", "docs/", "scripts/", ".ci/", "benches/", "perf/", "examples/", "ffi/"]
                .iter()
                .any(|top| span.starts_with(top))
        });
        for path in named.filter_map(|span| span.split_whitespace().next().map(str::to_owned)) {
            assert!(root().join(&path).exists(), "{}: there is no {path}", file.display());
        }
        for target in links(&text).iter().filter(|target| !target.contains("://")) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked = if path.is_empty() { file.clone() } else { file.with_file_name("").join(path) };
            assert!(linked.exists(), "{}: there is no {target}", file.display());
            let found = anchor.is_empty() || anchors(&read(&linked)).any(|heading| heading == anchor);
            assert!(found, "{}: there is no heading for {target}", file.display());
        }
    }
}

#[test]
fn the_tests_that_are_named_exist() {
    let code: String = ["src", "tests", "examples", "ffi"]
        .iter()
        .flat_map(|top| files(&root().join(top), "rs"))
        .map(|file| read(&file))
        .collect();
    let mut named = 0;
    for (file, text) in documents() {
        for span in spans(&text).iter().filter(|span| is_identifier(span) && span.matches('_').count() > 4) {
            assert!(code.contains(&format!("fn {span}(")), "{}: there is no test {span}", file.display());
            named += 1;
        }
    }
    assert!(named > 0, "no test is named anywhere");
}

/// A row of docs/compliance.md.
struct Requirement {
    rfc: String,
    number: String,
    answer: String,
    tests: Vec<String>,
}

/// The number of the RFC that a text names first: `RFC 5508`.
fn rfc_named_in(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("RFC ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then(|| format!("RFC {digits}"))
}

fn requirements() -> Vec<Requirement> {
    let text = read(Path::new("docs/compliance.md"));
    let mut heading = "";
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with("## ") {
            heading = line;
        }
        let Some(row) = line.strip_prefix("| ").filter(|row| !row.starts_with("number ") && !row.starts_with("---"))
        else {
            continue;
        };
        let cells: Vec<&str> = row.trim_end().trim_end_matches('|').split('|').map(str::trim).collect();
        let [number, _, _, answer, shown_by] = cells.as_slice() else { panic!("not five cells: {line}") };
        let rfc = rfc_named_in(number).or_else(|| rfc_named_in(heading)).unwrap_or_else(|| panic!("whose? {line}"));
        let (number, answer) = ((*number).to_owned(), (*answer).to_owned());
        found.push(Requirement { rfc, number, answer, tests: spans(shown_by) });
    }
    found
}

#[test]
fn what_is_said_of_the_rfcs_is_shown_by_tests_that_cite_them() {
    let requirements = requirements();
    assert!(requirements.len() > 40, "docs/compliance.md is written in another way: mend this test");
    let sources: Vec<String> =
        ["src", "tests"].iter().flat_map(|top| files(&root().join(top), "rs")).map(|file| read(&file)).collect();
    let mut numbers = BTreeSet::new();
    for Requirement { rfc, number, answer, tests } in &requirements {
        assert!(numbers.insert((rfc, number)), "{rfc} {number} is there twice");
        let words = ["yes", "by configuration", "no", "not applicable here"];
        let word = words.iter().rfind(|word| answer.starts_with(**word));
        let word = word.unwrap_or_else(|| panic!("{rfc} {number}: {answer:?} begins with none of {words:?}"));
        let needs_test = ["yes", "by configuration"].contains(word);
        assert_eq!(needs_test, !tests.is_empty(), "{rfc} {number} ({word}) and its tests do not fit");
        for test in tests {
            let source = sources.iter().find(|source| source.contains(&format!("fn {test}(")));
            let source = source.unwrap_or_else(|| panic!("{rfc} {number}: there is no test {test}"));
            let citation = citation(source, test);
            let cites = |what: &str| {
                let at = citation.split(what).nth(1).and_then(|rest| rest.chars().next());
                at.is_some_and(|next| !next.is_ascii_alphanumeric())
            };
            assert!(cites(rfc), "{test} does not cite {rfc}");
            assert!(!number.starts_with("REQ-") || cites(number), "{test} does not cite {rfc} {number}");
        }
    }
}

/// The rows of what was weakened on purpose: what it was, and what failed.
fn weakened() -> Vec<(String, Vec<String>)> {
    let text = read(Path::new("docs/testing.md"));
    let (_, table) = text.split_once("| weakened | fails |").expect("docs/testing.md has the table");
    let rows =
        table.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | ").filter(|_| line.ends_with(" |")));
    rows.filter(|(what, _)| !what.starts_with("---")).map(|(what, fails)| (what.to_owned(), spans(fails))).collect()
}

#[test]
fn what_is_said_of_the_rfcs_was_broken_on_purpose() {
    let rows = weakened();
    assert!(rows.len() > 60, "docs/testing.md is written in another way: mend this test");
    for Requirement { rfc, number, tests, .. } in &requirements() {
        let mentions = |text: &str, what: &str| {
            text.split(what).skip(1).any(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric()))
        };
        let is_of = |what: &str| mentions(what, rfc) && (!number.starts_with("REQ-") || mentions(what, number));
        let shown = rows.iter().any(|(what, fails)| is_of(what) && fails.iter().any(|test| tests.contains(test)));
        assert!(
            shown || tests.is_empty(),
            "{rfc} {number}: no row of docs/testing.md says how {tests:?} was made to fail"
        );
        for test in tests {
            let failed = rows.iter().any(|(_, fails)| fails.contains(test));
            assert!(failed, "{rfc} {number}: nothing in docs/testing.md made {test} fail");
        }
    }
}

/// What stands above a function, and its first lines.
fn citation(source: &str, function: &str) -> String {
    let lines: Vec<&str> = source.lines().collect();
    let at = lines.iter().position(|line| line.contains(&format!("fn {function}("))).unwrap_or(0);
    let is_above = |line: &&&str| line.trim_start().starts_with("///") || line.trim_start().starts_with("#[");
    let above = lines[..at].iter().rev().take_while(is_above).count();
    lines[at - above..(at + 4).min(lines.len())].join("\n")
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn readme() -> String {
    read(Path::new("README.md"))
}

/// README.md, CONTRIBUTING.md and all below docs/, with their text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut paths = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    paths.extend(files(&root().join("docs"), "md"));
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths = entries.map(|entry| entry.expect("a directory that can be listed").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => files(&path, extension),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect()
}

/// The lines between `<!-- name` and `<!-- /name -->`.
fn section(text: &str, name: &str) -> String {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("<!-- {name}")));
    assert!(lines.next().is_some(), "there is no <!-- {name}");
    let end = format!("<!-- /{name} -->");
    lines.take_while(|line| **line != end).map(|line| format!("{line}\n")).collect()
}

/// The code spans of a table's first column.
fn first_column(table: &str) -> Vec<String> {
    table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next().map(str::to_owned)).collect()
}

/// The fenced blocks of a language.
fn fenced(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).filter_map(|rest| rest.split("```").next().map(str::to_owned)).collect()
}

/// What stands in single backticks, outside of fenced blocks.
fn spans(text: &str) -> Vec<String> {
    let prose = text.split("```").step_by(2);
    let lines = prose.flat_map(str::lines);
    lines.flat_map(|line| line.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The targets of links.
fn links(text: &str) -> Vec<String> {
    let prose = text.split("```").step_by(2);
    prose
        .flat_map(|part| part.split("](").skip(1))
        .filter_map(|rest| rest.split(')').next().map(str::to_owned))
        .collect()
}

/// The names by which headings are linked to.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        words.replace(' ', "-").replace(|letter: char| !letter.is_alphanumeric() && letter != '-', "")
    })
}
