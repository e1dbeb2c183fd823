//! The supervisor: command line, listeners, processes, drain.

mod arguments;
pub mod backoff;
pub mod ctl;
mod exit;
pub mod rate;
pub mod slot;

mod admin;
mod ask;
mod banner;
mod certificate;
#[cfg_attr(not(test), expect(dead_code, reason = "start takes the claims next"))]
mod claim;
mod config_file;
mod descriptors;
mod enroll_secret;
mod flagfile;
mod fleet_keys;
mod listener;
mod log;
mod machine;
mod place;
mod port_owner;
mod prepare;
mod process;
mod run;
mod settings;
mod setup;
mod start;
mod state_dir;
mod status;
mod supervisor;
mod sys;

pub use run::run;
