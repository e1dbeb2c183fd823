//! What helps to find out what is wrong with this server, without anything secret in it.

pub(crate) mod scrub;
pub(crate) mod threads;
