//! The little that is read of UDP and TCP: which port a packet goes to.

use super::ipv4::{self, Ipv4};

/// The UDP or TCP port that the packet goes to. None for other protocols, for later fragments (the port is in the
/// first) and for a payload that ends before it.
#[inline]
pub fn destination_port<B: AsRef<[u8]>>(packet: &Ipv4<B>) -> Option<u16> {
    if !matches!(packet.protocol(), ipv4::UDP | ipv4::TCP) || packet.is_later_fragment() {
        return None;
    }
    // Both UDP (RFC 768) and TCP (RFC 9293) begin with the port it comes from and the port it goes to.
    let [_, _, high, low] = packet.payload().first_chunk()?;
    Some(u16::from_be_bytes([*high, *low]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build::Datagram;
    use std::net::Ipv4Addr;

    const PORTS: [u8; 4] = [0x9C, 0x40, 0x00, 0x35];

    fn port(protocol: u8, more_fragments: bool, fragment_offset: usize, payload: &[u8]) -> Option<u16> {
        let addresses = (Ipv4Addr::new(10, 66, 0, 2), Ipv4Addr::new(198, 18, 0, 53));
        let datagram = Datagram::new(addresses.0, addresses.1, protocol, payload.to_vec());
        let bytes = Datagram { more_fragments, fragment_offset, ..datagram }.build();
        destination_port(&Ipv4::check(&bytes[..]).unwrap())
    }

    #[test]
    fn udp_and_tcp_have_a_port() {
        assert_eq!(port(ipv4::UDP, false, 0, &PORTS), Some(53));
        assert_eq!(port(ipv4::TCP, false, 0, &PORTS), Some(53));
        assert_eq!(port(ipv4::UDP, true, 0, &PORTS), Some(53));
    }

    #[test]
    fn anything_else_has_none() {
        assert_eq!(port(ipv4::ICMP, false, 0, &PORTS), None);
        assert_eq!(port(47, false, 0, &PORTS), None);
        assert_eq!(port(ipv4::UDP, true, 8, &PORTS), None);
        assert_eq!(port(ipv4::UDP, false, 8, &PORTS), None);
        for length in 0..4 {
            assert_eq!(port(ipv4::UDP, false, 0, &PORTS[..length]), None);
        }
    }
}
