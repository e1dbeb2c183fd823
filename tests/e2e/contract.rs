//! What must never happen to an agent: an empty answer, an answer that is no object, a false success, a false
//! `node_invalid`.

use std::io::Write;
use std::time::Duration;

use fleet_protocol::agent::Route;
use fleet_tests::gateway::Gateway;
use fleet_tests::https::{Answer, Https, enroll_body, read_to_close};
use serde_json::{Value, json};

fn path(route: Route) -> String {
    format!("/api/v1/osquery/{}", route.tail())
}

/// The answer is a JSON object, or the connection was cut where the contract wants that.
fn object_or_cut(answer: std::io::Result<Answer>) -> Option<serde_json::Map<String, Value>> {
    answer.ok().map(|answer| {
        assert!(
            !answer.body.is_empty(),
            "an empty body is success to an agent"
        );
        answer.object()
    })
}

/// Bodies that no route takes, or that some do.
fn hostile_bodies(key: &str) -> Vec<Vec<u8>> {
    let deep = format!(
        "{{\"node_key\":\"{key}\",\"data\":{}{}}}",
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    let mut bodies: Vec<Vec<u8>> = [
        "",
        " ",
        "{",
        "}",
        "[]",
        "null",
        "7",
        "\"x\"",
        "{}",
        "{\"node_key\":\"\"}",
        "{\"node_key\":null}",
        "{\"node_key\":7}",
        "{\"node_key\":[\"x\"]}",
        "not json",
        "{\"node_key\":\"unknown\"}",
        "{\"node_key\":\"unknown\",\"data\":[{}],\"log_type\":\"result\"}",
        "{\"a\":1}trailing",
    ]
    .into_iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    for text in [
        format!("{{\"node_key\":\"{key}\"}}"),
        format!("{{\"node_key\":\"{key}\",\"log_type\":\"unheard\",\"data\":[{{}}]}}"),
        format!("{{\"node_key\":\"{key}\",\"log_type\":\"result\"}}"),
        format!("{{\"node_key\":\"{key}\",\"log_type\":\"result\",\"data\":{{}}}}"),
        format!("{{\"node_key\":\"{key}\",\"queries\":[],\"statuses\":7}}"),
        format!("{{\"node_key\":\"{key}\",\"queries\":{{\"x\":7}},\"statuses\":{{\"x\":\"z\"}}}}"),
        format!("{{\"node_key\":\"{key}\",\"block_count\":-1,\"block_size\":\"x\"}}"),
        deep,
    ] {
        bodies.push(text.into_bytes());
    }
    bodies.push(vec![0xff; 100]);
    bodies.push(b"{\"node_key\":\"\xff\xfe\"}".to_vec());
    bodies
}

#[test]
fn no_answer_is_ever_empty_or_not_an_object() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    for route in Route::ALL {
        for body in hostile_bodies(&key) {
            for headers in [
                "",
                "Content-Encoding: gzip\r\n",
                "Authorization: NodeKey \r\n",
                "Authorization: Basic eDp5\r\n",
            ] {
                let answer = gateway.https.post_bytes(&path(route), headers, &body);
                // Enrol has no key yet; its refusals say `node_invalid`, which agents ignore there.
                if let Some(object) = object_or_cut(answer)
                    && route != Route::Enroll
                    && object.get("node_invalid") == Some(&true.into())
                {
                    assert!(
                        !String::from_utf8_lossy(&body).contains(&key),
                        "{route:?}: a known key was called invalid"
                    );
                }
            }
        }
    }
    assert_eq!(
        gateway.status().unwrap()["gateway"]["slots"][0]["restarts"],
        0,
        "{}",
        gateway.log()
    );
}

#[test]
fn other_methods_and_broken_heads_get_objects_too() {
    let gateway = Gateway::start();
    for route in Route::ALL {
        for method in ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"] {
            let raw = format!(
                "{method} {} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
                path(route)
            );
            let answer = gateway.https.send(raw.as_bytes()).unwrap();
            assert!(answer.status >= 400, "{method} {answer:?}");
            if method != "HEAD" {
                assert!(answer.object().contains_key("error"), "{method} {answer:?}");
            }
        }
    }
    let long = "x".repeat(9000);
    for raw in [
        format!(
            "POST {} HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n",
            path(Route::Log)
        ),
        format!(
            "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
            path(Route::Log)
        ),
        format!(
            "POST {} HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}",
            path(Route::Log)
        ),
        format!("POST {} HTTP/9.9\r\nHost: x\r\n\r\n", path(Route::Log)),
        "\r\n\r\n\r\n".to_owned(),
        "NONSENSE\r\n\r\n".to_owned(),
    ] {
        if let Some(object) = object_or_cut(gateway.https.send(raw.as_bytes())) {
            assert!(object.contains_key("error"), "{raw:?}: {object:?}");
        }
    }
}

#[test]
fn node_invalid_is_said_of_unknown_keys_and_of_nothing_else() {
    let gateway = Gateway::start();
    for route in [Route::Config, Route::Read, Route::Write, Route::Log] {
        let body =
            json!({"node_key": "never-issued", "data": [], "log_type": "result", "queries": {}});
        let answer = gateway.https.post(&path(route), &body).unwrap();
        assert_eq!(answer.status, 401, "{route:?}");
        assert_eq!(answer.object()["node_invalid"], true, "{route:?}");
    }
    // While control is away nobody can know whether a key exists.
    let pid = gateway.control_pid();
    // It would replace a control process that stands still.
    gateway.supervisor.signal(nix::sys::signal::Signal::SIGSTOP);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.cast_signed()),
        nix::sys::signal::Signal::SIGSTOP,
    )
    .unwrap();
    let answer = gateway
        .https
        .post(&path(Route::Config), &json!({"node_key": "another-one"}));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.cast_signed()),
        nix::sys::signal::Signal::SIGCONT,
    )
    .unwrap();
    gateway.supervisor.signal(nix::sys::signal::Signal::SIGCONT);
    let object = answer.unwrap().object();
    assert!(
        object.contains_key("error") && !object.contains_key("node_invalid"),
        "{object:?}"
    );
}

#[test]
fn bytes_that_are_not_utf8_are_kept_not_refused() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let mut body = b"{\"data\":[{\"columns\":{\"path\":\"/tmp/\xff\xfe\"},\"action\":\"snapshot\"}],\"log_type\":\"result\",\"node_key\":\"".to_vec();
    body.extend_from_slice(key.as_bytes());
    body.extend_from_slice(b"\"}");
    let answer = gateway
        .https
        .post_bytes(&path(Route::Log), "", &body)
        .unwrap();
    assert!(answer.object().is_empty(), "{answer:?}");
    let lines = gateway.journal("result");
    assert_eq!(lines.len(), 1);
    assert!(
        serde_json::from_str::<Value>(&lines[0]).is_ok(),
        "{lines:?}"
    );
    assert!(lines[0].contains("/tmp/"));
}

#[test]
fn large_lines_and_batches_pass_and_too_large_ones_do_not_loop() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let log = |data: String| {
        let body = format!("{{\"data\":[{data}],\"log_type\":\"result\",\"node_key\":\"{key}\"}}");
        gateway
            .https
            .post_bytes(&path(Route::Log), "", body.as_bytes())
            .unwrap()
    };
    let line = format!("{{\"columns\":{{\"blob\":\"{}\"}}}}", "x".repeat(1 << 20));
    assert!(log(line).object().is_empty());
    let batch =
        vec![format!("{{\"columns\":{{\"pad\":\"{}\"}}}}", "y".repeat(500)); 1024].join(",");
    assert!(log(batch).object().is_empty());
    let lines = gateway.journal("result").len();
    assert_eq!(lines, 1025);
    // A body over the bound will never be accepted; an error would make the agent send it for ever.
    let endless = vec![format!("{{\"pad\":\"{}\"}}", "z".repeat(1 << 20)); 11].join(",");
    assert!(log(endless).object().is_empty());
    assert_eq!(gateway.journal("result").len(), lines);
}

#[test]
fn a_pretty_printed_log_becomes_one_line_an_event() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let body = serde_json::to_vec_pretty(
        &json!({"data": [{"a": {"b": "c\nd"}}, {"e": [1, 2]}], "log_type": "status", "node_key": key}),
    )
    .unwrap();
    gateway
        .https
        .post_bytes(&path(Route::Log), "", &body)
        .unwrap()
        .object();
    let lines: Vec<Value> = gateway
        .journal("status")
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines, [json!({"a": {"b": "c\nd"}}), json!({"e": [1, 2]})]);
}

#[test]
fn slow_bytes_end_in_time_and_cost_nobody_else() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let slow: Vec<_> = (0..20)
        .map(|n| {
            let mut stream = gateway.https.connect().unwrap();
            let head = format!(
                "POST {} HTTP/1.1\r\nContent-Length: 100\r\n\r\n",
                path(Route::Log)
            );
            // Some stop inside the head, some inside the body.
            stream
                .write_all(&head.as_bytes()[..if n % 2 == 0 { 20 } else { head.len() }])
                .unwrap();
            stream.flush().unwrap();
            stream
        })
        .collect();
    let answer = gateway
        .https
        .post(&path(Route::Config), &json!({"node_key": key}))
        .unwrap();
    assert_eq!(answer.status, 200);
    for mut stream in slow {
        stream
            .sock
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        object_or_cut(read_to_close(&mut stream));
    }
}

#[test]
fn keep_alive_is_for_clients_that_ask() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let body = json!({"node_key": key}).to_string();
    let request = |connection: &str| {
        format!(
            "POST {} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\nContent-Length: {}\r\n\r\n{body}",
            path(Route::Config),
            body.len()
        )
    };
    let mut stream = gateway.https.connect().unwrap();
    stream.write_all(request("keep-alive").as_bytes()).unwrap();
    stream.write_all(request("close").as_bytes()).unwrap();
    let mut raw = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut raw).unwrap();
    let text = String::from_utf8_lossy(&raw);
    assert_eq!(text.matches("HTTP/1.1 200").count(), 2, "{text}");
}

#[test]
fn an_unknown_path_is_answered_by_the_operator_surface() {
    let gateway = Gateway::start();
    assert_eq!(gateway.https.get("/healthz").unwrap().status, 200);
    assert_eq!(
        gateway.https.get("/healthz?check=nonsense").unwrap().status,
        400
    );
    assert!(
        gateway
            .https
            .get("/version")
            .unwrap()
            .object()
            .contains_key("version")
    );
    assert_eq!(gateway.https.get("/no/such/path").unwrap().status, 404);
    assert_eq!(gateway.https.get("/metrics").unwrap().status, 404);
    let hosts = gateway.https.get("/api/latest/fleet/hosts").unwrap();
    assert_eq!(hosts.status, 401, "{hosts:?}");
}

fn enroll_many(https: &Https, secret: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|n| https.enroll(secret, &format!("host-{n}")))
        .collect()
}

#[test]
fn a_full_disk_keeps_the_agents_lines() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("left out: mounting a small file system needs root");
        return;
    }
    let disk = SmallDisk::mount();
    let gateway = Gateway::options()
        .set(
            "filesystem.result_log_file",
            disk.path().join("result").display(),
        )
        .start();
    let key = enroll_many(&gateway.https, &gateway.secret(), 1).remove(0);
    let pad = "p".repeat(200_000);
    let mut acknowledged = 0;
    let refused = (0..100)
        .map(|n| {
            let line = json!({"n": n, "pad": pad});
            let body = json!({"data": [line], "log_type": "result", "node_key": key});
            gateway
                .https
                .post(&path(Route::Log), &body)
                .unwrap()
                .object()
        })
        .inspect(|object| acknowledged += usize::from(object.is_empty()))
        .find(|object| object.contains_key("error"))
        .expect("a full disk refuses");
    assert!(!refused.contains_key("node_invalid"));
    assert!(acknowledged > 0);
    assert_eq!(gateway.https.get("/healthz").unwrap().status, 500);
    // What was acknowledged is there, whole.
    let whole = disk
        .files()
        .iter()
        .flat_map(|file| {
            fleet_tests::gateway::read(file)
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter(|line| serde_json::from_str::<Value>(line).is_ok())
        .count();
    assert_eq!(whole, acknowledged);
    assert!(
        gateway
            .https
            .post(
                "/api/osquery/enroll",
                &enroll_body(&gateway.secret(), "more")
            )
            .unwrap()
            .object()
            .contains_key("node_key"),
        "enrolment needs no journal"
    );
}

/// A tmpfs of two megabytes.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let output = fleet_tests::process::run(
            std::process::Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
                .arg(dir.path()),
        );
        assert!(output.status.success(), "{output:?}");
        Self(dir)
    }

    fn path(&self) -> &std::path::Path {
        self.0.path()
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    found.push(entry.path());
                }
            }
        }
        found
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}
