//! `fleet-loadtest`: see `fleet-loadtest --help`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fleet_loadtest::scenario::run()
}
