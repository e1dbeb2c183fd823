//! Seeded simulation of what lies between an agent's request and the disk: queues, window and claims of workers,
//! control's memory of batches, and the slots that start their processes again. The cores are the product's own files;
//! time, the link and the disk are simulated. Links break, answers come late, twice, and behind each other, processes are
//! killed and stall, the disk refuses.
//!
//! What holds in every run:
//! - each exchange ends once: with an answer, with a refusal, or with its worker;
//! - nothing is acknowledged that is not on the disk, and nothing is stored twice in one life of control;
//! - no queue, window or door holds more than its bound, a queue refuses only what does not fit, and at the end nothing is
//!   left in any of them;
//! - batches of a kind reach control in the order in which they were made, their requests too;
//! - a slot has at most one process;
//! - once the faults are over, every request is answered in time: no credit and no permit has leaked.
//!
//! `FLEET_SIM_SEEDS=100000` runs so many seeds instead of 256, `FLEET_SIM_SEED=N` runs one and prints what happens.

#[path = "../../worker/src/batch.rs"]
#[allow(dead_code, reason = "the product's file: not everything is used here")]
mod batch;
#[path = "../../control/src/dedupe.rs"]
#[allow(dead_code, reason = "the product's file: not everything is used here")]
mod dedupe;
#[path = "../../worker/src/waiting.rs"]
#[allow(dead_code, reason = "the product's file: not everything is used here")]
mod waiting;
#[path = "../../worker/src/window.rs"]
#[allow(dead_code, reason = "the product's file: not everything is used here")]
mod window;

mod control;
mod counts;
mod place;
mod worker;
mod world;

use std::panic::catch_unwind;

use world::World;

const SEEDS: u64 = 256;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}: {text}")),
    )
}

#[test]
fn every_request_is_answered_once_whatever_breaks() {
    if let Some(seed) = number("FLEET_SIM_SEED") {
        println!("{:?}", World::new(seed, true).run());
        return;
    }
    let seeds = number("FLEET_SIM_SEEDS").unwrap_or(SEEDS);
    // Other seeds in each run: what one run has shown is not shown again.
    let first = fastrand::u64(..1 << 48);
    println!("{seeds} seeds from {first} on");
    let mut sum = counts::Counts::default();
    for seed in first..first + seeds {
        match catch_unwind(|| World::new(seed, false).run()) {
            Ok(counts) => sum += counts,
            Err(panic) => {
                eprintln!(
                    "seed {seed} fails; again: FLEET_SIM_SEED={seed} cargo test -p fleet-tests --test sim"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{sum:?}");
    sum.assert_everything_happened(seeds);
}
