//! Certificates and log settings change under a server that goes on.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::https::{Https, read_to_close};
use fleet_tests::wait;
use tempfile::TempDir;

/// Puts another pair into place, certificate first; gives the certificate.
fn write_pair(dir: &Path) -> String {
    let names = ["127.0.0.1".to_owned(), "a.example".to_owned()];
    let pair = rcgen::generate_simple_self_signed(names).unwrap();
    fs::write(dir.join("cert.pem"), pair.cert.pem()).unwrap();
    fs::write(dir.join("key.pem"), pair.signing_key.serialize_pem()).unwrap();
    pair.cert.pem()
}

/// A client that trusts what is in the file now, and nothing that comes later.
fn client(gateway: &Gateway, dir: &Path) -> Https {
    Https::new(gateway.address, &dir.join("cert.pem"))
}

/// A stranger's request, which is answered at once.
fn ask(connection: &str) -> String {
    let body = r#"{"node_key":"nobody's"}"#;
    let length = body.len();
    format!(
        "POST /api/v1/osquery/config HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn yaml(dir: &Path, debug: bool) -> String {
    format!(
        "server:\n  address: 127.0.0.1:0\n  cert: {0}/cert.pem\n  key: {0}/key.pem\nlogging:\n  debug: {debug}\n",
        dir.display()
    )
}

#[test]
fn changed_certificates_serve_without_a_restart() {
    let dir = TempDir::new().unwrap();
    write_pair(dir.path());
    let gateway = Gateway::options().file(&yaml(dir.path(), false)).start();
    let old = client(&gateway, dir.path());
    let pids = [gateway.worker_pid(0), gateway.worker_pid(1)];
    // It is kept for another request.
    let mut open = old.connect().unwrap();
    open.write_all(ask("keep-alive").as_bytes()).unwrap();
    let mut first = Vec::new();
    while !first.ends_with(b"}") {
        let mut byte = [0];
        open.read_exact(&mut byte).unwrap();
        first.extend(byte);
    }

    write_pair(dir.path());
    let new = client(&gateway, dir.path());
    let all = |client: &Https, is_served: bool| {
        // Both workers, whichever takes the connection.
        (0..16).all(|_| client.get("/healthz").is_ok() == is_served)
    };
    wait::until("all workers show the new certificate", || {
        (all(&new, true) && all(&old, false)).then_some(())
    });
    open.write_all(ask("close").as_bytes()).unwrap();
    let second = read_to_close(&mut open).unwrap().object();
    assert_eq!(second["node_invalid"], true);
    assert_eq!(pids, [gateway.worker_pid(0), gateway.worker_pid(1)]);

    // Half of a pair is not taken, by itself or by order.
    let good = fs::read(dir.path().join("key.pem")).unwrap();
    let other = rcgen::generate_simple_self_signed(["b.example".to_owned()]).unwrap();
    fs::write(
        dir.path().join("key.pem"),
        other.signing_key.serialize_pem(),
    )
    .unwrap();
    let trouble = || {
        let status = gateway.status()?;
        let text = status["gateway"]["certificate_trouble"]
            .as_str()?
            .to_owned();
        (!text.is_empty()).then_some(text)
    };
    let text = wait::until("the bad pair is told of", trouble);
    assert!(
        text.contains("does not belong to the certificate"),
        "{text}"
    );
    let output = gateway.command(&["reload"]);
    assert!(!output.status.success());
    assert!(texts(&output).1.contains("does not belong"));
    assert!(all(&new, true));
    fs::write(dir.path().join("key.pem"), good).unwrap();
    wait::until("the good pair is back", || {
        trouble().is_none().then_some(())
    });
    let (status, _) = texts(&gateway.command(&["status"]));
    assert!(status.contains("(server.cert) expires on "), "{status}");
}

#[test]
fn a_reload_changes_the_log_of_every_process() {
    let dir = TempDir::new().unwrap();
    write_pair(dir.path());
    let gateway = Gateway::options().file(&yaml(dir.path(), false)).start();
    assert!(!gateway.log().contains("DEBUG"));
    gateway.write_config(&(yaml(dir.path(), true) + "  json: true\n"));
    let (text, _) = texts(&gateway.command(&["reload"]));
    assert!(text.contains("logging.debug, logging.json"), "{text}");
    // Control tells of each operator request at debug.
    wait::until("control logs in the new form", || {
        gateway.ctl(&["get", "hosts"]);
        let log = gateway.log();
        let is_debug =
            |line: &str| line.starts_with("{\"role\":\"control\"") && line.contains("\"DEBUG\"");
        log.lines().any(is_debug).then_some(())
    });
    gateway.write_config(&yaml(dir.path(), false));
    let (text, _) = texts(&gateway.command(&["reload"]));
    assert!(text.contains("logging.debug, logging.json"), "{text}");
}
