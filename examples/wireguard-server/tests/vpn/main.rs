//! A VPN with real WireGuard clients: over this server, and over stock WireGuard in front of `echogate run`.
//!
//! Clients, server and internet are network namespaces (see `echogate::lab`); the clients are wireguard-go with the
//! system's `wg`, `ip` and `ping`. The internet has no route to the clients: what comes back has come through the server.
//! All of it takes root.

mod acceptance;
mod ear;
mod process;
mod scene;
