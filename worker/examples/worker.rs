//! The worker as a program of its own, with the allocator of the real one: builds in a tenth of its time, for counting
//! and measuring (`fleet-loadtest worker --program …`).

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    fleet_worker::run(|_| ())
}
