//! The supervisor: command line, listeners, processes, drain.

mod arguments;
pub mod backoff;
pub mod ctl;
mod exit;
pub mod rate;
pub mod slot;

mod address;
mod addresses;
mod admin;
mod agent_check;
mod ask;
mod banner;
mod certificate;
mod claim;
mod claiming;
mod config_file;
mod descriptors;
mod dns;
mod enroll_secret;
mod flagfile;
mod fleet_keys;
mod lb;
mod listener;
mod local_addresses;
mod local_listener;
mod log;
mod machine;
mod place;
mod port_owner;
mod prepare;
mod process;
mod reload;
mod run;
mod settings;
mod setup;
mod spread;
mod start;
mod state_dir;
mod status;
mod supervisor;
mod sys;
mod wanted;

pub use run::run;
