//! Where the gateway listens, and where its sockets are found.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
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
        let control = match (path_of(config), &config.observe.control) {
            (None, _) => None,
            (Some(path), ControlSocket::ByDevice) => SocketFile::bind(path)
                .map_err(|error| tracing::warn!(%error, "no control socket: `stats` and `top` cannot see this gateway"))
                .ok(),
            (Some(path), _) => Some(SocketFile::bind(path)?),
        };
        let (control, file) = control.unzip();
        let metrics = config.observe.metrics.map(listen).transpose()?;
        let devices =
            Devices::open().map_err(|cause| SetupError::caused("cannot read the list of interfaces", cause))?;
        Ok(Listeners { control, metrics, devices, file })
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
        std::mem::replace(&mut self.metrics, other)
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

fn listen(at: SocketAddr) -> Result<TcpListener, SetupError> {
    let bound = TcpListener::bind(at).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    bound.map_err(|cause| {
        SetupError::caused(format!("cannot serve metrics at {at}"), cause)
            .remedy("give --metrics an address of this host and a port that is free, such as 127.0.0.1:9428")
    })
}

#[cfg(test)]
mod tests {
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
