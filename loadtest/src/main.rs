//! `fleet-loadtest`: see `fleet-loadtest --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    fleet_loadtest::scenario::run()
}
