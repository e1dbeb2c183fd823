//! The load scenarios behind the command line.

mod acknowledged;
mod backlog;
mod calibrate;
mod churn;
mod compare;
mod crowd;
mod effort;
mod exchange;
mod held;
mod html;
mod idle;
mod kernel;
mod lane;
mod machine;
mod options;
mod overload;
mod population;
mod procfs;
mod progress;
mod publish;
mod report;
mod slow;
mod stage;
mod steady;
mod storm;
mod tally;
mod timeline;
mod versions;
mod witness;
mod worker;

use std::process::ExitCode;

use clap::Parser as _;

use options::{Options, Scenario};

/// Runs what the command line says. Exit code 0 when every exchange succeeded, 1 when some failed, 64 when the run could
/// not be made.
pub fn run() -> ExitCode {
    let options = Options::parse();
    let done = match options.scenario {
        Scenario::Steady(options) => steady::run(&options),
        Scenario::Exchange(options) => exchange::run(&options),
        Scenario::Idle(options) => idle::run(&options),
        Scenario::Storm(options) => storm::run(&options),
        Scenario::Held(options) => held::run(&options),
        Scenario::Backlog(options) => backlog::run(&options),
        Scenario::Churn(options) => churn::run(&options),
        Scenario::Slow(options) => slow::run(&options),
        Scenario::Overload(options) => overload::run(&options),
        Scenario::Calibrate(options) => calibrate::run(&options),
        Scenario::Worker(options) => worker::run(&options),
        Scenario::Compare(options) => compare::run(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fleet-loadtest: {error:#}");
            ExitCode::from(64)
        }
    }
}
