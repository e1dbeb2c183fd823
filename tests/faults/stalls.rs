//! Processes that are stopped, and go on, or not.

use std::time::Duration;

use fleet_protocol::agent::Route;
use fleet_tests::gateway::Gateway;
use fleet_tests::process::signal;
use fleet_tests::steady_load::under_load;
use fleet_tests::wait;
use nix::sys::signal::Signal;

/// How long the short stalls are: less than what makes the supervisor give a child up.
const STALL: Duration = Duration::from_secs(3);

#[test]
fn a_stalled_worker_that_goes_on_loses_nothing() {
    let gateway = Gateway::start();
    let verdict = under_load(&gateway, |load| {
        let pid = gateway.worker_pid(0);
        load.fault("worker: SIGSTOP for 3 s", |_| {
            signal(pid, Signal::SIGSTOP);
            std::thread::sleep(STALL);
            signal(pid, Signal::SIGCONT);
        });
    });
    verdict.assert_none_cut();
}

#[test]
fn a_worker_that_is_stopped_for_good_is_replaced() {
    let gateway = Gateway::start();
    let verdict = under_load(&gateway, |load| {
        let pid = gateway.worker_pid(0);
        load.fault("worker: SIGSTOP for good", |_| {
            signal(pid, Signal::SIGSTOP);
            gateway.wait_for_successor("/gateway/slots/0", pid);
        });
    });
    verdict.assert_none_refused();
}

#[test]
fn a_stalled_control_delays_what_needs_it_and_nothing_else() {
    let gateway = Gateway::start();
    let verdict = under_load(&gateway, |load| {
        let pid = gateway.control_pid();
        load.fault("control: SIGSTOP for 3 s", |fault| {
            signal(pid, Signal::SIGSTOP);
            std::thread::sleep(STALL);
            let configs = fault.successes(Route::Config);
            signal(pid, Signal::SIGCONT);
            assert!(configs > 0, "no config while control was stopped");
        });
    });
    verdict.assert_none_cut();
}

#[test]
fn a_control_that_is_stopped_for_good_is_replaced() {
    let gateway = Gateway::start();
    let verdict = under_load(&gateway, |load| {
        let pid = gateway.control_pid();
        load.fault("control: SIGSTOP for good", |_| {
            signal(pid, Signal::SIGSTOP);
            gateway.wait_for_successor("/control", pid);
        });
    });
    verdict.assert_none_cut();
}

/// It misses its children's reports meanwhile, which must not count against them.
#[test]
fn a_stalled_supervisor_is_not_missed_and_blames_nobody() {
    let gateway = Gateway::start();
    let children = || {
        let workers = [0, 1].map(|slot| gateway.worker_pid(slot));
        (workers, gateway.control_pid())
    };
    let verdict = under_load(&gateway, |load| {
        let before = children();
        load.fault("supervisor: SIGSTOP for 10 s", |_| {
            gateway.supervisor.signal(Signal::SIGSTOP);
            std::thread::sleep(Duration::from_secs(10));
            gateway.supervisor.signal(Signal::SIGCONT);
            wait::until("the supervisor answers", || gateway.status());
        });
        assert_eq!(before, children(), "children that were well were replaced");
    });
    verdict.assert_none_cut();
}
