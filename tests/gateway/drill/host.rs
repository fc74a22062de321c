//! A host for a package: a root file system of its own over this machine's, which is gone with it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use echogate::lab::Namespace;
use tempfile::TempDir;

/// What stands for systemd's command there: it notes what it was told to do, for the test's supervisor to do.
const SYSTEMCTL: &str = "#!/bin/sh\necho \"$*\" >>/run/systemctl.asked\n";

/// A mount namespace, kept by a process that sleeps in it: an overlay that keeps what is written in memory, /run and the
/// device of TUN queues as udev and systemd make them.
pub(crate) struct Host {
    holder: Child,
    place: TempDir,
}

impl Host {
    /// One whose services find the supervisor's socket in this directory.
    pub(crate) fn new(supervisor: &Path) -> Host {
        let place = tempfile::tempdir().expect("a directory");
        let script = format!(
            "cd {0}; umask 022; mount -t tmpfs drill . ; cd {0}; mkdir upper work root; mknod tun c 10 200; chmod 666 tun
             mount -t overlay drill -o lowerdir=/,upperdir=upper,workdir=work root
             for part in proc sys dev; do mount --rbind /$part root/$part; done
             mount --bind tun root/dev/net/tun
             mount -t tmpfs drill root/run; mkdir -p root/run/systemd/system root/run/supervisor
             mount --bind {1} root/run/supervisor
             rm -f root/usr/sbin/policy-rc.d
             echo made; exec sleep infinity",
            place.path().display(),
            supervisor.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare runs");
        let mut line = String::new();
        let made = BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line);
        let host = Host { holder, place };
        assert!(made.is_ok() && line == "made\n", "no root for the package: see above");
        let systemctl = host.file("/usr/local/sbin/systemctl");
        fs::create_dir_all(systemctl.parent().expect("it has one")).expect("it can be made");
        fs::write(&systemctl, SYSTEMCTL).expect("it can be written");
        fs::set_permissions(&systemctl, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
        host
    }

    /// Where a file of this host is for everybody else.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        let root = self.place.path().join("root").display().to_string();
        PathBuf::from(format!("/proc/{}/root{root}{path}", self.holder.id()))
    }

    /// A program with its arguments, run there by root; it is the process itself that becomes it.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command.arg("chroot").arg(self.place.path().join("root")).args(words);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        command
    }

    /// The same to its end, in this network; it must end well.
    pub(crate) fn run(&self, network: &Namespace, words: &[&str]) -> String {
        let Output { status, stdout, stderr } = output(network, &mut self.command(words));
        let [printed, complaints] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(status.success(), "{words:?}: {status}: {printed}{complaints}");
        printed
    }

    /// What systemd has been told to do since the last time.
    pub(crate) fn asked_of_systemd(&self) -> String {
        let path = self.file("/run/systemctl.asked");
        let asked = fs::read_to_string(&path).unwrap_or_default();
        drop(fs::remove_file(&path));
        asked
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// What a command in this network prints and how it ends.
pub(crate) fn output(network: &Namespace, command: &mut Command) -> Output {
    command.stdin(Stdio::null());
    network.run(|| command.output()).expect("the namespace can be entered").expect("it runs")
}

/// An installed unit.
pub(crate) struct Unit(String);

impl Unit {
    pub(crate) fn installed(host: &Host) -> Unit {
        let places = ["/usr/lib/systemd/system", "/lib/systemd/system"];
        let text =
            places.iter().find_map(|place| fs::read_to_string(host.file(&format!("{place}/echogate.service"))).ok());
        Unit(text.expect("the package has a unit"))
    }

    /// What it says of this key.
    pub(crate) fn says(&self, key: &str) -> &str {
        let line = self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("the unit says nothing of {key}"))
    }

    /// The command of this key as systemd would run it: its user, its capabilities, its limits, its directory.
    pub(crate) fn command(&self, host: &Host, key: &str) -> Command {
        let names = self.says("AmbientCapabilities").to_lowercase();
        let names: Vec<String> = names.split(' ').map(|name| format!("+{}", name.trim_start_matches("cap_"))).collect();
        let (set, user) = (format!("-all,{}", names.join(",")), self.says("User"));
        assert_eq!(self.says("NoNewPrivileges"), "yes");
        let limit = |key| self.says(key).replace("infinity", "unlimited");
        // Without CAP_SYS_RESOURCE, as in most containers, nobody can have more than there is.
        let prepare = format!(
            "umask {}; for limit in 'n {}' 'l {}'; do ulimit -$limit 2>/dev/null || true; done
             export RUNTIME_DIRECTORY=/run/{} NOTIFY_SOCKET=/run/supervisor/notify LISTEN_PID=$$; exec \"$@\"",
            self.says("UMask"),
            limit("LimitNOFILE"),
            limit("LimitMEMLOCK"),
            self.says("RuntimeDirectory")
        );
        let words = [
            "sh",
            "-ec",
            &prepare,
            "sh",
            "setpriv",
            &format!("--reuid={user}"),
            &format!("--regid={user}"),
            "--clear-groups",
            "--no-new-privs",
            &format!("--bounding-set={set}"),
            &format!("--inh-caps={set}"),
            &format!("--ambient-caps={set}"),
        ];
        let own = self.says(key).trim_start_matches('-').split(' ');
        host.command(&words.into_iter().chain(own).collect::<Vec<&str>>())
    }
}
