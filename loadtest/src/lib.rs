//! Simulated osquery agents, and what the load scenarios and the end-to-end tests build on.
//!
//! An [`agent::Agent`] speaks osquery's TLS API byte for byte and concludes from an answer what osquery concludes; its
//! actions can be called one at a time, or as the turns of its threads ([`rounds`]). Nothing here knows the server.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use std::sync::Arc;
//! use fleet_loadtest::{agent, client, host, target, tls};
//!
//! let config = tls::client_config(&tls::Trust::CaFile("ca.pem".into()), tls::Versions::Both)?;
//! let dialer = Arc::new(client::Dialer::new(config, target::Sources::default()));
//! let target = Arc::new(target::Target::parse("https://127.0.0.1:8080")?);
//! let settings = Arc::new(agent::Settings::new(fleet_protocol::secret::Secret::new("s3cr3t")));
//! let agent = agent::Agent::new(host::Host::new(1, 0), settings, dialer, target);
//! assert!(agent.enroll().await.is_success());
//! assert!(agent.config().await.is_success());
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod agent;
pub mod bodies;
pub mod client;
pub mod connection;
pub mod delivery;
pub mod hello_probe;
pub mod host;
pub mod http;
mod key_share;
pub mod lines;
pub mod listener;
pub mod osquery_server;
pub mod rounds;
pub mod scenario;
pub mod schedule;
pub mod tables;
pub mod target;
pub mod tls;
pub mod verdict;

/// Time since 1970, for lines and certificates.
pub fn unix_now() -> std::time::Duration {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}
