//! What each process of the gateway sets up for itself before it serves: its log, and what it may still do.

mod calls;
pub mod confine;
pub mod log;
pub mod memory;

pub use calls::Calls;
