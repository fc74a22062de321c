//! The header is the one that the source makes, C and C++ take it, and what the documentation says in other languages names
//! nothing that it does not have.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn the_header_is_made_from_the_source() {
    let config = cbindgen::Config::from_file(here("cbindgen.toml")).unwrap();
    let sources = ["status", "proxy", "settings", "packets", "answer", "outside"];
    let builder = sources.iter().fold(cbindgen::Builder::new().with_config(config), |builder, source| {
        builder.with_src(here(&format!("src/{source}.rs")))
    });
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    if made != header() {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("echogate.h");
        fs::write(&place, made).unwrap();
        panic!("ffi/include/echogate.h is not what the source makes\n  remedy: cp {} ffi/include/", place.display());
    }
}

#[test]
fn c_and_cpp_compilers_take_the_header_without_a_warning() {
    for (compiler, language, standard) in [("cc", "c", "-std=c11"), ("c++", "c++", "-std=c++11")] {
        let mut command = Command::new(compiler);
        command.args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-x", language]);
        let output = command.arg(here("include/echogate.h")).output();
        let output = output.unwrap_or_else(|error| panic!("{compiler}: {error}\n  remedy: scripts/install-test-tools"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_exported_function_is_in_the_header_and_none_else() {
    let sources = fs::read_dir(here("src")).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let exported: BTreeSet<String> = sources
        .flat_map(|source| {
            let functions = source.split("#[unsafe(no_mangle)]").skip(1);
            let names = functions.filter_map(|rest| rest.split("fn ").nth(1)?.split('(').next());
            names.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert!(exported.len() > 20, "{exported:?}");
    let header = header();
    let declared = header.split(|symbol: char| !symbol.is_alphanumeric() && symbol != '_' && symbol != '(');
    let declared = declared.filter_map(|word| word.strip_prefix("echogate_")?.split_once('('));
    let declared: BTreeSet<String> = declared.map(|(name, _)| format!("echogate_{name}")).collect();
    assert_eq!(exported, declared);
}

#[test]
fn the_documentation_names_nothing_that_the_header_does_not_have() {
    let header = words(&header());
    let documents = ["../docs/embedding.md", "examples/ping_through.c"];
    let mut named = BTreeSet::new();
    for document in documents {
        for name in words(&fs::read_to_string(here(document)).unwrap()) {
            let is_ours = ["echogate_", "ECHOGATE_", "Echogate"].iter().any(|start| name.starts_with(start));
            // The library's and the project's own names.
            if is_ours && !["echogate_c", "Echogate"].contains(&name.as_str()) {
                assert!(header.contains(&name), "{document}: the header has no {name}");
                named.insert(name);
            }
        }
    }
    // Each function is somewhere in the text: a server's author need not find it by chance.
    let unnamed: Vec<_> =
        header.iter().filter(|name| name.starts_with("echogate_") && !named.contains(*name)).collect();
    assert!(unnamed.is_empty(), "docs/embedding.md does not name {unnamed:?}");
}

#[test]
fn the_c_of_the_documentation_is_the_examples() {
    let example = squeezed(&fs::read_to_string(here("examples/ping_through.c")).unwrap());
    let text = fs::read_to_string(here("../docs/embedding.md")).unwrap();
    let snippets: Vec<&str> = text.split("```c\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!snippets.is_empty(), "docs/embedding.md shows no C");
    for snippet in snippets {
        assert!(example.contains(&squeezed(snippet)), "not in ffi/examples/ping_through.c:\n{snippet}");
    }
}

/// Text with all white space equal.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn words(text: &str) -> BTreeSet<String> {
    text.split(|symbol: char| !symbol.is_alphanumeric() && symbol != '_').map(str::to_owned).collect()
}

fn header() -> String {
    fs::read_to_string(here("include/echogate.h")).unwrap_or_default()
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
