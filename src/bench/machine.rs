//! The machine's description, as far as figures depend on it.

use std::collections::BTreeMap;
use std::process::Command;
use std::{env, fs};

use super::contender::{self, Contender};
use super::record::Machine;

/// What is known of this machine. Whatever cannot be read is left empty: a description is no reason to fail.
pub(super) fn describe(contenders: &[Contender], cpus: usize) -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let programs = contenders.iter().filter_map(|contender| contender.foreign_program());
    Machine {
        kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        cpu: value(&cpuinfo, "model name").unwrap_or_default(),
        cpus,
        memory_bytes: value(&read("/proc/meminfo"), "MemTotal").and_then(|text| kilobytes(&text)).unwrap_or(0),
        virtual_machine: value(&cpuinfo, "flags")
            .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
        mitigations: mitigations(),
        echogate: version(),
        build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        programs: programs.map(|name| (name.to_owned(), version_of(name))).collect(),
        load_average_percent: load_average_percent(&read("/proc/loadavg")).unwrap_or(0),
    }
}

/// The version, and the commit of the checkout that the program lies in, as in target/release; an installed program lies
/// in none.
fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let described = env::current_exe().ok().and_then(|program| {
        let arguments = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
        let output = Command::new("git").arg("-C").arg(program.parent()?).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    });
    match described {
        Some(commit) => format!("{version} ({commit})"),
        None => version.to_owned(),
    }
}

fn version_of(name: &str) -> String {
    let Some(program) = contender::program(name) else { return String::new() };
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// The first line `name : value` of a file of /proc.
fn value(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim().to_owned())
    })
}

fn kilobytes(text: &str) -> Option<u64> {
    Some(text.strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn mitigations() -> BTreeMap<String, String> {
    let files = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten();
    files
        .filter_map(|file| {
            let answer = fs::read_to_string(file.path()).ok()?.trim().to_owned();
            let name = file.file_name().to_string_lossy().into_owned();
            (answer != "Not affected").then_some((name, answer))
        })
        .collect()
}

/// `1.27 0.80 ...` is 127.
fn load_average_percent(text: &str) -> Option<u64> {
    let (whole, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 100 + hundredths.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_a_processor_and_memory() {
        let machine = describe(&[Contender::Masquerade], 1);
        assert!(machine.kernel.len() > "Linux ".len() && machine.memory_bytes > 1 << 20, "{machine:?}");
        assert!(machine.programs.contains_key("nft"), "{machine:?}");
    }

    #[test]
    fn values_are_read_as_proc_writes_them() {
        assert_eq!(
            value("model name\t: A CPU: fast\nflags : x hypervisor", "model name").as_deref(),
            Some("A CPU: fast")
        );
        assert_eq!(kilobytes("  8061836 kB"), Some(8_061_836 * 1024));
        assert_eq!(load_average_percent("1.27 0.80 0.50 1/200 77"), Some(127));
        assert_eq!(load_average_percent(""), None);
    }
}
