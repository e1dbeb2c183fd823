//! Processes that are killed.

use fleet_tests::gateway::{Gateway, Options};
use fleet_tests::port;
use fleet_tests::process::signal;
use fleet_tests::steady_load::{Load, Plan, under_load};
use nix::sys::signal::Signal;

#[test]
fn a_killed_worker_loses_nothing_and_refuses_nobody() {
    let gateway = Gateway::start();
    let verdict = under_load(&gateway, |load| {
        for slot in 0..2 {
            load.fault("worker: SIGKILL", |_| {
                let pid = gateway.worker_pid(slot);
                signal(pid, Signal::SIGKILL);
                gateway.wait_for_successor(&format!("/gateway/slots/{slot}"), pid);
            });
        }
    });
    verdict.assert_none_refused();
}

#[test]
fn a_killed_control_loses_nothing_and_refuses_nobody() {
    let gateway = Gateway::start();
    let verdict = under_load(&gateway, |load| {
        for _ in 0..3 {
            load.fault("control: SIGKILL", |_| {
                let pid = gateway.control_pid();
                signal(pid, Signal::SIGKILL);
                gateway.wait_for_successor("/control", pid);
            });
        }
    });
    verdict.assert_none_cut();
}

#[test]
fn workers_and_control_killed_at_once_lose_nothing() {
    let gateway = Gateway::start();
    let verdict = under_load(&gateway, |load| {
        load.fault("both workers and control: SIGKILL", |_| {
            let workers = [gateway.worker_pid(0), gateway.worker_pid(1)];
            let control = gateway.control_pid();
            for pid in workers.into_iter().chain([control]) {
                signal(pid, Signal::SIGKILL);
            }
            gateway.wait_for_successor("/control", control);
            for (slot, pid) in workers.into_iter().enumerate() {
                gateway.wait_for_successor(&format!("/gateway/slots/{slot}"), pid);
            }
        });
    });
    verdict.assert_none_refused();
}

/// Nobody listens between the end of its children and its next life, so agents are refused, and lose nothing.
#[test]
fn a_killed_supervisor_that_is_started_again_loses_nothing() {
    let yaml = format!("server:\n  address: 127.0.0.1:{}\n", port::free());
    let gateway = Options::default().file(&yaml).start();
    let mut load = Load::settled(&gateway, Plan::default());
    let gateway = load.fault("supervisor: SIGKILL, then started again", |_| {
        gateway.crash_and_start(&yaml)
    });
    load.finish(&gateway);
}
