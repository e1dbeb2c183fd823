//! `fleet-loadtest`: see `fleet-loadtest --help`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    fleet_loadtest::scenario::run()
}
