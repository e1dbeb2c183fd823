//! What each process of the gateway sets up for itself before it serves: its log, and what it may still do.

pub mod log;
