//! A scraper and a health check, by hand: HTTP on a connection made in a namespace.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use echogate::lab::Namespace;

use crate::scene::PATIENCE;

/// Where gateways serve metrics in these tests: each in its own namespace.
pub(crate) const METRICS: &str = "127.0.0.1:9428";

/// The flags for that.
pub(crate) fn metrics_flags() -> Vec<String> {
    ["--metrics", METRICS].map(str::to_owned).to_vec()
}

/// A connection from inside the namespace.
pub(crate) fn connect(namespace: &Namespace, at: &str) -> std::io::Result<TcpStream> {
    let at: SocketAddr = at.parse().expect("an address");
    let stream = namespace.run(|| TcpStream::connect_timeout(&at, Duration::from_secs(5))).expect("a namespace")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// What is answered to these bytes, until the other end hangs up.
pub(crate) fn answer(namespace: &Namespace, at: &str, request: &[u8]) -> std::io::Result<String> {
    let mut stream = connect(namespace, at)?;
    stream.write_all(request)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Status and body of a page.
pub(crate) fn get(namespace: &Namespace, at: &str, path: &str) -> std::io::Result<(u16, String)> {
    // Of 1.0, so that a body comes as it is, and not in portions.
    let text = answer(namespace, at, format!("GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").as_bytes())?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.unwrap_or_else(|| panic!("no status: {text:?}")), body.to_owned()))
}
