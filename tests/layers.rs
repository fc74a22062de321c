//! The shape of the source, held by the source: which module may import which, where `unsafe` may stand, what a user of
//! a part of the crate has to build.
//!
//! The one list of floors is the table in the documentation of `src/lib.rs`; this file reads it there. Files of tests
//! (`tests.rs`) and items under `#[cfg(test)]` may import what they like.
//!
//! Limits: the reader of Rust below knows comments, literals, attributes and braces, which is what rustfmt's output
//! takes; paths made by macros stay unseen. Rejected: a parser crate, a dependency larger than what it would read here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Where `unsafe` may stand, of all that is built for users. Below `ffi` it is what C's pointers are.
const UNSAFE_ALLOWED: &[&str] = &["src/sys", "src/io", "ffi"];

#[test]
fn a_module_imports_only_from_lower_floors() {
    let floors = floors();
    let mut wrong = Vec::new();
    for file in rust_files("src") {
        let Some(module) = module_of(&file).first().cloned() else { continue };
        let Some(own) = floors.get(&module) else { continue };
        for (line, imported) in imports(&file) {
            let place = format!("{}:{line}: {module} (floor {own}) imports {imported}", file.display());
            match floors.get(&imported) {
                _ if imported == module => {}
                Some(floor) if floor < own => {}
                Some(floor) => wrong.push(format!("{place} (floor {floor})")),
                None => wrong.push(format!("{place}, which is no module of the table of floors in src/lib.rs")),
            }
        }
    }
    assert!(wrong.is_empty(), "imports from the same floor or a higher one:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_of_floors_lists_every_module_and_nothing_else() {
    let listed: BTreeSet<String> = floors().into_keys().collect();
    let modules = rust_files("src").iter().filter_map(|file| module_of(file).first().cloned()).collect::<BTreeSet<_>>();
    let missing: Vec<_> = modules.difference(&listed).collect();
    assert!(missing.is_empty(), "not in the table of floors in src/lib.rs: {missing:?}");
    let gone: Vec<_> = listed.difference(&modules).filter(|name| *name != "main").collect();
    assert!(gone.is_empty(), "in the table of floors in src/lib.rs, and no module: {gone:?}");
}

#[test]
fn unsafe_stands_only_where_system_calls_and_rings_and_c_are() {
    let mut wrong = Vec::new();
    let members = rust_files("").into_iter().filter(|file| {
        let mut parts = file.iter();
        // The members' and our own; tests and benches hold themselves to the lints.
        parts.any(|part| part == "src") && !file.starts_with("target")
    });
    for file in members {
        if UNSAFE_ALLOWED.iter().any(|allowed| file.starts_with(allowed)) {
            continue;
        }
        let code = code_of(&read(&file));
        let lines = code.lines().zip(1..).filter(|(line, _)| words(line).any(|word| word == "unsafe"));
        wrong.extend(lines.map(|(_, number)| format!("{}:{number}", file.display())));
    }
    assert!(wrong.is_empty(), "`unsafe` outside {UNSAFE_ALLOWED:?}:\n{}", wrong.join("\n"));
}

/// A panic is caught before it reaches C only where panics unwind.
#[test]
fn no_profile_aborts_on_panic() {
    let profiles = read(Path::new("Cargo.toml"));
    assert!(profiles.contains("[profile.release]"), "Cargo.toml is written in another way: mend this test");
    assert!(!profiles.contains("panic ="), "ffi/ catches panics: they must unwind");
}

#[test]
fn no_file_mentions_where_somebody_keeps_a_checkout() {
    // In two pieces each, or this file would be the first to mention them.
    let private =
        [["/ho", "me/"], ["/Us", "ers/"], ["/ro", "ot/"], ["/wo", "rk/"], ["../sha", "red"]].map(|p| p.concat());
    let mut wrong = Vec::new();
    for file in project_files() {
        let Ok(text) = String::from_utf8(fs::read(root().join(&file)).expect("a file of the project")) else {
            continue;
        };
        for (line, number) in text.lines().zip(1..) {
            if private.iter().any(|path| line.contains(path.as_str())) {
                wrong.push(format!("{}:{number}: {}", file.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "paths of one machine:\n{}", wrong.join("\n"));
}

#[test]
fn the_proxy_alone_depends_on_the_map_the_queues_the_random_numbers_and_the_errnos_only() {
    let direct = dependencies(&["--no-default-features", "--depth", "1"]);
    assert_eq!(direct, ["crossbeam", "foldhash", "libc", "papaya", "rand"].map(str::to_owned).into());
    assert_without(
        &dependencies(&["--no-default-features"]),
        &["io-uring", "serde_json", "socket2", "tracing", "tun-tap"],
    );
}

#[test]
fn a_user_of_the_pinger_builds_nothing_of_the_gateway_and_no_terminal() {
    let direct = dependencies(&["--no-default-features", "--features", "pinger", "--depth", "1"]);
    let own = ["atomic-waker", "futures-core", "io-uring", "socket2", "tracing"];
    let proxys = ["crossbeam", "foldhash", "libc", "papaya", "rand"];
    assert_eq!(direct, own.into_iter().chain(proxys).map(str::to_owned).collect());
    assert_without(
        &dependencies(&["--no-default-features", "--features", "pinger"]),
        &[
            "crossterm",
            "futures-util",
            "hdrhistogram",
            "netlink-sys",
            "ratatui",
            "serde_json",
            "signal-hook",
            "tun-tap",
        ],
    );
}

#[test]
fn a_user_of_the_gateway_builds_no_command_line() {
    assert_without(&dependencies(&["--no-default-features", "--features", "gateway"]), &["hdrhistogram"]);
}

/// Asserts that neither these crates nor those of the command line, nor an async runtime, are among `names`.
fn assert_without(names: &BTreeSet<String>, unwanted: &[&str]) {
    let never = ["clap", "mimalloc", "ratatui", "tiny_http", "tokio", "tracing-subscriber"];
    let found: Vec<_> = unwanted.iter().chain(&never).filter(|name| names.contains(**name)).collect();
    assert!(found.is_empty(), "{found:?} among {names:?}");
}

/// The names of the crates that a user with these options builds.
fn dependencies(options: &[&str]) -> BTreeSet<String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(["tree", "--locked", "-e", "normal", "--prefix", "none", "-p", "echogate"]);
    let output = command.args(options).output().expect("cargo runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    tree.lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| *name != "echogate")
        .map(str::to_owned)
        .collect()
}

/// Module to floor, from the table in the documentation of the crate.
fn floors() -> BTreeMap<String, u32> {
    let text = read(Path::new("src/lib.rs"));
    let mut floors = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let Some((floor, modules)) = line.split_once(" | ") else { continue };
        let Ok(floor) = floor.parse() else { continue };
        for module in modules.trim_end_matches(" |").split(", ") {
            let before = floors.insert(module.to_owned(), floor);
            assert_eq!(before, None, "{module} stands twice in the table of floors");
        }
    }
    assert!(floors.len() > 1, "no table of floors in src/lib.rs");
    floors
}

/// The module that a file of `src` holds, as a path from the crate's root; empty for the roots and for tests.
fn module_of(file: &Path) -> Vec<String> {
    let inside = file.strip_prefix("src").expect("a file of src").with_extension("");
    let mut path: Vec<String> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if path.iter().any(|part| part == "tests") || path == ["lib"] || path == ["main"] {
        return Vec::new();
    }
    path.pop_if(|last| last == "mod");
    path
}

/// The top-level modules that a file names by a path, each with its line.
fn imports(file: &Path) -> Vec<(usize, String)> {
    let code = without_tests(&code_of(&read(file)));
    let depth = module_of(file).len();
    let mut found = Vec::new();
    for start in ["crate::".to_owned(), "echogate::".to_owned(), "super::".repeat(depth)] {
        for (at, _) in code.match_indices(&start) {
            // Part of a longer path or name: `super::super::x` in a file two deep, `my_crate::x`.
            if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':') {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            found.extend(names_at(&code[at + start.len()..]).into_iter().map(|name| (line, name)));
        }
    }
    // `super::` once too often reaches no module of ours, so what is left are names.
    found.retain(|(_, name)| name != "super");
    found
}

/// The first names of the path or of the group `{a::b, c}` at the beginning of `code`.
fn names_at(code: &str) -> Vec<String> {
    let Some(group) = code.strip_prefix('{') else {
        return words(code).next().map(str::to_owned).into_iter().collect();
    };
    let mut names = Vec::new();
    let (mut depth, mut expected) = (0, true);
    for (at, symbol) in group.char_indices() {
        match symbol {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expected = true,
            _ if expected && !symbol.is_whitespace() => {
                names.extend(words(&group[at..]).next().map(str::to_owned));
                expected = false;
            }
            _ => {}
        }
    }
    names
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|symbol: char| !symbol.is_alphanumeric() && symbol != '_').filter(|word| !word.is_empty())
}

/// The code with every item under `#[cfg(test)]` blanked, lines kept.
fn without_tests(code: &str) -> String {
    const TEST: &str = "#[cfg(test)]";
    let mut kept = String::new();
    let mut rest = code;
    while let Some(at) = rest.find(TEST) {
        kept.push_str(&rest[..at]);
        let item = &rest[at + TEST.len()..];
        let length = item_length(item);
        kept.extend(item[..length].chars().filter(|symbol| *symbol == '\n'));
        rest = &item[length..];
    }
    kept + rest
}

/// How long the item at the beginning of `code` is: to its semicolon, or to the end of its braces.
fn item_length(code: &str) -> usize {
    let mut depth = 0_u32;
    for (at, symbol) in code.char_indices() {
        match symbol {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// The text without comments and without what is in literals, lines kept.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(symbol) = rest.chars().next() {
        let length = skipped_length(rest, code.chars().next_back());
        if length == 0 {
            code.push(symbol);
            rest = &rest[symbol.len_utf8()..];
        } else {
            code.push(' ');
            code.extend(rest[..length].chars().filter(|symbol| *symbol == '\n'));
            rest = &rest[length..];
        }
    }
    code
}

/// How long the comment or literal at the beginning of `text` is; zero if there is none. `before` stands before it.
fn skipped_length(text: &str, before: Option<char>) -> usize {
    let to = |end: &str, from: usize| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return to("*/", 2);
    }
    let in_word = before.is_some_and(|symbol| symbol.is_alphanumeric() || symbol == '_');
    let raw = text.strip_prefix("br").or_else(|| text.strip_prefix('r')).filter(|_| !in_word);
    if let Some(fence) = raw.and_then(|after| after.split_once('"')).map(|(fence, _)| fence)
        && fence.chars().all(|symbol| symbol == '#')
    {
        let start = text.find('"').expect("it was split there") + 1;
        return to(&format!("\"{fence}"), start);
    }
    match text.chars().next() {
        Some('"') => quoted_length(text, '"'),
        // 'x' and '\n' are literals, 'static is a lifetime.
        Some('\'') if text.starts_with("'\\") || text.chars().nth(2) == Some('\'') => quoted_length(text, '\''),
        _ => 0,
    }
}

/// The length of the literal at the beginning of `text`, with its quotes.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, symbol) in text.char_indices().skip(1) {
        match symbol {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if symbol == quote => return at + quote.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &Path) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The Rust files below a directory of the project, as paths from its root, in order.
fn rust_files(directory: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    collect(Path::new(directory), &mut files);
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files
}

/// Every file of the project but what git and cargo make.
fn project_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    collect(Path::new(""), &mut files);
    files
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries =
        fs::read_dir(root().join(directory)).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut entries: Vec<_> = entries.map(|entry| entry.expect("an entry of the directory")).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = directory.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            if entry.file_name() != ".git" && entry.file_name() != "target" {
                collect(&path, files);
            }
        } else if entry.file_name() != ".git" {
            files.push(path);
        }
    }
}

#[test]
fn the_reader_of_rust_sees_paths_and_not_what_only_looks_like_them() {
    let text = r##"
        // crate::comment
        use crate::{one::A, two::{B, C}, three};
        const TEXT: &str = "crate::text \" crate::still";
        const RAW: &str = r#"crate::raw " unsafe"#;
        fn f<'a>(c: &'a char) -> bool { *c == '"' || *c == '\'' || crate::four::g(c) }
        #[cfg(test)]
        mod tests { use crate::five; fn h() { if true {} } }
        #[cfg(test)]
        use crate::six;
        use crate::seven;
    "##;
    let code = without_tests(&code_of(text));
    let found: Vec<_> =
        code.match_indices("crate::").flat_map(|(at, path)| names_at(&code[at + path.len()..])).collect();
    assert_eq!(found, ["one", "two", "three", "four", "seven"]);
    assert_eq!(code.lines().count(), text.lines().count());
    assert!(!words(&code).any(|word| word == "unsafe"));
}
