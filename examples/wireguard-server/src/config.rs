//! The configuration: a file as wg-quick(8) reads it, for a server.
//!
//! What wg-quick takes and this server does not do (commands, DNS, routing tables) is refused by name, not ignored: a
//! file that seems to work and does half of what it says is worse than an error. IPv4 only.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::{fs, str};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use echogate::error::SetupError;
use echogate::policy::Prefix;

/// What wg-quick chooses over a path of 1500 bytes: 20 of IPv4 or 40 of IPv6, 8 of UDP, 32 of WireGuard.
const MTU_DEFAULT: u16 = 1420;
const MTU_MIN: u16 = 576;

/// Echogate's own limit on the prefixes of clients: a shorter one holds more addresses than a table can have lines.
const PREFIX_LENGTH_MIN: u8 = 8;

/// A private, public or preshared key.
pub(crate) type Key = [u8; 32];

pub(crate) struct Config {
    pub(crate) private_key: Key,
    /// The server's address inside.
    pub(crate) address: Ipv4Addr,
    /// The network that the address is in.
    pub(crate) network: Prefix,
    pub(crate) listen_port: u16,
    pub(crate) mtu: u16,
    pub(crate) peers: Vec<PeerConfig>,
}

pub(crate) struct PeerConfig {
    pub(crate) public_key: Key,
    pub(crate) preshared_key: Option<Key>,
    /// The addresses that the peer's packets come from, and that packets for it go to.
    pub(crate) allowed: Vec<Prefix>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) keepalive_seconds: Option<u16>,
}

impl Config {
    pub(crate) fn read(path: &Path) -> Result<Config, SetupError> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|cause| {
            SetupError::caused(format!("cannot read {name}"), cause).remedy("a file as wg-quick takes it")
        })?;
        Config::parse(&text).map_err(|Refusal { line, why }| SetupError::new(format!("{name}:{line}: {why}")))
    }

    fn parse(text: &str) -> Result<Config, Refusal> {
        let mut interface = Interface::default();
        let mut peers: Vec<Peer> = Vec::new();
        let mut section = Section::None;
        let mut number = 0;
        for line in text.lines() {
            number += 1;
            let refused = |why: String| Refusal { line: number, why };
            let line = line.split('#').next().unwrap_or_default().trim();
            match (line.to_ascii_lowercase().as_str(), line.split_once('=')) {
                ("", _) => {}
                ("[interface]", _) => section = Section::Interface,
                ("[peer]", _) => {
                    section = Section::Peer;
                    peers.push(Peer { line: number, ..Peer::default() });
                }
                (_, None) => return Err(refused(format!("{line:?} is neither a section nor a key with a value"))),
                (_, Some((key, value))) => {
                    let (key, value) = (key.trim(), value.trim());
                    let set = match (section, peers.last_mut()) {
                        (Section::Interface, _) => interface.set(key, value),
                        (Section::Peer, Some(peer)) => peer.set(key, value),
                        _ => Err(format!("{key} stands in no section")),
                    };
                    set.map_err(refused)?;
                }
            }
        }
        let peers = peers.into_iter().map(Peer::complete).collect::<Result<Vec<_>, _>>()?;
        let config = interface.complete(peers).map_err(|why| Refusal { line: number, why })?;
        config.check_peers().map_err(|why| Refusal { line: number, why })?;
        Ok(config)
    }

    /// The prefixes that clients come from, none of them within another: the server's network, and what peers have
    /// beyond it.
    pub(crate) fn clients(&self) -> Vec<Prefix> {
        let all: Vec<Prefix> =
            self.peers.iter().flat_map(|peer| peer.allowed.iter().copied()).chain([self.network]).collect();
        let mut clients: Vec<Prefix> =
            all.iter().filter(|own| !all.iter().any(|other| other != *own && other.covers(**own))).copied().collect();
        clients.sort_unstable();
        clients.dedup();
        clients
    }

    fn check_peers(&self) -> Result<(), String> {
        for (number, peer) in self.peers.iter().enumerate() {
            for other in &self.peers[..number] {
                if other.public_key == peer.public_key {
                    return Err(format!("two peers have the public key {}", BASE64.encode(peer.public_key)));
                }
                if let Some(prefix) = peer.allowed.iter().find(|prefix| other.allowed.contains(prefix)) {
                    return Err(format!("two peers have the AllowedIPs {prefix}"));
                }
            }
        }
        Ok(())
    }
}

struct Refusal {
    line: usize,
    why: String,
}

#[derive(Clone, Copy)]
enum Section {
    None,
    Interface,
    Peer,
}

#[derive(Default)]
struct Interface {
    private_key: Option<Key>,
    address: Option<(Ipv4Addr, Prefix)>,
    listen_port: Option<u16>,
    mtu: Option<u16>,
}

impl Interface {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key.to_ascii_lowercase().as_str() {
            "privatekey" => self.private_key = Some(key_of(value)?),
            "address" if self.address.is_some() || value.contains(',') => {
                return Err("this server has one address".to_owned());
            }
            "address" => self.address = Some(address_in_network(value)?),
            "listenport" => self.listen_port = Some(number(value)?),
            "mtu" => self.mtu = Some(number(value).and_then(at_least_mtu_min)?),
            "preup" | "postup" | "predown" | "postdown" => {
                return Err(format!("{key}: this server runs no commands; run it yourself"));
            }
            "dns" | "table" | "saveconfig" | "fwmark" => return Err(format!("{key}: this server does not do that")),
            _ => return Err(format!("an [Interface] has no {key}")),
        }
        Ok(())
    }

    fn complete(self, peers: Vec<PeerConfig>) -> Result<Config, String> {
        let missing = |key| format!("the [Interface] has no {key}");
        let (address, network) = self.address.ok_or_else(|| missing("Address"))?;
        Ok(Config {
            private_key: self.private_key.ok_or_else(|| missing("PrivateKey"))?,
            address,
            network,
            listen_port: self.listen_port.ok_or_else(|| missing("ListenPort"))?,
            mtu: self.mtu.unwrap_or(MTU_DEFAULT),
            peers,
        })
    }
}

#[derive(Default)]
struct Peer {
    line: usize,
    public_key: Option<Key>,
    preshared_key: Option<Key>,
    allowed: Vec<Prefix>,
    endpoint: Option<SocketAddr>,
    keepalive_seconds: Option<u16>,
}

impl Peer {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key.to_ascii_lowercase().as_str() {
            "publickey" => self.public_key = Some(key_of(value)?),
            "presharedkey" => self.preshared_key = Some(key_of(value)?),
            "allowedips" => {
                for part in value.split(',') {
                    self.allowed.push(address_in_network(part.trim())?.1);
                }
            }
            "endpoint" => {
                let endpoint = value.parse::<SocketAddrV4>();
                let unfit = |_| format!("{value:?} is not an IPv4 address with a port; names are not looked up");
                self.endpoint = Some(endpoint.map_err(unfit)?.into());
            }
            "persistentkeepalive" if value == "off" => self.keepalive_seconds = None,
            "persistentkeepalive" => self.keepalive_seconds = Some(number(value)?),
            _ => return Err(format!("a [Peer] has no {key}")),
        }
        Ok(())
    }

    fn complete(self) -> Result<PeerConfig, Refusal> {
        let refused = |why: String| Refusal { line: self.line, why };
        if let Some(prefix) = self.allowed.iter().find(|prefix| prefix.length() < PREFIX_LENGTH_MIN) {
            return Err(refused(format!(
                "AllowedIPs {prefix}: a peer of this server has a prefix of {PREFIX_LENGTH_MIN} bits or more"
            )));
        }
        Ok(PeerConfig {
            public_key: self.public_key.ok_or_else(|| refused("this [Peer] has no PublicKey".to_owned()))?,
            preshared_key: self.preshared_key,
            allowed: self.allowed,
            endpoint: self.endpoint,
            keepalive_seconds: self.keepalive_seconds.filter(|seconds| *seconds > 0),
        })
    }
}

/// The value is not repeated in the error: it may be a private key with a slip in it.
fn key_of(value: &str) -> Result<Key, String> {
    let key = BASE64.decode(value).ok().and_then(|bytes| Key::try_from(bytes).ok());
    key.ok_or_else(|| "not a key: 32 bytes in Base64, as `wg genkey` prints them".to_owned())
}

fn number(value: &str) -> Result<u16, String> {
    value.parse().map_err(|_| format!("{value:?} is not a number of 0 to 65535"))
}

fn at_least_mtu_min(mtu: u16) -> Result<u16, String> {
    if mtu < MTU_MIN { Err(format!("{mtu} is too small: IPv4 needs {MTU_MIN}")) } else { Ok(mtu) }
}

/// `10.66.0.1/24`: the address, and the network that it is in.
fn address_in_network(value: &str) -> Result<(Ipv4Addr, Prefix), String> {
    let bad = || format!("{value:?} is not an IPv4 address with a prefix length, such as 10.66.0.2/32");
    let (address, length) = value.split_once('/').unwrap_or((value, "32"));
    let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
    let length: u8 = length.parse().ok().filter(|length| *length <= 32).ok_or_else(bad)?;
    let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    let network = Prefix::new(Ipv4Addr::from(u32::from(address) & mask), length);
    network.map(|network| (address, network)).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const OTHER: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    fn interface() -> String {
        format!("[Interface]\nPrivateKey = {KEY}\nAddress = 10.66.0.1/24\nListenPort = 51820\n")
    }

    fn refusal(text: &str) -> (usize, String) {
        match Config::parse(text) {
            Ok(_) => panic!("accepted: {text}"),
            Err(Refusal { line, why }) => (line, why),
        }
    }

    #[test]
    fn a_file_as_wg_quick_takes_it() {
        let text = format!(
            "{}mtu = 1380 # a comment\n\n[peer]\nPublicKey={KEY}\nPresharedKey = {OTHER}\n\
             AllowedIPs = 10.66.0.2/32, 192.168.7.9/24\nPersistentKeepalive = 25\nEndpoint = 192.0.2.7:4500\n\
             [Peer]\nPublicKey = {OTHER}\nAllowedIPs = 10.66.0.3\nPersistentKeepalive = off\n",
            interface()
        );
        let config = Config::parse(&text).ok().unwrap();
        assert_eq!((config.private_key, config.listen_port, config.mtu), ([1; 32], 51820, 1380));
        assert_eq!((config.address, config.network.to_string()), (Ipv4Addr::new(10, 66, 0, 1), "10.66.0.0/24".into()));
        let [first, second] = &config.peers[..] else { panic!("two peers") };
        assert_eq!(
            (first.public_key, first.preshared_key, first.keepalive_seconds),
            ([1; 32], Some([2; 32]), Some(25))
        );
        assert_eq!(first.allowed.iter().map(Prefix::to_string).collect::<Vec<_>>(), ["10.66.0.2/32", "192.168.7.0/24"]);
        assert_eq!(first.endpoint, Some("192.0.2.7:4500".parse().unwrap()));
        assert_eq!((second.preshared_key, second.endpoint, second.keepalive_seconds), (None, None, None));
        let clients: Vec<_> = config.clients().iter().map(Prefix::to_string).collect();
        assert_eq!(clients, ["10.66.0.0/24", "192.168.7.0/24"], "10.66.0.2/32 is within the network");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let peer = format!("{}[Peer]\n", interface());
        for (text, line, part) in [
            ("Address = 10.66.0.1/24".to_owned(), 1, "stands in no section"),
            ("[Interface]\nprivatekey = abc".to_owned(), 2, "not a key"),
            (format!("{}ListenPort = 65536", interface()), 5, "65536"),
            (format!("{}Address = 10.66.0.9/24", interface()), 5, "one address"),
            (format!("{}MTU = 500", interface()), 5, "576"),
            (format!("{}PostUp = true", interface()), 5, "runs no commands"),
            (format!("{}Table = off", interface()), 5, "does not do that"),
            (format!("{}Colour = red", interface()), 5, "no Colour"),
            (format!("{}nonsense", interface()), 5, "neither a section"),
            (format!("[Interface]\nPrivateKey = {KEY}\nListenPort = 1"), 3, "no Address"),
            (peer.clone(), 5, "no PublicKey"),
            (format!("{peer}AllowedIPs = fd00::2/128"), 6, "IPv4"),
            (format!("{peer}AllowedIPs = 10.66.0.2/33"), 6, "10.66.0.2/33"),
            (format!("{peer}PublicKey = {KEY}\nAllowedIPs = 0.0.0.0/0"), 5, "8 bits"),
            (format!("{peer}Endpoint = vpn.example:51820"), 6, "not an IPv4 address"),
            (format!("{peer}Endpoint = [fd00::1]:51820"), 6, "not an IPv4 address"),
            (format!("{peer}PublicKey = {KEY}\n[Peer]\nPublicKey = {KEY}"), 8, "two peers"),
            (
                format!("{peer}PublicKey={KEY}\nAllowedIPs=10.66.0.2\n[Peer]\nPublicKey={OTHER}\nAllowedIPs=10.66.0.2"),
                10,
                "two peers",
            ),
        ] {
            let (found, why) = refusal(&text);
            assert!(why.contains(part) && found == line, "{text}\n{found}: {why}");
        }
    }

    #[test]
    fn a_key_with_a_slip_is_not_repeated_in_the_error() {
        let (_, why) = refusal("[Interface]\nPrivateKey = c2VjcmV0IQ==");
        assert!(!why.contains("c2VjcmV0"), "{why}");
    }

    #[test]
    fn the_error_names_the_file() {
        let error = Config::read(Path::new("no-such.conf")).err().unwrap().to_string();
        assert!(error.contains("no-such.conf") && error.contains("remedy: "), "{error}");
    }
}
