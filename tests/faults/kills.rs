//! Processes that are killed.

use fleet_tests::gateway::{Gateway, Options};
use fleet_tests::port;
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
    verdict.assert_no_surplus();
    verdict.assert_all_delivered();
    assert_eq!(verdict.refused, 0, "{verdict}");
}

#[test]
fn a_killed_control_loses_nothing_and_refuses_nobody() {
    let gateway = Gateway::start();
    let mut load = Load::start(&gateway, Plan::default());
    load.settle();
    for _ in 0..3 {
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

#[test]
fn workers_and_control_killed_at_once_lose_nothing() {
    let gateway = Gateway::start();
    let mut load = Load::start(&gateway, Plan::default());
    load.settle();
    let fault = load.fault("both workers and control: SIGKILL");
    let workers = [gateway.worker_pid(0), gateway.worker_pid(1)];
    let control = gateway.control_pid();
    for pid in workers.into_iter().chain([control]) {
        signal(pid, Signal::SIGKILL);
    }
    gateway.wait_for_successor("/control", control);
    for (slot, pid) in workers.into_iter().enumerate() {
        gateway.wait_for_successor(&format!("/gateway/slots/{slot}"), pid);
    }
    fault.healed();
    let verdict = load.finish(&gateway);
    verdict.assert_nothing_lost();
    verdict.assert_all_delivered();
    assert_eq!(verdict.refused, 0, "{verdict}");
}

/// Nobody listens between the end of its children and its next life, so agents are refused, and lose nothing.
#[test]
fn a_killed_supervisor_that_is_started_again_loses_nothing() {
    let yaml = format!("server:\n  address: 127.0.0.1:{}\n", port::free());
    let gateway = Options::default().file(&yaml).start();
    let mut load = Load::start(&gateway, Plan::default());
    load.settle();
    let fault = load.fault("supervisor: SIGKILL, then started again");
    let gateway = gateway.crash_and_start(&yaml);
    fault.healed();
    let verdict = load.finish(&gateway);
    verdict.assert_nothing_lost();
    verdict.assert_all_delivered();
}
