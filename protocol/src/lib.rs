//! The vocabulary that supervisor, workers and control share.
//!
//! Invariants: nothing in this crate reads a file, a clock or a socket, and nothing in it is unsafe. A default, a
//! limit, a config field, a message or a refusal exists here and nowhere else.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod address;
pub mod address_list;
pub mod admin;
pub mod agent;
pub mod config;
pub mod feed;
pub mod frame;
pub mod grouped;
pub mod hello;
pub mod hold;
pub mod ids;
pub mod limits;
pub mod link;
pub mod measured;
pub mod networks;
pub mod proxied;
pub mod proxy_header;
pub mod reject;
pub mod sandbox;
pub mod secret;
mod shed;
pub mod slot;
pub mod stats;
pub mod tickets;
mod tls_stats;
pub mod trusted_proxies;
pub mod upgrade;
pub mod weight;
#[cfg(test)]
mod wire_tests;
