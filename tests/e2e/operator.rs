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

const ADMIN: &str = "ada@example.com";
const ADMIN_PASSWORD: &str = "correct-horse-1";
const API: &str = "/api/latest/fleet";

/// A request as fleetctl sends it: the status and the JSON object.
fn ask(
    gateway: &Gateway,
    token: &str,
    method: &str,
    path: &str,
    body: &Value,
) -> (u16, serde_json::Map<String, Value>) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let raw = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = gateway.https.send(raw.as_bytes()).unwrap();
    (answer.status, answer.object())
}

fn login(gateway: &Gateway, email: &str, password: &str) -> (u16, String) {
    let body = json!({"email": email, "password": password});
    let (status, answer) = ask(gateway, "", "POST", &format!("{API}/login"), &body);
    let token = answer.get("token").and_then(Value::as_str);
    (status, token.unwrap_or_default().to_owned())
}

fn set_up(gateway: &Gateway) -> String {
    let admin = json!({"admin": true, "name": "Ada", "email": ADMIN, "password": ADMIN_PASSWORD});
    let body = json!({
        "admin": admin, "org_info": {"org_name": "Example"}, "server_url": "https://fleet.example.com",
    });
    let (status, answer) = ask(gateway, "", "POST", "/api/v1/setup", &body);
    assert_eq!(status, 200, "{answer:?}");
    answer["token"].as_str().unwrap().to_owned()
}

#[test]
fn operators_sign_in_over_the_network() {
    let gateway = Gateway::start();
    let get = |token: &str, path: &str| {
        ask(
            &gateway,
            token,
            "GET",
            &format!("{API}{path}"),
            &Value::Null,
        )
    };
    assert_eq!(login(&gateway, ADMIN, ADMIN_PASSWORD).0, 404, "not set up");
    assert_eq!(get("", "/hosts").0, 401);
    set_up(&gateway);
    gateway.https.enroll(&gateway.secret(), "web-1");
    let (status, admin) = login(&gateway, ADMIN, ADMIN_PASSWORD);
    assert_eq!(status, 200);
    // What fleetctl asks for before each of its commands.
    assert!(get(&admin, "/version").1["version"].is_string());
    assert_eq!(get(&admin, "/config").1["org_info"]["org_name"], "Example");
    let hosts = get(&admin, "/hosts").1;
    assert_eq!(hosts["hosts"][0]["display_text"], "web-1", "{hosts:?}");

    let observer = json!({
        "name": "Grace", "email": "grace@example.com", "password": "battery-staple-2",
        "global_role": "observer", "admin_forced_password_reset": false,
    });
    let (status, made) = ask(
        &gateway,
        &admin,
        "POST",
        &format!("{API}/users/admin"),
        &observer,
    );
    assert_eq!(status, 200, "{made:?}");
    let (_, token) = login(&gateway, "grace@example.com", "battery-staple-2");
    assert_eq!(get(&token, "/hosts").0, 200);
    let host = hosts["hosts"][0]["id"].as_u64().unwrap();
    let path = format!("{API}/hosts/{host}");
    let (status, refused) = ask(&gateway, &token, "DELETE", &path, &Value::Null);
    assert_eq!(status, 403, "{refused:?}");
    assert!(refused["error"].is_string());
    let (status, _) = ask(&gateway, &admin, "DELETE", &path, &Value::Null);
    assert_eq!(status, 200);

    let (status, _) = ask(
        &gateway,
        &token,
        "POST",
        &format!("{API}/logout"),
        &Value::Null,
    );
    assert_eq!(status, 200);
    assert_eq!(get(&token, "/hosts").0, 401);

    let activities = get(&admin, "/activities").1;
    let activities = activities["activities"].as_array().unwrap();
    let deleted = activities.iter().find(|one| one["type"] == "deleted_host");
    let deleted = deleted.unwrap_or_else(|| panic!("{activities:?}"));
    assert_eq!(deleted["actor_email"], ADMIN);
    assert_eq!(deleted["actor_address"], "127.0.0.1");
    let log = gateway.log();
    for secret in [ADMIN_PASSWORD, "battery-staple-2", &admin, &token] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
}

#[test]
fn a_session_outlives_control() {
    let gateway = Gateway::start();
    let token = set_up(&gateway);
    let old_pid = gateway.control_pid();
    let pid = i32::try_from(old_pid).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    gateway.wait_for_successor("/control", old_pid);
    let path = format!("{API}/me");
    let me = fleet_tests::wait::until("the new control answers", || {
        let raw = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        let answer = gateway.https.send(raw.as_bytes()).ok()?;
        (answer.status == 200).then(|| answer.object())
    });
    assert_eq!(me["user"]["email"], ADMIN);
}

#[test]
fn who_guesses_passwords_is_slowed_down() {
    let gateway = Gateway::start();
    set_up(&gateway);
    let limited = fleet_tests::wait::until("a refusal", || {
        let threads: Vec<_> = (0..12)
            .map(|n| {
                let https = gateway.https.clone();
                let body = json!({"email": format!("a{n}@b.c"), "password": "guess"});
                std::thread::spawn(move || https.post(&format!("{API}/login"), &body).unwrap())
            })
            .collect();
        let answers = threads.into_iter().map(|thread| thread.join().unwrap());
        let answers: Vec<_> = answers.collect();
        for answer in &answers {
            assert!(matches!(answer.status, 401 | 429), "{answer:?}");
        }
        answers.into_iter().find(|answer| answer.status == 429)
    });
    assert!(limited.header("retry-after").is_some(), "{limited:?}");
    assert!(limited.object()["error"].is_string());
}
