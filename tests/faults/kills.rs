//! Processes that are killed.

use fleet_tests::gateway::Gateway;
use fleet_tests::process::signal;
use fleet_tests::steady_load::{Load, Plan};
use nix::sys::signal::Signal;

#[test]
fn a_killed_worker_loses_nothing_and_refuses_nobody() {
    let gateway = Gateway::start();
    let mut load = Load::start(&gateway, Plan::default());
    load.settle();
    for slot in 0..2 {
        let fault = load.fault("worker: SIGKILL");
        let pid = gateway.worker_pid(slot);
        signal(pid, Signal::SIGKILL);
        gateway.wait_for_successor(&format!("/gateway/slots/{slot}"), pid);
        fault.healed();
    }
    let verdict = load.finish(&gateway);
    verdict.assert_nothing_lost();
    verdict.assert_all_delivered();
    assert_eq!(verdict.refused, 0, "{verdict}");
}

#[test]
fn a_killed_control_loses_nothing_and_refuses_nobody() {
    let gateway = Gateway::start();
    let mut load = Load::start(&gateway, Plan::default());
    load.settle();
    for _ in 0..2 {
        let fault = load.fault("control: SIGKILL");
        let pid = gateway.control_pid();
        signal(pid, Signal::SIGKILL);
        gateway.wait_for_successor("/control", pid);
        fault.healed();
    }
    let verdict = load.finish(&gateway);
    verdict.assert_nothing_lost();
    verdict.assert_all_delivered();
    verdict.assert_none_refused();
}
