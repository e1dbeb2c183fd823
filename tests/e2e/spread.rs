//! How agents find gateways: DNS, agent-check, the list of addresses, and a real HAProxy in front of two gateways.

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fleet_loadtest::agent::{Agent, Settings};
use fleet_loadtest::client::Dialer;
use fleet_loadtest::host::Host;
use fleet_loadtest::target::{Sources, Target};
use fleet_loadtest::tls;
use fleet_loadtest::verdict::Failure;
use fleet_protocol::agent::LogType;
use fleet_protocol::secret::Secret;
use fleet_tests::balancer::HaProxy;
use fleet_tests::gateway::{Gateway, Options, texts};
use fleet_tests::https::{Https, TlsStream};
use fleet_tests::process::{binary, run};
use fleet_tests::stores::{MariaDb, Redis};
use fleet_tests::{port, wait};
use hickory_server::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::{Name, RecordType};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const NAME: &str = "fleet.example.com.";

fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// As resolvers do: again when a packet got lost.
fn ask_udp(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(server).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let question = question(name, kind);
    wait::until("a DNS answer", || {
        socket.send(&question.to_vec().unwrap()).unwrap();
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes).ok()?;
        let answer = Message::from_vec(&bytes[..length]).unwrap();
        assert_eq!(answer.metadata.id, question.metadata.id);
        Some(answer)
    })
}

fn ask_tcp(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let mut stream = TcpStream::connect(server).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let question = question(name, kind).to_vec().unwrap();
    let length = u16::try_from(question.len()).unwrap();
    stream.write_all(&length.to_be_bytes()).unwrap();
    stream.write_all(&question).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).unwrap();
    Message::from_vec(&answer).unwrap()
}

fn told(answer: &Message) -> Vec<String> {
    let answers = answer.answers.iter();
    answers.map(|record| record.data.to_string()).collect()
}

fn agent_check(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut line = String::new();
    stream.read_to_string(&mut line).unwrap();
    line
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A connection whose request never ends, so that the drain waits for it.
fn hold(https: &Https, address: SocketAddr) -> TlsStream {
    let socket = TcpStream::connect(address).unwrap();
    let mut stream = https.handshake_later(socket).unwrap();
    stream
        .write_all(b"POST /api/osquery/config HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        .unwrap();
    stream.flush().unwrap();
    stream
}

#[test]
fn dns_and_agent_check_tell_the_truth_from_start_to_drain() {
    let (dns, check) = (local(port::free()), local(port::free()));
    let mut gateway = Gateway::options()
        .set("server.address", "127.0.0.1:0,127.0.0.2:0,127.0.0.3:0")
        .set("addresses.dns.name", "fleet.example.com")
        .set("addresses.dns.listen", dns)
        .set("addresses.dns.nameservers", "gw1.example.com")
        .set("addresses.agent_check.listen", check)
        .start();
    wait::until("the gateway wants its full share", || {
        (agent_check(check) == "up ready 100%\n").then_some(())
    });
    let all: HashSet<String> = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        .map(String::from)
        .into();
    let mut firsts: HashMap<String, usize> = HashMap::new();
    for turn in 0..30 {
        let ask = if turn % 2 == 0 { ask_udp } else { ask_tcp };
        let answer = ask(dns, NAME, RecordType::A);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.metadata.authoritative);
        let addresses = told(&answer);
        assert_eq!(addresses.iter().cloned().collect::<HashSet<_>>(), all);
        *firsts.entry(addresses[0].clone()).or_default() += 1;
    }
    // A packet that got lost and was sent again may have taken a turn.
    assert!(
        firsts.values().all(|times| (8..=12).contains(times)),
        "{firsts:?}"
    );
    let mixed = ask_udp(dns, "FLEET.Example.COM.", RecordType::A);
    assert_eq!(mixed.queries[0].name().to_string(), "FLEET.Example.COM.");
    for (name, kind, code, answers) in [
        (NAME, RecordType::AAAA, ResponseCode::NoError, 0),
        (NAME, RecordType::NS, ResponseCode::NoError, 1),
        (
            "a.fleet.example.com.",
            RecordType::A,
            ResponseCode::NXDomain,
            0,
        ),
        ("example.org.", RecordType::A, ResponseCode::Refused, 0),
    ] {
        let answer = ask_udp(dns, name, kind);
        assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
        assert_eq!(answer.answers.len(), answers, "{name} {kind}");
    }

    let held = hold(&gateway.https, gateway.address);
    gateway.supervisor.signal(Signal::SIGTERM);
    wait::until("the agent-check says drain", || {
        (agent_check(check) == "drain\n").then_some(())
    });
    let answer = ask_udp(dns, NAME, RecordType::A);
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    drop(held);
    assert_eq!(gateway.supervisor.exit_code(), 0, "{}", gateway.log());
}

#[test]
fn the_weight_follows_slots_and_control() {
    let check = local(port::free());
    let gateway = Gateway::options()
        .set("workers.count", 3)
        .set("addresses.agent_check.listen", check)
        .start();
    let wait_for = |line: &str| {
        wait::until(&format!("the agent-check says {line:?}"), || {
            (agent_check(check) == line).then_some(())
        });
    };
    wait_for("up ready 100%\n");
    // Workers miss it first, then it is replaced.
    let control = gateway.control_pid();
    signal(control, Signal::SIGSTOP);
    wait_for("down\n");
    wait_for("up ready 100%\n");
    park(&gateway, 0);
    wait_for("up ready 66%\n");
    let listed: Value =
        serde_json::from_str(&gateway.ctl(&["get", "addresses", "--json"])).unwrap();
    assert_eq!(listed["spec"]["weight"], 66);
    // More than half.
    park(&gateway, 1);
    wait_for("drain\n");
}

/// Kills a worker until its slot is given up.
fn park(gateway: &Gateway, slot: usize) {
    wait::until("the slot is parked", || {
        let status = gateway.status()?;
        let slot = &status["gateway"]["slots"][slot];
        if slot["state"] == "parked" {
            return Some(());
        }
        if let Some(pid) = slot["pid"].as_u64() {
            signal(u32::try_from(pid).unwrap(), Signal::SIGKILL);
        }
        None
    });
}

#[test]
fn addresses_are_listed_for_people_scripts_and_prometheus() {
    let gateway = Gateway::options()
        .set("server.address", "127.0.0.1:0,127.0.0.2:0")
        .start();
    let listed = wait::until("control has heard of the addresses", || {
        let text = gateway.ctl(&["get", "addresses", "--json"]);
        let listed: Value = serde_json::from_str(&text).unwrap();
        (listed["spec"]["weight"] == 100).then_some(listed)
    });
    let addresses = listed["spec"]["addresses"].as_array().unwrap();
    assert_eq!(addresses.len(), 2);
    assert_eq!(addresses[0]["address"], gateway.address.to_string());
    assert_eq!(addresses[0]["state"], "serving");
    let table = gateway.ctl(&["get", "addresses"]);
    assert!(table.contains(&gateway.address.to_string()), "{table}");
    assert!(table.contains("weight 100 %"), "{table}");
    assert!(
        gateway
            .ctl(&["get", "addresses", "--yaml"])
            .contains("draining: false")
    );
    let metrics = run(Command::new("curl")
        .args(["--silent", "--unix-socket"])
        .arg(gateway.state("run/operator.sock"))
        .arg("http://localhost/metrics"));
    let (metrics, _) = texts(&metrics);
    let line = format!(
        "fleet_gateway_address_state{{address=\"{}\",state=\"serving\"}} 1",
        gateway.address
    );
    assert!(metrics.contains(&line), "{line} is not in\n{metrics}");

    // The running server tells its port, which the configuration does not.
    let output = gateway.command(&["lb", "haproxy"]);
    let (text, error) = texts(&output);
    assert!(output.status.success(), "{error}");
    let line = format!("server gateway1 {} ", gateway.address);
    assert!(
        text.contains(&line) && text.contains("server gateway2 127.0.0.2:"),
        "{text}"
    );
}

#[test]
fn a_port_that_is_taken_is_refused_at_start() {
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let start = |flags: &[String]| {
        let output = run(Command::new(binary("fleet-supervisor"))
            .arg("start")
            .arg(format!(
                "--state_dir={}",
                dir.path().join("state").display()
            ))
            .arg("--addresses_dns_name=fleet.example.com")
            .args(flags));
        let (_, error) = texts(&output);
        (output.status.code(), error)
    };
    let (code, error) = start(&[
        "--server_address=127.0.0.1:0".into(),
        format!("--addresses_dns_listen={address}"),
    ]);
    assert_eq!(code, Some(70), "{error}");
    assert!(error.contains(&address.to_string()), "{error}");
    assert!(error.contains("addresses.dns.listen"), "{error}");
    let (code, error) = start(&[
        "--server_address=0.0.0.0:0".into(),
        format!("--addresses_dns_listen=127.0.0.1:{}", port::free()),
    ]);
    assert_eq!(code, Some(78), "{error}");
    assert!(error.contains("wildcard"), "{error}");
}

/// What agents sent through the balancer, and what became of it.
#[derive(Default)]
struct Record {
    /// Lines that an agent was told are kept.
    acknowledged: HashSet<String>,
    /// Tries that failed and were made again.
    failures: Vec<Failure>,
}

/// One agent after the other sends lines, each again until it is taken, as osquery does; and asks for its config.
async fn log_for_ever(agent: Agent, index: usize, record: &Mutex<Record>, is_over: &AtomicBool) {
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        let text = format!("{index}-{number}");
        let line = format!("{{\"line\":\"{text}\"}}").into_bytes();
        loop {
            let exchange = agent
                .log(LogType::Result, std::slice::from_ref(&line))
                .await;
            let Some(failure) = exchange.failure() else {
                break;
            };
            record.lock().unwrap().failures.push(failure.clone());
            if is_over.load(Ordering::Relaxed) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        record.lock().unwrap().acknowledged.insert(text);
        number += 1;
        let config = agent.config().await;
        if let Some(failure) = config.failure() {
            record.lock().unwrap().failures.push(failure.clone());
        }
    }
}

fn options(database: &MariaDb, redis: &Redis, agent_check: SocketAddr) -> Options {
    Gateway::options()
        .set("server.address", local(port::free()))
        .set("addresses.agent_check.listen", agent_check)
        .set("mysql.address", database.socket().display())
        .set("mysql.username", "root")
        .set("redis.address", &redis.address)
}

#[test]
fn haproxy_follows_weights_and_a_stopped_gateway_loses_nothing() {
    const AGENTS: usize = 4;
    let (database, redis) = (MariaDb::start(), Redis::start());
    let output = run(Command::new(binary("fleet-supervisor"))
        .args(["prepare", "db", "--no-prompt", "--mysql_username=root"])
        .arg(format!("--mysql_address={}", database.socket().display())));
    assert!(output.status.success(), "{:?}", texts(&output));
    let checks = [local(port::free()), local(port::free())];
    // One with PROXY headers, one without.
    let stays = options(&database, &redis, checks[0])
        .set("server.proxy_protocol", "all")
        .set("server.proxy_protocol_networks", "127.0.0.0/8")
        .start();
    // One certificate, so that agents need not know which gateway they reach.
    let mut leaves = options(&database, &redis, checks[1])
        .set("workers.count", 3)
        .set("server.cert", stays.state("tls/cert.pem").display())
        .set("server.key", stays.state("tls/key.pem").display())
        .start();
    let balancer = HaProxy::start(&[
        format!("{},agent={},proxy", stays.address, checks[0]),
        format!("{},agent={}", leaves.address, checks[1]),
    ]);
    for index in [0, 1] {
        balancer.wait_for(index, "up with its full weight", |stat| {
            stat.status == "UP" && stat.weight == 100
        });
    }

    let trust = tls::Trust::CaFile(stays.state("tls/cert.pem"));
    let config = tls::client_config(&trust, tls::Versions::Both).unwrap();
    let dialer = Arc::new(Dialer::new(config, Sources::default()));
    let target = Arc::new(Target::parse(&format!("https://{}", balancer.address)).unwrap());
    let mut settings = Settings::new(Secret::new(stays.secret()));
    settings.sleep_divisor = 20;
    let settings = Arc::new(settings);
    let (record, is_over) = (Mutex::new(Record::default()), AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    std::thread::scope(|scope| {
        let agents = scope.spawn(|| {
            runtime.block_on(async {
                let mut running = Vec::new();
                for index in 0..AGENTS {
                    let host = Host::new(7, u32::try_from(index).unwrap());
                    let agent = Agent::new(host, settings.clone(), dialer.clone(), target.clone());
                    running.push(log_for_ever(agent, index, &record, &is_over));
                }
                let mut running = running.into_iter();
                let mut next = || running.next().unwrap();
                tokio::join!(next(), next(), next(), next());
            });
        });
        let end = EndOnDrop(&is_over);
        let sessions_grow = |index: usize, by: u64| {
            let before = balancer.stat(index).sessions;
            balancer.wait_for(index, "gets more connections", |stat| {
                stat.sessions >= before + by
            });
        };
        sessions_grow(0, 20);
        sessions_grow(1, 20);

        park(&leaves, 0);
        balancer.wait_for(1, "two thirds of its weight", |stat| stat.weight == 66);
        sessions_grow(1, 10);

        let held = hold(&stays.https, leaves.address);
        leaves.supervisor.signal(Signal::SIGTERM);
        balancer.wait_for(1, "drains", |stat| stat.status.contains("DRAIN"));
        let before = balancer.stat(1).sessions;
        sessions_grow(0, 30);
        let after = balancer.stat(1).sessions;
        // Each agent may have been on its way when HAProxy heard of it.
        assert!(after - before <= AGENTS as u64, "{before} to {after}");
        drop(held);
        assert_eq!(leaves.supervisor.exit_code(), 0, "{}", leaves.log());
        balancer.wait_for(1, "down", |stat| stat.status.starts_with("DOWN"));
        sessions_grow(0, 30);
        drop(end);
        agents.join().unwrap();
    });

    let record = record.into_inner().unwrap();
    let kept: HashSet<String> = [&stays, &leaves]
        .into_iter()
        .flat_map(|gateway| gateway.journal("result"))
        .map(|text| serde_json::from_str::<Value>(&text).unwrap())
        .map(|line| line["line"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        record.acknowledged.len() > 50,
        "{}",
        record.acknowledged.len()
    );
    let lost: Vec<_> = record.acknowledged.difference(&kept).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    for failure in &record.failures {
        // Everything that osquery tries again by itself, with all that it has.
        assert!(
            !matches!(failure, Failure::NodeInvalid | Failure::Local(_)),
            "{failure:?}"
        );
    }
    println!(
        "{} lines acknowledged, {} tries made again",
        record.acknowledged.len(),
        record.failures.len()
    );
}

/// Ends the agents even when an assertion fails, so that the test does.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The scripts of a package test an installation below a directory of their own.
#[test]
fn lb_installs_below_a_root_and_says_what_is_wrong() {
    let root = tempfile::tempdir().unwrap();
    let lb = |arguments: &[&str]| {
        let output = run(Command::new(binary("fleet-supervisor"))
            .arg("lb")
            .args(arguments)
            .arg("--gateway=192.0.2.1:8080,agent=192.0.2.1:9707"));
        let (out, error) = texts(&output);
        (output.status.code(), out, error)
    };
    let root_flag = format!("--root={}", root.path().display());
    let (code, out, error) = lb(&["haproxy", "--install", &root_flag]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("Nothing is started"), "{out}");
    assert!(root.path().join("etc/haproxy/haproxy.cfg").exists());
    for (arguments, code) in [
        (vec!["haproxy", &root_flag], 64),
        (vec!["haproxy", "--install", "--output=x"], 64),
        (vec!["haproxy", "--listen=443"], 64),
        (vec!["nginx", "--gateway=192.0.2.2:8080,proxy"], 78),
        (vec!["haproxy", "--output=/nonexistent/haproxy.cfg"], 70),
    ] {
        let (found, _, error) = lb(&arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {error}");
        assert!(!error.is_empty());
    }
    let (code, text, error) = lb(&["nginx"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(text.contains("server 192.0.2.1:8080 "), "{text}");
}
