//! End to end: what users and agents see, with real processes. One binary, a module for each subject.

mod addresses;
mod agents;
mod claims;
mod cli;
mod compare;
mod contract;
mod crash;
mod first_start;
mod held;
mod herds;
mod journal;
mod loadtest;
mod namespaces;
mod operator;
mod outage;
mod outage_store;
mod plan;
mod preflight;
mod proxied;
mod renewal;
mod replicas;
mod sandbox;
mod slots;
mod spread;
mod tls;
mod tune;
