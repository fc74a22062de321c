//! The host around the gateway: its TUN device, the rules that lead clients' echo requests into it, and the
//! preconditions of both.

pub mod cpus;
pub mod device;
pub mod divert;
pub mod netlink;
pub mod nft;
#[cfg(test)]
mod scene;
