//! Where the gateway listens, and where its sockets are found.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::devices::Devices;
use crate::config::{Config, ControlSocket};
use crate::error::SetupError;

/// Where a gateway keeps what lives as long as it does, unless it is told where (systemd does: RuntimeDirectory=).
const RUN_DIRECTORY: &str = "/run/echogate";
const RUN_DIRECTORY_VARIABLE: &str = "RUNTIME_DIRECTORY";

/// The end of a control socket's name in the run directory.
const EXTENSION: &str = "sock";

/// The gateway's user and root.
const MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o755;

/// The names under which the descriptors are handed over.
const CONTROL: &str = "control";
const METRICS: &str = "metrics";
const DEVICES: &str = "devices";

/// Those of them at which somebody may wait.
pub const LISTENERS: [&str; 2] = [CONTROL, METRICS];

/// The sockets, bound: whatever is refused is refused at start. They outlive the process that serves them, if another one
/// keeps them.
#[derive(Debug)]
pub struct Listeners {
    pub(super) control: Option<UnixListener>,
    pub(super) metrics: Option<TcpListener>,
    pub(super) devices: Devices,
    /// With whoever made it.
    file: Option<SocketFile>,
}

impl Listeners {
    /// Binds what the configuration asks for, in the calling thread's network namespace. A control socket that nobody asked
    /// for and that cannot be is done without, with a warning.
    pub fn open(config: &Config) -> Result<Listeners, SetupError> {
        Listeners::take_up(config, |_| None)
    }

    /// As `open`, with what another process has bound there before ([`Listeners::copies`]), which is taken from `find`: whoever
    /// connects between the two waits, and is not refused. What it has bound elsewhere is closed.
    pub fn take_up(config: &Config, mut find: impl FnMut(&str) -> Option<OwnedFd>) -> Result<Listeners, SetupError> {
        let path = path_of(config);
        let control = match (find(CONTROL).and_then(|socket| SocketFile::left(socket.into(), path.as_deref())), path) {
            (Some(left), _) => Some(left),
            (None, None) => None,
            (None, Some(path)) if config.observe.control == ControlSocket::ByDevice => SocketFile::bind(path)
                .map_err(|error| tracing::warn!(%error, "no control socket: `stats` and `top` cannot see this gateway"))
                .ok(),
            (None, Some(path)) => Some(SocketFile::bind(path)?),
        };
        let (control, file) = control.unzip();
        let metrics = find(METRICS).map(TcpListener::from);
        // One that is elsewhere is closed before the other is bound: that could be at the same port.
        let metrics = metrics.filter(|bound| config.observe.metrics.is_some_and(|wanted| is_at(bound, wanted)));
        let metrics = match (metrics, config.observe.metrics) {
            (Some(bound), _) => Some(bound),
            (None, wanted) => wanted.map(listen).transpose()?,
        };
        let devices =
            Devices::open().map_err(|cause| SetupError::caused("cannot read the list of interfaces", cause))?;
        Ok(Listeners { control, metrics, devices, file })
    }

    /// For another process that is to listen here in the place of this one ([`Listeners::take_up`]); what cannot be copied, it
    /// binds anew.
    pub fn copies(&self) -> HashMap<String, OwnedFd> {
        let bound = self.bound().into_iter();
        bound.filter_map(|(name, descriptor)| Some((name, descriptor.try_clone_to_owned().ok()?))).collect()
    }

    /// What is bound, each under its name of [`LISTENERS`].
    pub fn bound(&self) -> Vec<(String, BorrowedFd<'_>)> {
        self.descriptors().into_iter().filter(|(name, _)| name != DEVICES).collect()
    }

    /// Leaves the control socket's file to whoever has taken the copies.
    pub fn leave_file(&mut self) {
        mem::forget(self.file.take());
    }

    /// Where `config` would have /metrics served in the place of `before`: bound, if it is elsewhere.
    pub fn with_metrics(&self, config: &Config, before: &Config) -> Result<Option<TcpListener>, SetupError> {
        match (config.observe.metrics, &self.metrics) {
            (Some(address), Some(bound)) if before.observe.metrics == Some(address) => {
                let again = bound.try_clone();
                again.map(Some).map_err(|cause| SetupError::caused(format!("cannot listen at {address}"), cause))
            }
            (wanted, _) => wanted.map(listen).transpose(),
        }
    }

    /// Has /metrics served there, for whoever gets the descriptors next; where it was.
    pub fn exchange_metrics(&mut self, other: Option<TcpListener>) -> Option<TcpListener> {
        mem::replace(&mut self.metrics, other)
    }

    /// Each under its name.
    pub fn descriptors(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let control = self.control.as_ref().map(|socket| (CONTROL.to_owned(), socket.as_fd()));
        let metrics = self.metrics.as_ref().map(|socket| (METRICS.to_owned(), socket.as_fd()));
        control.into_iter().chain(metrics).chain([(DEVICES.to_owned(), self.devices.as_fd())]).collect()
    }

    /// Those that another process has bound, under the names of [`Listeners::descriptors`], which are taken from `find`.
    pub fn adopt(mut find: impl FnMut(&str) -> Option<OwnedFd>) -> Result<Listeners, SetupError> {
        let devices = find(DEVICES);
        let devices = devices.ok_or_else(|| SetupError::new("the list of interfaces was not handed over"))?;
        Ok(Listeners {
            control: find(CONTROL).map(UnixListener::from),
            metrics: find(METRICS).map(TcpListener::from),
            devices: devices.into(),
            file: None,
        })
    }

    /// Where the control socket is, if there is one.
    pub fn control_path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.0.as_path())
    }

    /// Where /metrics is served, if it is: with the port that the kernel chose, where none was given.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }
}

/// Where the gateway with this TUN device has its control socket, unless it was told otherwise.
pub fn path_of_device(device: &str) -> PathBuf {
    run_directory().join(format!("{device}.{EXTENSION}"))
}

fn path_of(config: &Config) -> Option<PathBuf> {
    match &config.observe.control {
        ControlSocket::ByDevice => Some(path_of_device(&config.inside.device)),
        ControlSocket::At(path) => Some(path.clone()),
        ControlSocket::Nowhere => None,
    }
}

/// The control sockets in the run directory, by name; those of gateways that are gone included.
pub fn gateways() -> Vec<PathBuf> {
    // No directory: no gateway.
    let entries = fs::read_dir(run_directory()).into_iter().flatten();
    let is_socket = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == EXTENSION)
            && path.metadata().is_ok_and(|data| data.file_type().is_socket())
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_socket).collect();
    paths.sort();
    paths
}

fn run_directory() -> PathBuf {
    let given = std::env::var_os(RUN_DIRECTORY_VARIABLE).filter(|path| !path.is_empty());
    // systemd gives several, if several are configured, with colons between them: the first is ours.
    let first = given.and_then(|paths| std::env::split_paths(&paths).next());
    first.unwrap_or_else(|| RUN_DIRECTORY.into())
}

/// The control socket's file, which is removed when this is dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl SocketFile {
    /// A socket that another process has bound, if it is at the path that is wanted. If not, it goes with its file.
    fn left(socket: UnixListener, wanted: Option<&Path>) -> Option<(UnixListener, SocketFile)> {
        // It was bound under its unready name, and that is what the kernel knows.
        let file = SocketFile(socket.local_addr().ok()?.as_pathname()?.with_extension(""));
        let is_there = || file.0.symlink_metadata().is_ok_and(|data| data.file_type().is_socket());
        (wanted == Some(&file.0) && is_there()).then_some((socket, file))
    }

    fn bind(path: PathBuf) -> Result<(UnixListener, SocketFile), SetupError> {
        let shown = path.display();
        let refused = |cause: io::Error| {
            let error = SetupError::caused(format!("cannot listen at the control socket {shown}"), cause);
            error.remedy("give --control a path in a directory that this user may write to, or none")
        };
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(refused)?;
        }
        match UnixStream::connect(&path) {
            Ok(_) => {
                let error = SetupError::new(format!("the control socket {shown} is another gateway's"));
                return Err(error.remedy("give --control another path, or each gateway a --device"));
            }
            // What a gateway left behind that was killed. What is no socket is somebody's file, and binding refuses.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => match path.symlink_metadata() {
                Ok(data) if data.file_type().is_socket() => fs::remove_file(&path).map_err(refused)?,
                _ => {}
            },
            Err(_) => {}
        }
        // Under another name until its mode is right: nobody else can have opened it before.
        let unready = PathBuf::from(format!("{shown}.{}", std::process::id()));
        let bound = UnixListener::bind(&unready).and_then(|socket| {
            let ready = fs::set_permissions(&unready, Permissions::from_mode(MODE))
                .and_then(|()| socket.set_nonblocking(true))
                .and_then(|()| if path.exists() { Err(ErrorKind::AlreadyExists.into()) } else { Ok(()) })
                .and_then(|()| fs::rename(&unready, &path));
            if ready.is_err() {
                // It is not to be left behind; that it could not be made is what is told.
                let _ = fs::remove_file(&unready);
            }
            ready.map(|()| socket)
        });
        let socket = bound.map_err(refused)?;
        Ok((socket, SocketFile(path)))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "the control socket's file was gone already");
        }
    }
}

/// Whether it is what binding there gives: any port, where none is wanted.
fn is_at(bound: &TcpListener, wanted: SocketAddr) -> bool {
    let any_port = |at: SocketAddr| SocketAddr::new(at.ip(), if wanted.port() == 0 { 0 } else { at.port() });
    bound.local_addr().is_ok_and(|at| any_port(at) == any_port(wanted))
}

fn listen(at: SocketAddr) -> Result<TcpListener, SetupError> {
    let bound = TcpListener::bind(at).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    bound.map_err(|cause| {
        SetupError::caused(format!("cannot serve metrics at {at}"), cause)
            .remedy("give --metrics an address of this host and a port that is free, such as 127.0.0.1:9428")
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn the_socket_is_its_users_alone_and_goes_with_its_gateway() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("below").join("e.sock");
        let listener = SocketFile::bind(path.clone()).expect("it listens");
        let mode = path.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = SocketFile::bind(path.clone()).expect_err("taken");
        assert!(second.to_string().contains("another gateway's"), "{second}");
        drop(listener);
        assert!(!path.exists());
        let left: Vec<_> = fs::read_dir(path.parent().expect("a directory")).expect("it is there").collect();
        assert!(left.is_empty(), "{left:?}");
    }

    fn config(control: &Path, metrics: SocketAddr) -> Config {
        let mut config = Config::default();
        config.observe.control = ControlSocket::At(control.to_owned());
        config.observe.metrics = Some(metrics);
        config
    }

    fn successor(leaving: Listeners, config: &Config) -> Listeners {
        let mut leaving = leaving;
        let mut copies = leaving.copies();
        leaving.leave_file();
        drop(leaving);
        Listeners::take_up(config, |name| copies.remove(name)).expect("it listens")
    }

    #[test]
    fn who_connects_between_two_processes_waits_for_the_second() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("e.sock");
        let any_port: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let first = Listeners::open(&config(&path, any_port)).expect("it listens");
        let address = first.metrics_address().expect("it is served");
        let local = UnixStream::connect(&path).expect("it listens");
        let remote = TcpStream::connect(address).expect("it listens");
        // Nobody has accepted either.
        let second = successor(first, &config(&path, address));
        assert_eq!((second.control_path(), second.metrics_address()), (Some(&*path), Some(address)));
        second.control.as_ref().expect("it is there").accept().expect("who has come before");
        second.metrics.as_ref().expect("it is there").accept().expect("who has come before");
        drop((local, remote));
        // A port that was the kernel's choice stays the same.
        let third = successor(second, &config(&path, any_port));
        assert_eq!(third.metrics_address(), Some(address));
        drop(third);
        assert!(!path.exists());
    }

    #[test]
    fn what_was_bound_elsewhere_is_closed_and_its_file_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let [old, new] = ["old.sock", "new.sock"].map(|name| directory.path().join(name));
        let any_port = |host: &str| SocketAddr::new(host.parse().expect("an address"), 0);
        let first = Listeners::open(&config(&old, any_port("127.0.0.1"))).expect("it listens");
        let before = first.metrics_address().expect("it is served");
        let second = successor(first, &config(&new, any_port("127.0.0.2")));
        assert!(!old.exists() && UnixStream::connect(&new).is_ok());
        assert!(TcpStream::connect(before).is_err());
        let after = second.metrics_address().expect("it is served");
        assert!(TcpStream::connect(after).is_ok());
    }

    #[test]
    fn what_a_killed_gateway_left_is_taken_over_and_what_is_no_socket_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("e.sock");
        drop(UnixListener::bind(&path).expect("it binds"));
        drop(SocketFile::bind(path.clone()).expect("it listens"));
        fs::write(&path, "somebody's").expect("it can be written");
        let error = SocketFile::bind(path.clone()).expect_err("a file of somebody's").to_string();
        assert!(error.starts_with(&format!("cannot listen at the control socket {}", path.display())), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "somebody's");
    }
}
