//! Several addresses: each is counted, fails and returns by itself, and comes and goes while the others serve.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use fleet_protocol::proxy_header;
use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::https::TlsStream;
use fleet_tests::process::{binary, run, signal};
use fleet_tests::{port, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

fn yaml(addresses: &[&str]) -> String {
    let list = addresses.join(", ");
    format!("server:\n  address: \"{list}\"\n")
}

fn view(gateway: &Gateway, address: &str) -> Option<Value> {
    let status = gateway.status()?;
    let views = status["gateway"]["addresses"].as_array()?;
    let view = views.iter().find(|view| view["address"] == address);
    view.cloned()
}

fn wait_for_state(gateway: &Gateway, address: &str, state: &str) -> Value {
    wait::until(&format!("{address} is {state}"), || {
        view(gateway, address).filter(|view| view["state"] == state)
    })
}

/// Asks there for a config with an unknown key, which any server of ours answers.
fn is_served(gateway: &Gateway, address: &str) -> bool {
    let asked = connect(gateway, address).and_then(|mut stream| ask(&mut stream));
    asked.is_ok_and(|text| text.contains("node_invalid"))
}

/// Trusts what the first address may show: an address that came with a reload is not in the certificate.
fn connect(gateway: &Gateway, address: &str) -> std::io::Result<TlsStream> {
    gateway.https.handshake_later(TcpStream::connect(address)?)
}

fn ask(stream: &mut TlsStream) -> std::io::Result<String> {
    let body = r#"{"node_key":"unknown"}"#;
    write!(
        stream,
        "POST /api/v1/osquery/config HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn ranges_are_served_and_counted_one_by_one() {
    let port = port::free();
    let range = format!("127.0.0.2-127.0.0.4:{port}");
    let gateway = Gateway::options().file(&yaml(&[&range])).start();
    let addresses: Vec<_> = (2..=4).map(|n| format!("127.0.0.{n}:{port}")).collect();
    for (index, address) in addresses.iter().enumerate() {
        for _ in 0..=index {
            assert!(is_served(&gateway, address), "{address}");
        }
    }
    for (index, address) in addresses.iter().enumerate() {
        let counts = wait::until(&format!("{address} is quiet"), || {
            let view = view(&gateway, address)?;
            let is_quiet = view["accepted"] != 0 && view["open"] == 0;
            is_quiet.then(|| [view["accepted"].clone(), view["refused"].clone()])
        });
        assert_eq!(counts, [index + 1, index + 1], "{address}");
    }
    let (table, _) = texts(&gateway.command(&["status"]));
    assert!(
        table.contains("SHARE") && table.contains(&addresses[2]),
        "{table}"
    );
}

#[test]
fn a_taken_address_is_tried_again_while_the_others_serve() {
    let port = port::free();
    let taken = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let addresses = [format!("127.0.0.1:{port}"), format!("127.0.0.2:{port}")];
    let gateway = Gateway::options()
        .file(&yaml(&[&addresses[0], &addresses[1]]))
        .start();
    let view = wait_for_state(&gateway, &addresses[1], "degraded");
    let reason = view["reason"].as_str().unwrap();
    assert!(reason.contains(&std::process::id().to_string()), "{reason}");
    assert!(is_served(&gateway, &addresses[0]));
    let workers = [gateway.worker_pid(0), gateway.worker_pid(1)];
    drop(taken);
    wait_for_state(&gateway, &addresses[1], "serving");
    wait::until("a worker listens there", || {
        is_served(&gateway, &addresses[1]).then_some(())
    });
    assert_eq!(workers, [gateway.worker_pid(0), gateway.worker_pid(1)]);
}

#[test]
fn a_reload_adds_and_withdraws_without_touching_connections() {
    let port = port::free();
    let [first, second, third] = [1, 2, 3].map(|n| format!("127.0.0.{n}:{port}"));
    let gateway = Gateway::options().file(&yaml(&[&first, &second])).start();
    let workers = [gateway.worker_pid(0), gateway.worker_pid(1)];
    // Open before the reload, used after it.
    let mut kept: Vec<TlsStream> = Vec::new();
    for address in [&first, &second] {
        let mut stream = connect(&gateway, address).unwrap();
        stream
            .write_all(b"POST /api/v1/osquery/config HTTP/1.1\r\n")
            .unwrap();
        kept.push(stream);
    }
    gateway.write_config(&yaml(&[&first, &third]));
    let output = gateway.command(&["reload"]);
    let (out, error) = texts(&output);
    assert!(output.status.success(), "{error}");
    assert!(out.contains(&format!("Serves {third}")), "{out}");
    assert!(out.contains(&format!("Withdraws {second}")), "{out}");
    for mut stream in kept {
        let body = r#"{"node_key":"unknown"}"#;
        write!(
            stream,
            "Host: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 "));
    }
    // Those who know it are served for a while.
    assert!(is_served(&gateway, &second));
    wait::until("the new address serves", || {
        is_served(&gateway, &third).then_some(())
    });
    wait::until("the withdrawn address takes no connection", || {
        let address: SocketAddr = second.parse().unwrap();
        TcpStream::connect(address).is_err().then_some(())
    });
    wait::until("the withdrawn address is forgotten", || {
        view(&gateway, &second).is_none().then_some(())
    });
    assert!(is_served(&gateway, &first));
    assert_eq!(workers, [gateway.worker_pid(0), gateway.worker_pid(1)]);

    // A successor gets what is served now, and no more.
    signal(workers[0], Signal::SIGKILL);
    gateway.wait_for_successor("/gateway/slots/0", workers[0]);
    for _ in 0..20 {
        assert!(is_served(&gateway, &first) && is_served(&gateway, &third));
    }
}

#[test]
fn a_reload_turns_proxy_headers_on_and_off() {
    let port = port::free();
    let address = format!("127.0.0.1:{port}");
    let gateway = Gateway::options().file(&yaml(&[&address])).start();
    assert!(is_served(&gateway, &address));
    let proxied = format!(
        "{}  proxy_protocol: [all]\n  proxy_protocol_networks: [\"127.0.0.0/8\"]\n",
        yaml(&[&address])
    );
    let client = "192.0.2.7:40000".parse().unwrap();
    let header = proxy_header::encode(client, gateway.address);
    let is_served_behind = || {
        let mut socket = TcpStream::connect(&address).unwrap();
        let stream = socket
            .write_all(&header)
            .and_then(|()| gateway.https.handshake_later(socket));
        let asked = stream.and_then(|mut stream| ask(&mut stream));
        asked.is_ok_and(|text| text.contains("node_invalid"))
    };
    for (config, is_due) in [(&proxied, true), (&yaml(&[&address]), false)] {
        gateway.write_config(config);
        let (out, error) = texts(&gateway.command(&["reload"]));
        assert!(out.contains("in another way"), "{out}{error}");
        assert!(!out.contains("next start"), "{out}");
        // Both workers have heard when neither takes the other way any more.
        wait::until("the header is due, or not", || {
            let holds = |_| is_served_behind() == is_due && is_served(&gateway, &address) != is_due;
            (0..8).all(holds).then_some(())
        });
    }
}

#[test]
fn a_wrong_configuration_changes_nothing() {
    let port = port::free();
    let address = format!("127.0.0.1:{port}");
    let gateway = Gateway::options().file(&yaml(&[&address])).start();
    gateway.write_config("server:\n  address: nonsense\n  backlog: none\n");
    let output = gateway.command(&["reload"]);
    let (_, error) = texts(&output);
    assert_eq!(output.status.code(), Some(78), "{error}");
    assert!(
        error.contains("nonsense") && error.contains("backlog"),
        "{error}"
    );
    assert!(is_served(&gateway, &address));

    let later = format!("{}  backlog: 99\n", yaml(&[&address]));
    gateway.write_config(&later);
    let (out, _) = texts(&gateway.command(&["reload"]));
    assert!(
        out.contains("after the next start: server.backlog"),
        "{out}"
    );

    // A signal does the same.
    let second = format!("127.0.0.2:{port}");
    gateway.write_config(&yaml(&[&address, &second]));
    gateway.supervisor.signal(Signal::SIGHUP);
    wait_for_state(&gateway, &second, "serving");
}

#[test]
fn lists_that_cannot_be_served_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = format!("--state_dir={}", dir.path().join("state").display());
    for (addresses, code, word) in [
        ("10.0.0.0/19:8080", 78, "more than 1024 addresses"),
        ("127.0.0.1:8080,127.0.0.1:8080", 78, "listed twice"),
        ("127.0.0.9-127.0.0.1:8080", 78, "ends before it begins"),
        ("127.0.0.1", 78, "is not IP:port"),
        (
            "0.0.0.0:8080,127.0.0.1:8080",
            78,
            "serves 127.0.0.1:8080 already",
        ),
        ("203.0.113.1:8080", 70, "not an address of this machine"),
    ] {
        let output = run(Command::new(binary("fleet-supervisor"))
            .args(["start", &state])
            .arg(format!("--server_address={addresses}")));
        let (_, error) = texts(&output);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(word), "{word} not in: {error}");
    }
}
