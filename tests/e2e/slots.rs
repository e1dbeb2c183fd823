//! Slots: who is steered to them, what becomes of their queues, how they come back, how their number changes.

use std::io::{self, Write as _};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fleet_tests::gateway::{Gateway, Options, texts};
use fleet_tests::https::read_to_close;
use fleet_tests::namespace;
use fleet_tests::process::{is_alive, run, signal};
use fleet_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// Agents that ask again and again, each for itself.
const AGENTS: u64 = 4;

/// What agents saw.
#[derive(Debug, Default)]
struct Seen {
    served: AtomicU64,
    /// Nobody listened.
    refused: AtomicU64,
    /// The connection ended before the answer.
    broken: AtomicU64,
}

impl Seen {
    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn broken(&self) -> u64 {
        self.broken.load(Ordering::Relaxed)
    }

    /// Returns when that many more have been served.
    fn wait_for(&self, more: u64) {
        let until = self.served() + more;
        wait::until("agents are served", || {
            (self.served() >= until).then_some(())
        });
    }
}

/// A gateway that lets these few agents ask as often as they can.
fn busy() -> Options {
    Gateway::options()
        .set("limits.host_rate", 1_000_000)
        .set("limits.host_burst", 1_000_000)
}

/// Asks once for a config; the answer must be one.
fn ask(gateway: &Gateway, key: &str) -> io::Result<()> {
    let answer = gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": key}))?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.object().contains_key("error"), "{answer:?}");
    Ok(())
}

/// Runs `test` while agents ask.
fn under_load(gateway: &Gateway, test: impl FnOnce(&Seen)) -> Seen {
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let (seen, is_over) = (Seen::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..AGENTS {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let count = match ask(gateway, &key) {
                        Ok(()) => &seen.served,
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                            &seen.refused
                        }
                        Err(_) => &seen.broken,
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // A test that fails lets the agents end all the same.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&seen)));
        is_over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    println!("{seen:?}");
    seen
}

fn slots(gateway: &Gateway) -> Vec<Value> {
    let status = gateway.status().unwrap_or_default();
    let slots = status["gateway"]["slots"].as_array();
    slots.cloned().unwrap_or_default()
}

fn wait_for_slots(gateway: &Gateway, states: &[&str]) -> Vec<Value> {
    wait::until(&format!("slots are {states:?}"), || {
        let slots = slots(gateway);
        let are = slots.iter().map(|slot| slot["state"].as_str());
        are.eq(states.iter().copied().map(Some)).then_some(slots)
    })
}

fn wait_for_health(gateway: &Gateway, wanted: u16) {
    wait::until(&format!("health is {wanted}"), || {
        let answer = gateway.https.get("/healthz?check=gateway").ok()?;
        (answer.status == wanted).then_some(())
    });
}

/// Kills each process of a slot until it is parked.
fn park(gateway: &Gateway, slot: usize) {
    wait::until(&format!("slot {slot} is parked"), || {
        let view = slots(gateway).get(slot).cloned()?;
        if view["state"] == "parked" {
            return Some(());
        }
        let pid = view["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        if let Some(pid) = pid.filter(|pid| is_alive(*pid)) {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            // It may end by itself in between.
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        }
        None
    });
}

#[test]
fn killed_workers_cost_their_open_connections_and_nothing_else() {
    const KILLS: u64 = 6;
    let gateway = busy().start();
    let seen = under_load(&gateway, |seen| {
        for round in 0..KILLS {
            seen.wait_for(20);
            // Each serves for a while in between; a crash loop is another test's.
            let slot = usize::try_from(round % 2).unwrap();
            let pid = gateway.worker_pid(slot);
            signal(pid, Signal::SIGKILL);
            gateway.wait_for_successor(&format!("/gateway/slots/{slot}"), pid);
        }
        seen.wait_for(20);
    });
    assert_eq!(seen.refused(), 0);
    assert!(seen.broken() <= KILLS * AGENTS);
}

#[test]
fn a_worker_that_stands_still_is_replaced_and_nobody_refused() {
    let gateway = busy().start();
    let pid = gateway.worker_pid(0);
    let seen = under_load(&gateway, |seen| {
        seen.wait_for(20);
        signal(pid, Signal::SIGSTOP);
        gateway.wait_for_successor("/gateway/slots/0", pid);
        seen.wait_for(20);
    });
    assert_eq!(seen.refused(), 0);
    // What the worker had accepted; what only waited is served by the others or its successor.
    assert!(seen.broken() <= AGENTS, "{seen:?}");
    let slot = slots(&gateway).swap_remove(0);
    assert_eq!((&slot["hangs"], &slot["restarts"]), (&json!(1), &json!(1)));
    let last_end = slot["last_end"].as_str().unwrap();
    assert!(last_end.starts_with("no report for 5 s"), "{last_end}");
    let (table, _) = texts(&gateway.command(&["status"]));
    assert!(table.contains("no report for 5 s"), "{table}");
}

#[test]
fn control_that_stands_still_is_replaced() {
    let gateway = busy().start();
    let pid = gateway.control_pid();
    signal(pid, Signal::SIGSTOP);
    gateway.wait_for_successor("/control", pid);
    assert_eq!(gateway.status().unwrap()["control"]["hangs"], 1);
}

/// Parks slot 0 under load, looks at what is told of it, and gets it back.
fn a_slot_is_parked_and_comes_back() {
    let gateway = busy().start();
    let seen = under_load(&gateway, |seen| {
        seen.wait_for(20);
        park(&gateway, 0);
        seen.wait_for(100);
        let parked = &slots(&gateway)[0];
        let reason = parked["parked_for"].as_str().unwrap();
        assert!(reason.contains("again and again"), "{reason}");
        assert!(parked["retry_in_s"].as_u64().unwrap() <= 300, "{parked}");
        // Half of the slots: nobody new shall be sent here.
        wait_for_health(&gateway, 500);
        let (out, error) = texts(&gateway.command(&["reload"]));
        wait_for_slots(&gateway, &["ready", "ready"]);
        wait_for_health(&gateway, 200);
        let accepted = || slots(&gateway)[0]["stats"]["accepted"].as_u64();
        wait::until(&format!("slot 0 serves again; {out}{error}"), || {
            accepted().filter(|count| *count > 0)
        });
    });
    assert_eq!(seen.refused(), 0);
    // Each process that was killed may have had some.
    assert!(seen.broken() <= 5 * AGENTS, "{seen:?}");
}

#[test]
fn a_parked_slot_leaves_its_queue_to_the_others_and_comes_back() {
    // Where the kernel does not move connections, as by default; the others sweep the queue.
    a_slot_is_parked_and_comes_back();
}

#[test]
fn a_parked_slot_comes_back_where_the_kernel_moves_connections() {
    namespace::inside(|| {
        assert!(
            run(Command::new("ip").args(["link", "set", "lo", "up"]))
                .status
                .success()
        );
        std::fs::write("/proc/sys/net/ipv4/tcp_migrate_req", "1").unwrap();
        a_slot_is_parked_and_comes_back();
    });
}

#[test]
fn the_number_of_workers_changes_under_load_and_nobody_notices() {
    let yaml = |workers: u16| {
        format!("server:\n  address: \"127.0.0.1:0\"\nworkers:\n  count: {workers}\n")
    };
    let gateway = busy().file(&yaml(2)).start();
    assert_eq!(slots(&gateway).len(), 2);
    let seen = under_load(&gateway, |seen| {
        seen.wait_for(20);
        gateway.write_config(&yaml(4));
        let (out, error) = texts(&gateway.command(&["reload"]));
        assert!(out.contains("4 workers"), "{out}{error}");
        wait_for_slots(&gateway, &["ready"; 4]);
        wait::until("the new slots get their share", || {
            let slots = slots(&gateway);
            let accepted = |slot: &Value| slot["stats"]["accepted"].as_u64();
            slots
                .iter()
                .all(|slot| accepted(slot) > Some(0))
                .then_some(())
        });
        gateway.write_config(&yaml(1));
        gateway.supervisor.signal(Signal::SIGHUP);
        wait_for_slots(&gateway, &["ready"]);
        seen.wait_for(50);
        gateway.write_config(&yaml(2));
        gateway.supervisor.signal(Signal::SIGHUP);
        wait_for_slots(&gateway, &["ready"; 2]);
        seen.wait_for(50);
    });
    assert_eq!((seen.refused(), seen.broken()), (0, 0));
}

#[test]
fn a_drained_slot_finishes_and_is_followed() {
    let gateway = busy().start();
    let pid = gateway.worker_pid(1);
    let seen = under_load(&gateway, |seen| {
        seen.wait_for(20);
        let (out, error) = texts(&gateway.command(&["drain", "--slot", "1"]));
        assert!(out.contains("Worker 1 finishes"), "{out}{error}");
        gateway.wait_for_successor("/gateway/slots/1", pid);
        seen.wait_for(20);
    });
    assert_eq!((seen.refused(), seen.broken()), (0, 0));
    assert_eq!(slots(&gateway)[1]["last_end"], "drained, exit code 0");
    let output = gateway.command(&["drain", "--slot", "7"]);
    assert!(texts(&output).1.contains("slots are 0 to 1"), "{output:?}");
}

/// Half a request is no reason to go: it is answered by the worker that had its beginning.
#[test]
fn a_draining_worker_stays_for_what_has_begun() {
    let gateway = busy().start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let body = json!({"node_key": key}).to_string();
    let (begin, end) = body.split_at(body.len() / 2);
    let length = body.len();
    let head = format!(
        "POST /api/osquery/config HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{begin}"
    );
    // That none of them is the other worker's happens once in a million times.
    let mut streams: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = gateway.https.connect().unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let pid = gateway.worker_pid(1);
    let (out, error) = texts(&gateway.command(&["drain", "--slot", "1"]));
    assert!(out.contains("Worker 1 finishes"), "{out}{error}");
    wait::until("it drains", || {
        gateway.log().contains("draining open=").then_some(())
    });
    let gone = wait::until_or(Duration::from_secs(2), || (!is_alive(pid)).then_some(()));
    assert!(gone.is_none(), "it went with requests half read");
    for stream in &mut streams {
        stream.write_all(end.as_bytes()).unwrap();
        let answer = read_to_close(stream).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    gateway.wait_for_successor("/gateway/slots/1", pid);
}

#[test]
fn a_drained_gateway_is_told_of_no_more_and_serves_all_the_same() {
    let gateway = busy().start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    assert!(gateway.command(&["drain"]).status.success());
    assert_eq!(gateway.status().unwrap()["is_draining"], true);
    wait_for_health(&gateway, 500);
    ask(&gateway, &key).unwrap();
    assert!(gateway.command(&["drain", "--cancel"]).status.success());
    wait_for_health(&gateway, 200);
    assert_eq!(gateway.status().unwrap()["is_draining"], false);
}

#[test]
fn another_program_in_the_port_group_is_found_and_gets_nobody() {
    let gateway = busy().set("prometheus.basic_auth.disable", true).start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let foreign = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    foreign.set_reuse_port(true).unwrap();
    foreign.set_nonblocking(true).unwrap();
    foreign.bind(&gateway.address.into()).unwrap();
    foreign.listen(64).unwrap();
    let view = || gateway.status().unwrap()["gateway"]["addresses"][0].clone();
    let found = wait::until("it is found", || {
        Some(view()).filter(|view| view["foreign_listeners"] == 1)
    });
    let reason = found["reason"].as_str().unwrap();
    let pid = format!("pid {} ", std::process::id());
    assert!(reason.contains(&pid), "{reason}");
    assert_eq!(found["state"], "serving");
    assert!(gateway.log().contains("shared by"));
    // The end of a worker and the steering that follows do not let it in.
    let old = gateway.worker_pid(0);
    signal(old, Signal::SIGKILL);
    gateway.wait_for_successor("/gateway/slots/0", old);
    for _ in 0..60 {
        ask(&gateway, &key).unwrap();
    }
    let error = foreign.accept().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    let metric = wait::until("control tells it", || {
        let answer = gateway.https.get("/metrics").ok()?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let mut lines = text.lines().map(str::to_owned);
        lines.find(|line| line.starts_with("fleet_gateway_address_foreign_listeners{"))
    });
    assert!(metric.ends_with(" 1"), "{metric}");
    drop(foreign);
    wait::until("its end is seen", || {
        (view()["foreign_listeners"] == 0).then_some(())
    });
    assert_eq!(view()["reason"], "");
}
