//! Faults under a steady load. Whatever is broken, the same books are judged: nothing that an agent saw acknowledged is
//! lost, nobody is told that its key is unknown. Times are measured and printed, never asserted.
//!
//! `FAULTS_DIR=/tmp/faults cargo nextest run -p fleet-tests --test faults` keeps a row of each run there, and
//! `cargo run -p fleet-tests --bin faults-table /tmp/faults` shows them as a table.
//!
//! Upgrades that are interrupted half way are in `e2e/upgrade.rs`.

mod kills;
mod limits;
mod machine;
mod network;
mod stalls;
mod stores;
mod upgrades;
