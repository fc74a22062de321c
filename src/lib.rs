//! Echogate lets the clients of a VPN ping the internet. (Skeleton.)

pub mod checksum;
pub mod clock;
pub mod error;
#[cfg(feature = "gateway")]
pub mod host;
#[cfg(feature = "gateway")]
pub mod io;
pub mod metrics;
pub mod policy;
#[cfg(feature = "gateway")]
pub mod sys;
