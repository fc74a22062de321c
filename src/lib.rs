//! Echogate lets the clients of a VPN ping the internet.

pub mod checksum;
pub mod clock;
#[cfg(feature = "gateway")]
pub mod config;
pub mod error;
#[cfg(feature = "gateway")]
pub mod host;
#[cfg(feature = "gateway")]
pub mod io;
#[cfg(feature = "lab")]
pub mod lab;
pub mod metrics;
pub mod policy;
pub mod proxy;
#[cfg(feature = "gateway")]
pub mod sys;
pub mod table;
pub mod wire;
#[cfg(feature = "gateway")]
pub mod worker;
