//! Processes that are stopped, and go on, or not.

use std::time::Duration;

use fleet_protocol::agent::Route;
use fleet_tests::gateway::Gateway;
use fleet_tests::process::signal;
use fleet_tests::steady_load::{Load, Plan};
use fleet_tests::wait;
use nix::sys::signal::Signal;

/// How long the short stalls are: less than what makes the supervisor give a child up.
const STALL: Duration = Duration::from_secs(3);

#[test]
fn a_stalled_worker_that_goes_on_loses_nothing() {
    let gateway = Gateway::start();
    let mut load = Load::start(&gateway, Plan::default());
    load.settle();
    let pid = gateway.worker_pid(0);
    let fault = load.fault("worker: SIGSTOP for 3 s");
    signal(pid, Signal::SIGSTOP);
    std::thread::sleep(STALL);
    signal(pid, Signal::SIGCONT);
    fault.healed();
    let verdict = load.finish(&gateway);
    verdict.assert_nothing_lost();
    verdict.assert_no_surplus();
    verdict.assert_all_delivered();
    verdict.assert_none_refused();
}

#[test]
fn a_worker_that_is_stopped_for_good_is_replaced() {
    let gateway = Gateway::start();
    let mut load = Load::start(&gateway, Plan::default());
    load.settle();
    let pid = gateway.worker_pid(0);
    let fault = load.fault("worker: SIGSTOP for good");
    signal(pid, Signal::SIGSTOP);
    gateway.wait_for_successor("/gateway/slots/0", pid);
    fault.healed();
    let verdict = load.finish(&gateway);
    verdict.assert_nothing_lost();
    verdict.assert_no_surplus();
    verdict.assert_all_delivered();
    assert_eq!(verdict.refused, 0, "{verdict}");
}

#[test]
fn a_stalled_control_delays_what_needs_it_and_nothing_else() {
    let gateway = Gateway::start();
    let mut load = Load::start(&gateway, Plan::default());
    load.settle();
    let pid = gateway.control_pid();
    let fault = load.fault("control: SIGSTOP for 3 s");
    signal(pid, Signal::SIGSTOP);
    std::thread::sleep(STALL);
    let stalled = fault.load().successes_since(fault.at(), Route::Config);
    signal(pid, Signal::SIGCONT);
    assert!(stalled > 0, "no config while control was stopped");
    fault.healed();
    let verdict = load.finish(&gateway);
    verdict.assert_nothing_lost();
    verdict.assert_no_surplus();
    verdict.assert_all_delivered();
    verdict.assert_none_refused();
}

#[test]
fn a_control_that_is_stopped_for_good_is_replaced() {
    let gateway = Gateway::start();
    let mut load = Load::start(&gateway, Plan::default());
    load.settle();
    let pid = gateway.control_pid();
    let fault = load.fault("control: SIGSTOP for good");
    signal(pid, Signal::SIGSTOP);
    gateway.wait_for_successor("/control", pid);
    fault.healed();
    let verdict = load.finish(&gateway);
    verdict.assert_nothing_lost();
    verdict.assert_all_delivered();
    verdict.assert_none_refused();
}

/// It misses its children's reports meanwhile, which must not count against them.
#[test]
fn a_stalled_supervisor_is_not_missed_and_blames_nobody() {
    let gateway = Gateway::start();
    let mut load = Load::start(&gateway, Plan::default());
    load.settle();
    let pids = [
        gateway.worker_pid(0),
        gateway.worker_pid(1),
        gateway.control_pid(),
    ];
    let fault = load.fault("supervisor: SIGSTOP for 10 s");
    gateway.supervisor.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(10));
    gateway.supervisor.signal(Signal::SIGCONT);
    wait::until("the supervisor answers", || gateway.status());
    fault.healed();
    let after = [
        gateway.worker_pid(0),
        gateway.worker_pid(1),
        gateway.control_pid(),
    ];
    assert_eq!(pids, after, "children that were well were replaced");
    let verdict = load.finish(&gateway);
    verdict.assert_nothing_lost();
    verdict.assert_no_surplus();
    verdict.assert_all_delivered();
    verdict.assert_none_refused();
}
