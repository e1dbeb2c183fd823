//! `ctl` on the server, and what the agent port shows of it.

use fleet_tests::gateway::{Gateway, texts};
use serde_json::{Value, json};

const SPECS: &str = r#"
apiVersion: v1
kind: query
spec: {name: cpu, description: load, query: "SELECT * FROM cpu_time", interval: 600}
---
apiVersion: v1
kind: label
spec: {name: linux-servers, query: "SELECT 1 FROM os_version WHERE platform = 'ubuntu'"}
---
apiVersion: v1
kind: pack
spec:
  name: base
  targets: {labels: [linux-servers]}
  queries: [{query: cpu, name: cpu, interval: 60}]
---
apiVersion: v1
kind: config
spec: {agent_options: {config: {options: {distributed_interval: 10}}}}
"#;

/// `--json` prints one document a line, as fleetctl does.
fn documents(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn what_is_applied_is_what_is_got_and_applying_it_again_changes_nothing() {
    let gateway = Gateway::start();
    gateway.apply(SPECS);
    for (kind, name) in [
        ("queries", "cpu"),
        ("labels", "linux-servers"),
        ("packs", "base"),
    ] {
        assert!(gateway.ctl(&["get", kind]).contains(name));
        let yaml = gateway.ctl(&["get", kind, "--yaml"]);
        let file = gateway.write_spec(&yaml);
        let diff = gateway.ctl(&["apply", "--dry-run", "-f", file.to_str().unwrap()]);
        assert!(diff.contains("no changes"), "{kind}: {diff}");
        assert!(
            documents(&gateway.ctl(&["get", kind, "--json"]))
                .iter()
                .all(Value::is_object)
        );
    }
    assert!(
        gateway
            .ctl(&["get", "config", "--yaml"])
            .contains("distributed_interval: 10")
    );
    gateway.ctl(&["delete", "pack", "base"]);
    assert!(!gateway.ctl(&["get", "packs"]).contains("base"));
}

#[test]
fn a_dry_run_shows_a_diff_and_changes_nothing() {
    let gateway = Gateway::start();
    gateway.apply(SPECS);
    let file = gateway.write_spec(
        "apiVersion: v1\nkind: query\nspec: {name: cpu, query: SELECT 2, interval: 60}\n",
    );
    let diff = gateway.ctl(&["apply", "--dry-run", "-f", file.to_str().unwrap()]);
    assert!(diff.contains("-") && diff.contains("SELECT 2"), "{diff}");
    assert!(
        gateway
            .ctl(&["get", "queries", "--yaml"])
            .contains("SELECT * FROM cpu_time")
    );
}

#[test]
fn a_config_that_agents_would_drop_is_refused_whole() {
    let gateway = Gateway::start();
    gateway.apply(SPECS);
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let before = gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": key}))
        .unwrap()
        .body;
    let deep = format!("{}1{}", "{a: ".repeat(40), "}".repeat(40));
    let large = "x".repeat(1_100_000);
    for (what, yaml) in [
        ("32 levels", format!("kind: config\napiVersion: v1\nspec: {{agent_options: {{config: {{views: {deep}}}}}}}\n")),
        ("1 MiB", format!("kind: config\napiVersion: v1\nspec: {{agent_options: {{config: {{views: {{v: {large}}}}}}}}}\n")),
        ("an empty query", "kind: query\napiVersion: v1\nspec: {name: empty, query: ''}\n".into()),
        ("a typo", "kind: query\napiVersion: v1\nspec: {name: typo, qery: SELECT 1}\n".into()),
        ("an unknown kind", "kind: policy\napiVersion: v1\nspec: {name: p, query: SELECT 1}\n".into()),
        ("a divisor", "kind: config\napiVersion: v1\nspec: {agent_options: {config: {decorators: {interval: {'0': [SELECT 1]}}}}}\n".into()),
    ] {
        let file = gateway.write_spec(&yaml);
        let output = gateway.ctl_output(&["apply", "-f", file.to_str().unwrap()]);
        assert!(!output.status.success(), "{what} was taken: {:?}", texts(&output));
        assert!(!texts(&output).1.is_empty(), "{what}: no word of why");
    }
    let after = gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": key}))
        .unwrap()
        .body;
    assert_eq!(after, before);
}

#[test]
fn enroll_secrets_rotate() {
    let gateway = Gateway::start();
    let old = gateway.secret();
    assert!(gateway.ctl(&["get", "enroll_secret"]).contains(&old));
    gateway.apply(&format!(
        "apiVersion: v1\nkind: enroll_secret\nspec:\n  secrets:\n  - secret: {old}\n  - secret: a-second-secret\n"
    ));
    gateway.https.enroll("a-second-secret", "web-2");
    gateway.https.enroll(&old, "web-1");
}

#[test]
fn hosts_are_shown_to_people_and_programs() {
    let gateway = Gateway::start();
    for n in 0..3 {
        gateway.https.enroll(&gateway.secret(), &format!("web-{n}"));
    }
    let table = gateway.ctl(&["get", "hosts"]);
    assert!(
        table.lines().all(|line| line.chars().count() <= 100),
        "too wide:\n{table}"
    );
    let hosts = documents(&gateway.ctl(&["get", "hosts", "--json"]));
    assert_eq!(hosts.len(), 3, "{hosts:?}");
    assert!(
        hosts
            .iter()
            .any(|host| host.to_string().contains("web-2.example.com")),
        "{hosts:?}"
    );
    let host: Value =
        serde_json::from_str(&gateway.ctl(&["get", "host", "web-1", "--json"])).unwrap();
    assert!(host.to_string().contains("serial-web-1"), "{host}");
    assert!(
        !gateway
            .ctl_output(&["get", "host", "nobody"])
            .status
            .success()
    );
}

#[test]
fn metrics_count_what_happened() {
    let gateway = Gateway::options()
        .set("prometheus.basic_auth.disable", true)
        .start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": key}))
        .unwrap();
    let text = fleet_tests::wait::until("the exchange is counted", || {
        let answer = gateway.https.get("/metrics").unwrap();
        assert_eq!(answer.status, 200);
        let text = String::from_utf8(answer.body).unwrap();
        text.lines()
            .any(|line| {
                line.contains("exchanges")
                    && line.contains(r#"route="config""#)
                    && !line.ends_with(" 0")
            })
            .then_some(text)
    });
    for name in [
        "handshakes",
        "open_connections",
        "restarts",
        "hosts",
        "journal",
        "store",
    ] {
        assert!(text.contains(name), "{name} is not in:\n{text}");
    }
}

#[test]
fn metrics_need_the_password_when_there_is_one() {
    let gateway = Gateway::options()
        .set("prometheus.basic_auth.username", "prom")
        .set("prometheus.basic_auth.password", "s3cret-word")
        .start();
    assert_eq!(gateway.https.get("/metrics").unwrap().status, 401);
    let raw = |credentials: &str| {
        use base64::Engine;
        let token = base64::engine::general_purpose::STANDARD.encode(credentials);
        gateway
            .https
            .send(format!("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Basic {token}\r\n\r\n").as_bytes())
            .unwrap()
            .status
    };
    assert_eq!(raw("prom:wrong"), 401);
    assert_eq!(raw("prom:s3cret-word"), 200);
    assert!(!gateway.log().contains("s3cret-word"));
}
