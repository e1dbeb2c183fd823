//! Prints the table of faults from the rows that test runs left in a directory.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let directory = std::env::args_os()
        .nth(1)
        .or_else(|| std::env::var_os(fleet_tests::fault_table::DIRECTORY));
    let Some(directory) = directory.map(PathBuf::from) else {
        eprintln!("usage: faults-table DIRECTORY");
        return ExitCode::from(64);
    };
    match fleet_tests::fault_table::render(&directory) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("faults-table: {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}
