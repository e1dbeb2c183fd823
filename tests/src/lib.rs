//! The harness of the end-to-end tests: real processes in a temporary directory, real stores on private sockets, and
//! a client that shows exactly what a server said.
//!
//! Rules: wait for a condition with a deadline, never for a time; take ports from the kernel; end only what was
//! started here.

pub mod balancer;
pub mod detour;
pub mod failing_disk;
pub mod fault_table;
pub mod gateway;
pub mod https;
pub mod ledger;
pub mod live;
pub mod loop_disk;
pub mod namespace;
pub mod netns;
pub mod port;
pub mod process;
pub mod proxy;
pub mod steady_load;
pub mod stores;
pub mod terminal;
pub mod wait;
