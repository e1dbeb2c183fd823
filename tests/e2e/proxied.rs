//! Behind a balancer: PROXY headers in front of TLS, forwarding headers in front of plain HTTP.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fleet_protocol::proxy_header::{self, PREFIX_BYTES, SIGNATURE};
use fleet_protocol::stats::ProxyHeader;
use fleet_tests::gateway::{Gateway, read, texts};
use fleet_tests::https::{Answer, Https, enroll_body, read_to_close};
use fleet_tests::process::{binary, run};
use fleet_tests::wait;
use serde_json::{Value, json};

const CLIENT: &str = "203.0.113.9:40000";
/// Longer than any deadline of the gateway's, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A balancer that passes TCP through with a PROXY header in front, and says that every client is `source`.
struct Forwarder {
    address: SocketAddr,
    source: Arc<Mutex<SocketAddr>>,
}

impl Forwarder {
    fn start(gateway: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let source = Arc::new(Mutex::new(CLIENT.parse().unwrap()));
        let told = Arc::clone(&source);
        thread::spawn(move || {
            for client in listener.incoming() {
                let header = proxy_header::encode(*told.lock().unwrap(), address);
                let Ok(client) = client else { return };
                thread::spawn(move || forward(client, gateway, &header));
            }
        });
        Self { address, source }
    }

    fn tell(&self, source: &str) {
        *self.source.lock().unwrap() = source.parse().unwrap();
    }
}

fn forward(mut client: TcpStream, gateway: SocketAddr, header: &[u8]) -> io::Result<()> {
    let mut server = TcpStream::connect(gateway)?;
    server.write_all(header)?;
    let (mut to_client, mut from_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
    io::copy(&mut client, &mut server)?;
    server.shutdown(Shutdown::Write)
}

/// What operators are told of a host's address.
fn public_ip(gateway: &Gateway, host: &str) -> String {
    fn find(value: &Value) -> Option<&str> {
        match value {
            Value::Object(members) => members
                .get("public_ip")
                .and_then(Value::as_str)
                .or_else(|| members.values().find_map(find)),
            Value::Array(items) => items.iter().find_map(find),
            _ => None,
        }
    }
    let text = gateway.ctl(&["get", "host", host, "--json"]);
    let value: Value = serde_json::from_str(&text).unwrap();
    find(&value)
        .unwrap_or_else(|| panic!("no public_ip: {text}"))
        .to_owned()
}

fn proxied(address: &str, networks: &str) -> Gateway {
    Gateway::options()
        .set("server.address", address)
        .set("server.proxy_protocol", "all")
        .set("server.proxy_protocol_networks", networks)
        .start()
}

fn write_details(https: &Https, key: &str) {
    let body = json!({"node_key": key});
    let work = https
        .post("/api/osquery/distributed/read", &body)
        .unwrap()
        .object();
    let queries = work["queries"].as_object().unwrap();
    let statuses: serde_json::Map<_, _> = queries
        .keys()
        .map(|name| (name.clone(), json!(0)))
        .collect();
    let body = json!({"queries": {"fleet_detail_query_uptime": [{"total_seconds": "5"}]},
        "statuses": statuses, "node_key": key});
    let answer = https.post("/api/osquery/distributed/write", &body).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn agents_behind_a_forwarder_are_known_by_their_own_address() {
    let gateway = proxied("127.0.0.1:0", "127.0.0.0/8");
    let forwarder = Forwarder::start(gateway.address);
    let https = Https::new(forwarder.address, &gateway.state("tls/cert.pem"));
    let key = https.enroll(&gateway.secret(), "web-1");
    assert_eq!(public_ip(&gateway, "web-1"), "203.0.113.9");
    forwarder.tell("[2001:db8::9]:40000");
    https.enroll(&gateway.secret(), "web-2");
    assert_eq!(public_ip(&gateway, "web-2"), "2001:db8::9");
    // A host that has moved is found again with its next details.
    forwarder.tell("198.51.100.7:40000");
    write_details(&https, &key);
    wait::until("the host is known by its new address", || {
        (public_ip(&gateway, "web-1") == "198.51.100.7").then_some(())
    });
}

/// Sends a header, then asks over TLS for the version.
fn ask(gateway: &Gateway, mut socket: TcpStream, header: &[u8]) -> io::Result<Answer> {
    socket.set_nodelay(true)?;
    socket.write_all(header)?;
    let mut stream = gateway.https.handshake_later(socket)?;
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    read_to_close(&mut stream)
}

fn is_served(gateway: &Gateway, socket: TcpStream, header: &[u8]) -> bool {
    ask(gateway, socket, header).is_ok_and(|answer| answer.status == 200)
}

/// Whether the gateway ends the connection without a byte.
fn is_cut(mut socket: TcpStream) -> bool {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    match socket.read(&mut [0; 16]) {
        Ok(length) => length == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// A connection from another of this machine's addresses.
fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let socket = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        let source: IpAddr = source.parse().unwrap();
        socket.bind(SocketAddr::new(source, 0)).unwrap();
        socket.connect(to).await.unwrap()
    });
    let socket = socket.into_std().unwrap();
    socket.set_nonblocking(false).unwrap();
    socket
}

/// A header with a checksum, right or wrong.
fn with_checksum(mut header: Vec<u8>, is_right: bool) -> Vec<u8> {
    let at = header.len() + 3;
    header.extend_from_slice(&[3, 0, 4, 0, 0, 0, 0]);
    let length = u16::try_from(header.len() - PREFIX_BYTES).unwrap();
    header[14..16].copy_from_slice(&length.to_be_bytes());
    let sum = proxy_header::checksum(&header, at) ^ u32::from(!is_right);
    header[at..].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Counts over all workers.
fn headers(gateway: &Gateway) -> Option<[u64; ProxyHeader::ALL.len()]> {
    let status = gateway.status()?;
    let mut sums = [0; ProxyHeader::ALL.len()];
    for slot in status["gateway"]["slots"].as_array()? {
        let counts = slot["stats"]["proxy_headers"].as_array()?;
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count.as_u64()?;
        }
    }
    Some(sums)
}

#[test]
fn a_header_is_due_exactly_where_it_is_configured() {
    let gateway = Gateway::options()
        .set("server.address", "127.0.0.1:0,127.0.0.2:0")
        .set("server.proxy_protocol", "127.0.0.1:0")
        .set("server.proxy_protocol_networks", "127.0.0.1,192.0.2.0/24")
        .set("prometheus.basic_auth.disable", true)
        .start();
    let list = read(&gateway.state("run/addresses"));
    let direct: SocketAddr = list
        .lines()
        .filter_map(|line| line.trim_start_matches("https://").parse().ok())
        .find(|address: &SocketAddr| address.ip().to_string() == "127.0.0.2")
        .unwrap();
    let connect = || TcpStream::connect(gateway.address).unwrap();
    let header = proxy_header::encode(CLIENT.parse().unwrap(), gateway.address);
    let local = [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat();

    // Taken: whole, in pieces of one byte, with a checksum.
    assert!(is_served(&gateway, connect(), &header));
    let mut slow = connect();
    slow.set_nodelay(true).unwrap();
    for byte in &header {
        slow.write_all(&[*byte]).unwrap();
    }
    assert!(is_served(&gateway, slow, &[]));
    assert!(is_served(
        &gateway,
        connect(),
        &with_checksum(header.clone(), true)
    ));
    // Health checks: with TLS, and without anything.
    assert!(is_served(&gateway, connect(), &local));
    let mut check = connect();
    check.write_all(&local).unwrap();
    drop(check);
    // Not taken.
    assert!(!is_served(&gateway, connect(), &[]));
    let mut broken = connect();
    broken
        .write_all(&with_checksum(header.clone(), false))
        .unwrap();
    assert!(is_cut(broken));
    let mut late = connect();
    late.write_all(&header[..header.len() - 1]).unwrap();
    assert!(is_cut(late));
    let mut stranger = connect_from("127.0.0.3", gateway.address);
    let _ = stranger.write_all(&header);
    assert!(is_cut(stranger));
    // One too many.
    let mut twice = connect();
    twice.write_all(&[&header[..], &header].concat()).unwrap();
    assert!(is_cut(twice));
    // Elsewhere none is due, and none is taken.
    let direct_connect = || TcpStream::connect(direct).unwrap();
    assert!(is_served(&gateway, direct_connect(), &[]));
    let mut unasked = direct_connect();
    unasked.write_all(&header).unwrap();
    assert!(is_cut(unasked));

    // Taken, local, missing, untrusted, malformed, late, abandoned, unexpected.
    let expected = [3, 2, 1, 1, 1, 1, 0, 2];
    wait::until("every header is counted", || {
        let found = headers(&gateway)?;
        assert!(
            found
                .iter()
                .zip(expected)
                .all(|(found, most)| *found <= most),
            "{found:?}"
        );
        (found == expected).then_some(())
    });
    wait::until("and shown", || {
        let mut stream = gateway.https.handshake_later(direct_connect()).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n")
            .unwrap();
        let answer = read_to_close(&mut stream).unwrap();
        let text = String::from_utf8(answer.body).unwrap();
        text.lines()
            .any(|line| {
                line.starts_with("fleet_worker_proxy_headers_total{")
                    && line.contains(r#"outcome="late""#)
                    && line.ends_with(" 1")
            })
            .then_some(())
    });
}

#[test]
fn balancers_may_speak_ipv6() {
    let gateway = proxied("[::1]:0", "::1");
    let forwarder = Forwarder::start(gateway.address);
    let https = Https::new(forwarder.address, &gateway.state("tls/cert.pem"));
    https.enroll(&gateway.secret(), "web-1");
    assert_eq!(public_ip(&gateway, "web-1"), "203.0.113.9");
}

/// A connection to a gateway that does not end TLS, which may take many requests.
struct Plain(TcpStream);

impl Plain {
    fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// Head and body of one answer.
    fn ask(&mut self, request: &str) -> (String, String) {
        self.0.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        self.0.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    fn post(&mut self, path: &str, fields: &str, body: &Value) -> (String, String) {
        let body = body.to_string();
        let length = body.len();
        self.ask(&format!(
            "POST {path} HTTP/1.1\r\nHost: f\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
        ))
    }

    /// Enrolls a host; what operators are told of its address.
    fn enroll(&mut self, gateway: &Gateway, host: &str, fields: &str) -> String {
        let body = enroll_body(&gateway.secret(), host);
        let (head, body) = self.post("/api/osquery/enroll", fields, &body);
        assert!(head.starts_with("http/1.1 200 "), "{head}{body}");
        assert!(head.contains("\r\nconnection: keep-alive\r\n"), "{head}");
        public_ip(gateway, host)
    }
}

#[test]
fn a_balancer_that_ends_tls_is_believed_and_reused() {
    let gateway = Gateway::options()
        .set("server.address", "127.0.0.1:0,[::1]:0")
        .set("server.tls", false)
        .set("server.trusted_proxies", "127.0.0.1, 10.0.0.0/8")
        .start();
    assert!(!gateway.state("tls").join("cert.pem").exists());
    let list = read(&gateway.state("run/addresses"));
    let v6 = list
        .lines()
        .filter_map(|line| line.trim_start_matches("http://").parse().ok())
        .find(SocketAddr::is_ipv6)
        .unwrap();
    let mut balancer = Plain::connect(gateway.address);
    for (host, fields, expected) in [
        (
            "web-1",
            "X-Forwarded-For: 192.0.2.66, 203.0.113.9, 10.1.2.3\r\n",
            "203.0.113.9",
        ),
        (
            "web-2",
            "X-Real-IP: 2001:db8::9\r\nX-Forwarded-For: 192.0.2.66\r\n",
            "2001:db8::9",
        ),
        ("web-3", "True-Client-IP: 203.0.113.8\r\n", "203.0.113.8"),
        ("web-4", "X-Forwarded-For: unknown\r\n", "127.0.0.1"),
    ] {
        assert_eq!(balancer.enroll(&gateway, host, fields), expected, "{host}");
    }
    // A stranger is whom the kernel says.
    let mut stranger = Plain::connect(v6);
    let forged = "True-Client-IP: 203.0.113.8\r\nX-Forwarded-For: 203.0.113.9\r\n";
    assert_eq!(stranger.enroll(&gateway, "web-5", forged), "::1");

    // An operator's request ends its connection, so that the next agent's request gets to the worker.
    let (head, _) = balancer.ask("GET /version HTTP/1.1\r\nHost: f\r\n\r\n");
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    assert!(is_cut(balancer.0));

    wait::until("believed headers are counted", || {
        let status = gateway.status()?;
        let slots = status["gateway"]["slots"].as_array()?;
        let counts = slots
            .iter()
            .map(|slot| slot["stats"]["forwarded_requests"].as_u64());
        (counts.sum::<Option<u64>>()? == 3).then_some(())
    });
}

#[test]
fn hops_count_from_the_right() {
    let gateway = Gateway::options()
        .set("server.tls", false)
        .set("server.trusted_proxies", "2")
        .start();
    let mut balancer = Plain::connect(gateway.address);
    let fields = "X-Forwarded-For: 192.0.2.66, 203.0.113.9, 198.51.100.1\r\n";
    assert_eq!(balancer.enroll(&gateway, "web-1", fields), "203.0.113.9");
}

#[test]
fn rules_that_cannot_work_are_named() {
    for (flags, expected) in [
        (
            &["--server_proxy_protocol=all"][..],
            "server.proxy_protocol_networks: list the balancers' networks",
        ),
        (
            &[
                "--server_proxy_protocol=192.0.2.1:8080",
                "--server_proxy_protocol_networks=10.0.0.0/8",
            ],
            "server.proxy_protocol: 192.0.2.1:8080 is not in server.address",
        ),
        (
            &["--server_trusted_proxies=X-Forwarded-For"],
            "server.trusted_proxies: X-Forwarded-For holds a list",
        ),
        (
            &["--server_trusted_proxies=10.0.0.0/8,lb.example.com"],
            "server.trusted_proxies: \"lb.example.com\" is not a network",
        ),
    ] {
        let output = run(Command::new(binary("fleet-supervisor"))
            .args(["config", "check"])
            .args(flags));
        let (out, error) = texts(&output);
        assert_eq!(output.status.code(), Some(78), "{out}{error}");
        assert!(
            error.contains(expected) || out.contains(expected),
            "{out}{error}"
        );
    }
}
