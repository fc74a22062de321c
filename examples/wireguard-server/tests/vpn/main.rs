//! A VPN with real WireGuard clients: over this server, and over stock WireGuard in front of `echogate run`.
//!
//! Clients, server and internet are network namespaces (see `echogate::lab`); the clients are wireguard-go with the
//! system's `wg`, `ip` and `ping`. The internet has no route to the clients: what comes back has come through the server.
//! "Nothing came" is proven by a later packet that is the first to come, not by waiting. All of it takes root.

mod acceptance;
mod documents;
mod ear;
mod exchange;
mod hostile;
mod process;
mod router;
mod scene;
