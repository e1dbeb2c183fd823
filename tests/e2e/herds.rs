//! Many hosts at once, and several with one name: the pace of due work, and clones.

use std::collections::BTreeSet;
use std::process::Command;

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::https::enroll_body;
use fleet_tests::process::{binary, run, signal};
use fleet_tests::stores::MariaDb;
use fleet_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

const READ: &str = "/api/osquery/distributed/read";
const WRITE: &str = "/api/osquery/distributed/write";

/// One read, and the answers if there is work. Whether there was.
fn poll(gateway: &Gateway, key: &str, name: &str) -> bool {
    let Ok(read) = gateway.https.post(READ, &json!({"node_key": key})) else {
        return false;
    };
    let read = read.object();
    assert!(!read.contains_key("node_invalid"), "{read:?}");
    let Some(queries) = read.get("queries").and_then(Value::as_object) else {
        return false;
    };
    let all = |value: Value| -> Map<String, Value> {
        let names = queries.keys().cloned();
        names.map(|name| (name, value.clone())).collect()
    };
    let mut rows = all(json!([]));
    let system =
        json!([{"hostname": name, "computer_name": name, "uuid": format!("uuid-of-{name}")}]);
    rows.insert("fleet_detail_query_system_info".into(), system);
    let write = json!({"queries": rows, "statuses": all(json!(0)), "node_key": key});
    // As an agent: again until it is taken.
    wait::until("results are taken", || {
        let answer = gateway.https.post(WRITE, &write).ok()?.object();
        assert!(!answer.contains_key("node_invalid"), "{answer:?}");
        answer.is_empty().then_some(true)
    })
}

fn metric(gateway: &Gateway, name: &str) -> Option<u64> {
    let (page, _) = texts(&run(Command::new("curl")
        .args(["--silent", "--unix-socket"])
        .arg(gateway.state("run/operator.sock"))
        .arg("http://localhost/metrics")));
    let mut lines = page.lines();
    let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok())
}

fn hosts(gateway: &Gateway, filter: &[&str]) -> Vec<Value> {
    let mut args = vec!["get", "hosts", "--json", "--order", "id"];
    args.extend(filter);
    let text = gateway.ctl(&args);
    let hosts = text.lines().map(|line| {
        let document: Value = serde_json::from_str(line).unwrap();
        document["spec"].clone()
    });
    hosts.collect()
}

#[test]
fn a_herd_is_served_at_its_rate_also_over_a_crash_of_control() {
    const HOSTS: usize = 60;
    const RATE: u64 = 5;
    let gateway = Gateway::options()
        .set("osquery.due_per_second", RATE)
        .start();
    let keys: Vec<(String, String)> = (0..HOSTS)
        .map(|number| {
            let name = format!("host-{number}");
            (gateway.https.enroll(&gateway.secret(), &name), name)
        })
        .collect();
    let mut waiting: BTreeSet<usize> = (0..HOSTS).collect();
    let (mut put_off, mut peak) = (0, 0);
    let mut must_kill = true;
    wait::until("every host has told its details", || {
        waiting.retain(|index| {
            let (key, name) = &keys[*index];
            !poll(&gateway, key, name)
        });
        put_off = put_off.max(metric(&gateway, "fleet_due_put_off_total").unwrap_or_default());
        peak = peak.max(metric(&gateway, "fleet_due_peak").unwrap_or_default());
        if must_kill && waiting.len() < HOSTS / 2 && !waiting.is_empty() {
            must_kill = false;
            let old = gateway.control_pid();
            signal(old, Signal::SIGKILL);
            gateway.wait_for_successor("/control", old);
        }
        waiting.is_empty().then_some(())
    });
    assert!(!must_kill, "control was never killed");
    assert!(put_off > 0);
    assert!((1..=RATE).contains(&peak), "{peak} in one second");
    assert_eq!(metric(&gateway, "fleet_due_per_second"), Some(RATE));
    // Every one of them is in the store.
    let found = hosts(&gateway, &[]);
    assert_eq!(found.len(), HOSTS);
    for host in &found {
        let updated = host["detail_updated_at"].as_str().unwrap();
        assert!(!updated.starts_with("2000"), "{host}");
    }
}

fn enroll_as(gateway: &Gateway, secret: &str, instance: &str) -> String {
    let mut body = enroll_body(secret, "golden");
    body["host_details"]["osquery_info"]["instance_id"] = json!(instance);
    let answer = gateway.https.post("/api/osquery/enroll", &body).unwrap();
    answer.object()["node_key"].as_str().unwrap().to_owned()
}

fn is_known(gateway: &Gateway, key: &str) -> bool {
    let config = gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": key}))
        .unwrap();
    !config.object().contains_key("node_invalid")
}

fn clones_keep_their_records(gateway: &Gateway) {
    gateway.https.enroll(&gateway.secret(), "other");
    // The same enrolment within a minute gets the same key, so each round has a secret of its own.
    let secrets: String = (0..10)
        .map(|round| format!("  - secret: round-{round}\n"))
        .collect();
    gateway.apply(&format!(
        "apiVersion: v1\nkind: enroll_secret\nspec:\n  secrets:\n{secrets}"
    ));
    let mut keys: Vec<String> = Vec::new();
    for round in 0..10 {
        for instance in ["left", "right"] {
            let key = enroll_as(gateway, &format!("round-{round}"), instance);
            assert!(!keys.contains(&key), "{instance} in round {round}");
            keys.push(key);
            // Whoever enrolled last: the latest key of each works.
            for key in keys.iter().rev().take(2) {
                assert!(is_known(gateway, key), "{instance} in round {round}");
            }
        }
    }
    for key in keys.iter().rev().take(2) {
        assert!(poll(gateway, key, "golden"));
    }
    let clones = hosts(gateway, &["--clones"]);
    let instances: Vec<_> = clones.iter().map(|host| &host["instance_id"]).collect();
    assert_eq!(instances, ["left", "right"]);
    assert_eq!(hosts(gateway, &[]).len(), 3);
    let ids: Vec<_> = clones.iter().map(|host| host["id"].to_string()).collect();
    let shown = gateway.ctl(&["get", "hosts", "--clones"]);
    assert!(shown.lines().count() >= 3, "{shown}");
    let shown = gateway.ctl(&["get", "host", &ids[0], "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["spec"]["clones"][0].to_string(), ids[1]);
    wait::until("the metric counts both", || {
        (metric(gateway, "fleet_clone_hosts")? == 2).then_some(())
    });
    let warnings = gateway.log().matches("two live hosts use the same").count();
    assert_eq!(warnings, 1);
}

#[test]
fn clones_enroll_in_turns_and_keep_their_records() {
    clones_keep_their_records(&Gateway::start());
}

#[test]
fn clones_keep_their_records_in_mariadb() {
    let database = MariaDb::start();
    let output = run(Command::new(binary("fleet-supervisor"))
        .args(["prepare", "db", "--no-prompt", "--mysql_username=root"])
        .arg(format!("--mysql_address={}", database.socket().display())));
    assert!(output.status.success(), "{:?}", texts(&output));
    let gateway = Gateway::options()
        .set("mysql.address", database.socket().display())
        .set("mysql.username", "root")
        .start();
    clones_keep_their_records(&gateway);
}
