//! The binary: everything is in the library.

use std::process::ExitCode;

/// For C code too, so that keys and contexts of AWS-LC lie in the same heap. Its threads return memory after a storm.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    fleet_supervisor::run(std::env::args_os())
}
