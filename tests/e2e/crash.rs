//! Processes that are killed: what is queued is served, what was acknowledged is on disk.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fleet_tests::gateway::Gateway;
use fleet_tests::https::read_to_close;
use fleet_tests::process::signal;
use fleet_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

#[test]
fn connections_queued_on_a_killed_worker_are_all_served() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let pids = [gateway.worker_pid(0), gateway.worker_pid(1)];
    // It would replace processes that stand still.
    gateway.supervisor.signal(Signal::SIGSTOP);
    for pid in pids {
        signal(pid, Signal::SIGSTOP);
    }
    // Nobody accepts now; the kernel queues these.
    let queued: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(gateway.address).expect("refused"))
        .collect();
    for pid in pids {
        signal(pid, Signal::SIGKILL);
    }
    gateway.supervisor.signal(Signal::SIGCONT);
    let body = json!({"node_key": key}).to_string();
    let request = format!(
        "POST /api/osquery/config HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    for (index, socket) in queued.into_iter().enumerate() {
        let mut stream = gateway.https.handshake_later(socket).unwrap();
        stream
            .write_all(request.as_bytes())
            .unwrap_or_else(|error| panic!("{index}: {error}"));
        let answer = read_to_close(&mut stream).unwrap_or_else(|error| panic!("{index}: {error}"));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    for (slot, pid) in pids.into_iter().enumerate() {
        gateway.wait_for_successor(&format!("/gateway/slots/{slot}"), pid);
    }
    let status = gateway.status().unwrap();
    assert_eq!(status["gateway"]["slots"][0]["restarts"], 1);
}

#[test]
fn every_acknowledged_line_is_stored_once_whenever_control_is_killed() {
    const AGENTS: usize = 8;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    println!("seed {seed}");
    let gateway = Gateway::start();
    let keys: Vec<_> = (0..AGENTS)
        .map(|n| {
            gateway
                .https
                .enroll(&gateway.secret(), &format!("host-{n}"))
        })
        .collect();
    let is_over = AtomicBool::new(false);
    let acknowledged = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (agent, key) in keys.iter().enumerate() {
            let (gateway, is_over, acknowledged) = (&gateway, &is_over, &acknowledged);
            scope.spawn(move || {
                let mut n = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let line = format!("{agent}-{n}");
                    // As an agent: the same line again until it is acknowledged.
                    loop {
                        let body = json!({"data": [{"line": line}], "log_type": "result", "node_key": key});
                        match gateway.https.post("/api/osquery/log", &body) {
                            Ok(answer) => {
                                let object = answer.object();
                                assert!(!object.contains_key("node_invalid"), "{object:?}");
                                if object.is_empty() {
                                    acknowledged.lock().unwrap().push(line);
                                    break;
                                }
                            }
                            Err(_) if !is_over.load(Ordering::Relaxed) => {}
                            Err(_) => return,
                        }
                    }
                    n += 1;
                }
            });
        }
        for _ in 0..6 {
            let wanted = acknowledged.lock().unwrap().len() + random.usize(1..100);
            wait::until("agents log", || {
                (acknowledged.lock().unwrap().len() > wanted).then_some(())
            });
            std::thread::sleep(Duration::from_micros(random.u64(..20_000)));
            let pid = gateway.control_pid();
            signal(pid, Signal::SIGKILL);
            gateway.wait_for_successor("/control", pid);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let mut seen: HashMap<String, usize> = HashMap::new();
    for text in gateway.journal("result") {
        let line: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        *seen
            .entry(line["line"].as_str().unwrap().to_owned())
            .or_default() += 1;
    }
    let acknowledged = acknowledged.into_inner().unwrap();
    for line in &acknowledged {
        assert!(seen.contains_key(line), "acknowledged and lost: {line}");
    }
    // What was stored and not answered was sent again to the next process, which knew it.
    let twice: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "stored twice: {twice:?}");
    println!("{} lines acknowledged", acknowledged.len());
}

#[test]
fn workers_answer_alone_while_control_is_away() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let read = json!({"node_key": key});
    // Takes what is due, so that the next reads have nothing to return.
    for _ in 0..4 {
        gateway
            .https
            .post("/api/osquery/distributed/read", &read)
            .unwrap();
    }
    wait::until("both workers answer reads alone", || {
        (0..8)
            .all(|_| {
                gateway
                    .https
                    .post("/api/osquery/distributed/read", &read)
                    .unwrap()
                    .object()
                    .is_empty()
            })
            .then_some(())
    });
    let pid = gateway.control_pid();
    gateway.supervisor.signal(Signal::SIGSTOP);
    signal(pid, Signal::SIGSTOP);
    for path in ["config", "distributed/read"] {
        for _ in 0..8 {
            let answer = gateway
                .https
                .post(&format!("/api/osquery/{path}"), &read)
                .unwrap();
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            assert!(!answer.object().contains_key("error"), "{path}: {answer:?}");
        }
    }
    signal(pid, Signal::SIGCONT);
    gateway.supervisor.signal(Signal::SIGCONT);
}

#[test]
fn a_request_held_while_control_restarts_is_answered() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let pid = gateway.control_pid();
    gateway.supervisor.signal(Signal::SIGSTOP);
    signal(pid, Signal::SIGSTOP);
    std::thread::scope(|scope| {
        let log = scope.spawn(|| {
            gateway.https.post(
                "/api/osquery/log",
                &json!({"data": [{"held": true}], "log_type": "result", "node_key": key}),
            )
        });
        std::thread::sleep(Duration::from_millis(300));
        signal(pid, Signal::SIGKILL);
        gateway.supervisor.signal(Signal::SIGCONT);
        let answer = log.join().unwrap().unwrap();
        assert!(answer.object().is_empty(), "{answer:?}");
    });
    assert!(
        gateway
            .journal("result")
            .contains(&r#"{"held":true}"#.to_owned())
    );
}

#[test]
fn a_slot_that_cannot_live_is_parked_and_the_others_serve() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    wait::until("slot 0 is parked", || {
        let status = gateway.status()?;
        let slot = &status["gateway"]["slots"][0];
        if slot["state"] == "parked" {
            return Some(());
        }
        if let Some(pid) = slot["pid"].as_u64() {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        }
        None
    });
    let served = (0..40)
        .filter(|_| {
            let mut stream = gateway.https.connect().unwrap();
            stream
                .sock
                .set_read_timeout(Some(Duration::from_millis(1500)))
                .unwrap();
            let body = json!({"node_key": key}).to_string();
            let head = format!(
                "POST /api/osquery/config HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).is_ok()
                && read_to_close(&mut stream).is_ok()
        })
        .count();
    assert!(served > 0, "the other slot serves");
}
