//! What a gateway does not let in, rung by rung, and that agents lose nothing by it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use fleet_loadtest::agent::{Agent, Settings};
use fleet_loadtest::client::Dialer;
use fleet_loadtest::host::Host;
use fleet_loadtest::target::{Sources, Target};
use fleet_loadtest::tls::{Trust, Versions, client_config};
use fleet_protocol::agent::LogType;
use fleet_protocol::proxy_header;
use fleet_protocol::secret::Secret;
use fleet_tests::gateway::{Gateway, Options};
use fleet_tests::https::{Answer, enroll_body, read_to_close};
use fleet_tests::process::signal;
use fleet_tests::wait;
use nix::sys::signal::Signal;
use serde_json::json;

const CONFIG: &str = "/api/osquery/config";
/// Longer than any deadline of the gateway's, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// One worker, so that each rate is its own.
fn one_worker() -> Options {
    Gateway::options().set("workers.count", 1)
}

fn with_file(limits: &str) -> String {
    format!("server: {{address: 127.0.0.1:0}}\nlimits: {limits}\n")
}

/// What `/metrics` says of refusals for this reason, over all slots.
fn refused(gateway: &Gateway, reason: &str) -> f64 {
    metric(
        gateway,
        "fleet_worker_refused_total",
        &format!("reason=\"{reason}\""),
    )
}

fn metric(gateway: &Gateway, name: &str, label: &str) -> f64 {
    let answer = gateway.https.get("/metrics").unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    let of = |line: &&str| line.starts_with(name) && line.contains(label);
    let lines = text.lines().filter(of);
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

fn assert_told_to_come_back(answer: &Answer) {
    assert_eq!(answer.status, 429, "{answer:?}");
    let object = answer.object();
    assert!(object.contains_key("error"), "{answer:?}");
    assert!(!object.contains_key("node_invalid"), "{answer:?}");
    assert!(!object.contains_key("node_key"), "{answer:?}");
}

#[test]
fn a_host_that_asks_too_often_is_told_to_come_back_and_a_reload_lets_it() {
    let limits = |rest: &str| with_file(&format!("{{host_rate: 1, host_burst: {rest}}}"));
    let yaml = |burst: &str| {
        limits(burst).replace(
            "limits:",
            "prometheus: {basic_auth: {disable: true}}\nlimits:",
        )
    };
    let gateway = one_worker().file(&yaml("2")).start();
    let [noisy, quiet] =
        ["web-1", "web-2"].map(|name| gateway.https.enroll(&gateway.secret(), name));
    let config = |key: &str| {
        gateway
            .https
            .post(CONFIG, &json!({"node_key": key}))
            .unwrap()
    };
    // The bucket grows meanwhile: sooner or later it is empty.
    let answer = wait::until("the host is refused", || {
        let answer = config(&noisy);
        (answer.status != 200).then_some(answer)
    });
    assert_told_to_come_back(&answer);
    assert_eq!(config(&quiet).status, 200);
    wait::until("it is counted", || {
        (refused(&gateway, "host_rate") >= 1.0).then_some(())
    });
    let (status, _) = fleet_tests::gateway::texts(&gateway.command(&["status"]));
    assert!(status.contains("host_rate"), "{status}");
    // A connection that is open stays so.
    let mut open = gateway.https.connect().unwrap();
    open.write_all(format!("POST {CONFIG} HTTP/1.1\r\n").as_bytes())
        .unwrap();
    gateway.write_config(&yaml("100000"));
    let reloaded = gateway.command(&["reload"]);
    assert!(reloaded.status.success(), "{reloaded:?}");
    // What the host owes is forgiven at its rate: the bucket is larger now.
    wait::until("the host is served again and again", || {
        (0..20).all(|_| config(&noisy).status == 200).then_some(())
    });
    let body = json!({"node_key": quiet}).to_string();
    let rest = format!("Host: f\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    open.write_all(rest.as_bytes()).unwrap();
    assert_eq!(read_to_close(&mut open).unwrap().status, 200);
}

#[test]
fn enrolments_beyond_the_rate_get_no_key_and_no_host() {
    let gateway = one_worker().set("limits.enroll_rate", 1).start();
    let mut refused = None;
    let mut enrolled = 0;
    for number in 0..40 {
        let body = enroll_body(&gateway.secret(), &format!("web-{number}"));
        let answer = gateway.https.post("/api/osquery/enroll", &body).unwrap();
        if answer.status == 429 {
            assert_told_to_come_back(&answer);
            refused = Some(number);
            break;
        }
        assert!(answer.object().contains_key("node_key"), "{answer:?}");
        enrolled += 1;
    }
    let number = refused.expect("one of many in a row is refused");
    let hosts = gateway.ctl(&["get", "hosts", "--json"]);
    assert!(!hosts.contains(&format!("web-{number}")), "{hosts}");
    assert!(enrolled >= 2, "a burst is let through");
    // It comes back, as agents do.
    wait::until("the host enrolls", || {
        let body = enroll_body(&gateway.secret(), &format!("web-{number}"));
        let answer = gateway.https.post("/api/osquery/enroll", &body).unwrap();
        answer.object().contains_key("node_key").then_some(())
    });
}

fn agent(gateway: &Gateway, index: u32) -> Agent {
    let target = Arc::new(Target::parse(&format!("https://{}", gateway.address)).unwrap());
    let sources = Sources::default_for(std::slice::from_ref(&target), 100);
    let config = client_config(&Trust::Nothing, Versions::Both).unwrap();
    let mut settings = Settings::new(Secret::new(gateway.secret()));
    // Newer agents pause for a while after a failure.
    settings.sleep_divisor = 100;
    Agent::new(
        Host::new(7, index),
        Arc::new(settings),
        Arc::new(Dialer::new(config, sources)),
        target,
    )
}

/// Lines that the agent holds, and lines that the journal does: together all that it ever had.
#[test]
fn agents_keep_their_lines_when_they_are_refused() {
    let gateway = one_worker().set("limits.log_rate", 1).start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let line =
        |number: usize| format!("{{\"name\":\"q\",\"action\":\"added\",\"n\":\"line-{number}\"}}");
    let (mut number, mut refusals) = (0, 0);
    runtime.block_on(async {
        let agent = agent(&gateway, 0);
        assert!(agent.enroll().await.is_success());
        while refusals < 3 {
            assert!(number < 2000, "never refused");
            agent
                .buffer_line(LogType::Result, line(number).into_bytes())
                .await;
            number += 1;
            let before = agent.buffered_lines(LogType::Result).await;
            // It pauses after a failure.
            let round = agent.log_round(tokio::time::Instant::now()).await;
            let after = agent.buffered_lines(LogType::Result).await;
            assert_eq!(before, after + round.delivered, "{round:?}");
            assert!(round.failures == 0 || round.delivered == 0, "{round:?}");
            refusals += round.failures;
            if round.failures + u32::from(round.delivered == 0) > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let key = agent.node_key();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while agent.buffered_lines(LogType::Result).await > 0 {
            assert!(tokio::time::Instant::now() < deadline);
            agent.log_round(tokio::time::Instant::now()).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(agent.node_key(), key, "it never enrolled again");
    });
    let journal = gateway.journal("result");
    for number in 0..number {
        let text = format!("\"line-{number}\"");
        let count = journal.iter().filter(|line| line.contains(&text)).count();
        assert_eq!(count, 1, "line {number}");
    }
}

/// Says through a trusted balancer that it is `client`, and asks for the configuration; `None` when it is cut off.
fn through_balancer(gateway: &Gateway, client: &str) -> Option<Answer> {
    let mut socket = TcpStream::connect(gateway.address).unwrap();
    let client: SocketAddr = client.parse().unwrap();
    let server = match client {
        SocketAddr::V4(_) => gateway.address,
        SocketAddr::V6(_) => "[2001:db8::1]:8080".parse().unwrap(),
    };
    socket
        .write_all(&proxy_header::encode(client, server))
        .unwrap();
    let mut stream = gateway.https.handshake_later(socket).unwrap();
    let request = b"GET /healthz HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n";
    stream.write_all(request).ok()?;
    read_to_close(&mut stream).ok()
}

#[test]
fn an_address_with_too_many_connections_is_cut_off_before_tls() {
    let gateway = one_worker()
        .set("server.proxy_protocol", "all")
        .set("server.proxy_protocol_networks", "127.0.0.0/8")
        .set("limits.address_rate", 1)
        .set("limits.address_burst", 3)
        .start();
    let handshakes = || {
        let status = gateway.status().unwrap();
        status["gateway"]["slots"][0]["stats"]["handshakes"][0]
            .as_u64()
            .unwrap()
    };
    wait::until("an address is cut off", || {
        through_balancer(&gateway, "192.0.2.1:1000")
            .is_none()
            .then_some(())
    });
    let shed = |reason: usize| {
        let status = gateway.status().unwrap();
        status["gateway"]["slots"][0]["stats"]["shed"][reason]
            .as_u64()
            .unwrap()
    };
    wait::until("it is counted", || (shed(2) >= 1).then_some(()));
    assert_eq!(
        through_balancer(&gateway, "192.0.2.2:1000").unwrap().status,
        200
    );
    // One customer's network, however many addresses it has.
    let mut number = 0;
    wait::until("an IPv6 network is cut off", || {
        number += 1;
        let client = format!("[2001:db8:1:2::{number:x}]:1000");
        through_balancer(&gateway, &client).is_none().then_some(())
    });
    assert!(through_balancer(&gateway, "[2001:db8:1:3::1]:1000").is_some());
    wait::until("both are counted", || (shed(2) >= 2).then_some(()));
    // Who was cut off made no handshake.
    wait::until("all the others are", || (handshakes() >= 5).then_some(()));
}

/// The rest of the burst, and all that comes later, waits in the kernel's queue until the slow ones are gone.
#[test]
fn slow_handshakes_shut_the_door_until_their_deadline() {
    let gateway = one_worker()
        .set("limits.handshakes_per_worker_max", 4)
        .set("limits.handshake_deadline", "2s")
        .start();
    let slow: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut socket = TcpStream::connect(gateway.address).unwrap();
            // The first byte of a ClientHello, so that the kernel hands it out.
            socket.write_all(&[22]).unwrap();
            socket
        })
        .collect();
    let stats = |pointer: &str| {
        let status = gateway.status().unwrap();
        status["gateway"]["slots"][0]["stats"]
            .pointer(pointer)
            .unwrap()
            .as_u64()
            .unwrap()
    };
    wait::until("the door is shut", || {
        (stats("/door_shut/1") >= 1).then_some(())
    });
    // Waits, and is served.
    gateway.https.enroll(&gateway.secret(), "web-1");
    for mut socket in slow {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
        assert!(rest.is_empty(), "nothing was said to a slow peer");
    }
    wait::until("no handshake is in progress", || {
        (stats("/handshaking") == 0).then_some(())
    });
    assert!(stats("/handshakes/2") >= 4, "late");
}

#[test]
fn who_waited_too_long_or_left_is_closed_before_tls() {
    let gateway = one_worker().set("limits.queue_age_max", "500ms").start();
    let stats = |pointer: &str| {
        let status = gateway.status().unwrap();
        status["gateway"]["slots"][0]["stats"]
            .pointer(pointer)
            .unwrap()
            .as_u64()
            .unwrap()
    };
    let failed_before = stats("/handshakes/1") + stats("/handshakes/3");
    let pid = gateway.worker_pid(0);
    signal(pid, Signal::SIGSTOP);
    let connect = || {
        let mut socket = TcpStream::connect(gateway.address).unwrap();
        socket.write_all(&[22, 3, 1]).unwrap();
        socket
    };
    let mut late = connect();
    drop(connect());
    std::thread::sleep(Duration::from_millis(800));
    signal(pid, Signal::SIGCONT);
    late.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    let _ = late.read_to_end(&mut rest);
    assert!(rest.is_empty());
    wait::until("one was too old", || (stats("/shed/0") == 1).then_some(()));
    wait::until("one had gone", || (stats("/shed/1") == 1).then_some(()));
    assert_eq!(
        stats("/handshakes/1") + stats("/handshakes/3"),
        failed_before
    );
    gateway.https.enroll(&gateway.secret(), "web-1");
}

#[test]
fn the_limits_that_hold_are_shown_and_a_cap_without_its_deadline_is_none() {
    let gateway = one_worker().set("tune.hosts", 700).start();
    let (dump, _) = fleet_tests::gateway::texts(&gateway.command(&["config", "dump"]));
    for line in [
        "read_rate: 1000",
        "host_rate: 20",
        "handshakes_per_worker_max: 7500",
        "enroll_rate: 500",
    ] {
        assert!(dump.contains(line), "{line}: {dump}");
    }
    let mut other = gateway.command(&["config", "check", "--limits_handshake_deadline=0s"]);
    let text = String::from_utf8_lossy(&std::mem::take(&mut other.stderr)).into_owned();
    assert!(
        !other.status.success() && text.contains("limits.handshake_deadline"),
        "{text}"
    );
}

/// Room for more comes without anybody being put out.
#[test]
fn a_reload_gives_room_for_more_connections() {
    let yaml = |most: u32| {
        format!(
            "server: {{address: 127.0.0.1:0, connections_per_worker_max: {most}}}\nlimits: {{handshakes_per_worker_max: {most}}}\n"
        )
    };
    let gateway = one_worker().file(&yaml(2)).start();
    let mut held: Vec<_> = (0..2).map(|_| gateway.https.connect().unwrap()).collect();
    for stream in &mut held {
        stream
            .write_all(b"POST /api/osquery/enroll HTTP/1.1\r\n")
            .unwrap();
    }
    let stats = |name: &str| {
        let status = gateway.status().unwrap();
        status["gateway"]["slots"][0]["stats"][name]
            .as_u64()
            .unwrap()
    };
    wait::until("the worker is full", || {
        (stats("open_connections") == 2).then_some(())
    });
    gateway.write_config(&yaml(10));
    let reloaded = gateway.command(&["reload"]);
    assert!(reloaded.status.success(), "{reloaded:?}");
    wait::until("the worker has heard", || {
        (stats("open_connections_max") == 10).then_some(())
    });
    gateway.https.enroll(&gateway.secret(), "web-1");
    let body = enroll_body(&gateway.secret(), "web-2").to_string();
    let stream = held.first_mut().unwrap();
    stream
        .write_all(format!("Host: f\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
        .unwrap();
    let answer = read_to_close(stream).unwrap();
    assert!(answer.object().contains_key("node_key"), "{answer:?}");
}
