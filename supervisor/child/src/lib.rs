//! What each process of the gateway sets up for itself before it serves: its log, what it may still do, and how descriptors
//! reach it.

mod calls;
pub mod confine;
pub mod descriptors;
pub mod log;
pub mod memory;
pub mod recent;

pub use calls::Calls;
