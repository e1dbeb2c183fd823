//! The store's bad days: refused, hung, slow, read-only, denied. Agents keep what they have, what is acknowledged is
//! kept, and everything is as before once the store is.

use std::process::Command;
use std::time::Duration;

use fleet_tests::gateway::{Gateway, Options, texts};
use fleet_tests::https::enroll_body;
use fleet_tests::process::{binary, run};
use fleet_tests::proxy::{Fault, Proxy};
use fleet_tests::stores::MariaDb;
use fleet_tests::wait;
use serde_json::{Map, Value, json};

/// A database behind a proxy, and a gateway that knows only the proxy.
fn bed() -> (MariaDb, Proxy, Gateway) {
    let database = MariaDb::start();
    let proxy = Proxy::start(database.socket().as_path());
    prepare(&proxy, "root", &[]);
    let gateway = options(&proxy, "root").start();
    (database, proxy, gateway)
}

fn prepare(proxy: &Proxy, user: &str, more: &[&str]) {
    let output = run(Command::new(binary("fleet-supervisor"))
        .args(["prepare", "db", "--no-prompt"])
        .arg(format!("--mysql_username={user}"))
        .arg(format!("--mysql_address={}", proxy.address))
        .args(more));
    assert!(output.status.success(), "{:?}", texts(&output));
}

fn options(proxy: &Proxy, user: &str) -> Options {
    Gateway::options()
        .set("mysql.address", proxy.address)
        .set("mysql.username", user)
        .set("prometheus.basic_auth.disable", true)
}

fn post(gateway: &Gateway, tail: &str, body: &Value) -> Map<String, Value> {
    let path = format!("/api/osquery/{tail}");
    gateway.https.post(&path, body).unwrap().object()
}

/// Queries that a host is asked now, answered as a host would; empty when nothing is due.
fn answers(gateway: &Gateway, key: &str) -> Value {
    let work = post(gateway, "distributed/read", &json!({"node_key": key}));
    let names = work.get("queries").and_then(Value::as_object);
    let names: Vec<&String> = names.into_iter().flat_map(Map::keys).collect();
    let rows = |name: &str| match name {
        "fleet_detail_query_uptime" => json!([{"total_seconds": "4242"}]),
        _ => json!([]),
    };
    json!({
        "node_key": key,
        "queries": names.iter().map(|name| ((*name).clone(), rows(name))).collect::<Map<_, _>>(),
        "statuses": names.iter().map(|name| ((*name).clone(), json!(0))).collect::<Map<_, _>>(),
    })
}

fn metric(gateway: &Gateway, name: &str) -> f64 {
    let answer = gateway.https.get("/metrics").unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .parse()
        .unwrap()
}

fn health(gateway: &Gateway) -> (u16, String) {
    let answer = gateway.https.get("/healthz?check=mysql").unwrap();
    (
        answer.status,
        String::from_utf8_lossy(&answer.body).into_owned(),
    )
}

/// What agents must have while the store fails: their config, empty reads and logs, and a refusal of what only it can do.
fn assert_bearable(gateway: &Gateway, key: &str) {
    let config = post(gateway, "config", &json!({"node_key": key}));
    assert!(!config.contains_key("error"), "{config:?}");
    let read = post(gateway, "distributed/read", &json!({"node_key": key}));
    assert!(
        !read.contains_key("error") && !read.contains_key("node_invalid"),
        "{read:?}"
    );
    let log = json!({"node_key": key, "log_type": "result", "data": [{"n": 1}]});
    let log = post(gateway, "log", &log);
    assert!(!log.contains_key("error"), "{log:?}");
    let enroll = enroll_body(&gateway.secret(), "late");
    let enroll = post(gateway, "enroll", &enroll);
    assert!(
        enroll.contains_key("error") && !enroll.contains_key("node_key"),
        "{enroll:?}"
    );
}

/// And of what only it can know.
fn assert_nobody_is_invalid(gateway: &Gateway) {
    let stranger = post(gateway, "config", &json!({"node_key": "unknown"}));
    assert!(
        stranger.contains_key("error") && !stranger.contains_key("node_invalid"),
        "{stranger:?}"
    );
}

fn wait_until_well(gateway: &Gateway) {
    wait::until("the store is well again", || {
        (health(gateway).0 == 200).then_some(())
    });
    assert!(gateway.https.enroll(&gateway.secret(), "afterwards").len() > 8);
}

/// Details that were acknowledged while the store failed arrive, also by a new process.
fn losing_the_store(fault: Fault, restarts: bool) {
    let (database, proxy, gateway) = bed();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let second = gateway.https.enroll(&gateway.secret(), "web-2");
    let results = answers(&gateway, &key);
    assert!(
        results["queries"].as_object().unwrap().len() > 3,
        "{results}"
    );

    proxy.set(fault);
    wait::until("the breaker opens", || {
        // Work for it, as agents make it.
        post(&gateway, "config", &json!({"node_key": "unknown"}));
        gateway.log().contains("breaker opened").then_some(())
    });
    let (status, text) = health(&gateway);
    assert_eq!((status, text.trim()), (500, "store: unavailable"));
    let accepted = post(&gateway, "distributed/write", &results);
    assert!(!accepted.contains_key("error"), "{accepted:?}");
    let refused = "fleet_control_store_breaker_refused_total";
    let before = metric(&gateway, refused);
    assert_bearable(&gateway, &second);
    assert_nobody_is_invalid(&gateway);
    assert!(
        metric(&gateway, refused) > before,
        "calls were not refused at once"
    );
    assert!(metric(&gateway, "fleet_control_spool_waiting") > 0.0);
    wait::until("status tells of it", || {
        let shown = gateway.status()?["control"].to_string();
        let is_told = shown.contains("breaker open for") && shown.contains("wait for the store");
        is_told.then_some(())
    });
    // Acknowledged, so not asked for again.
    let again = answers(&gateway, &key);
    assert_eq!(again["queries"], json!({}));

    let gateway = if restarts {
        let control = gateway.control_pid();
        fleet_tests::process::signal(control, nix::sys::signal::Signal::SIGKILL);
        proxy.set(Fault::None);
        gateway.wait_for_successor("/control", control);
        gateway
    } else {
        proxy.set(Fault::None);
        gateway
    };
    wait_until_well(&gateway);
    wait::until("the details arrive", || {
        let sql = "SELECT d.uptime FROM fleet.hosts h JOIN fleet.host_details d \
                   ON d.host_id = h.id WHERE h.identifier = 'web-1'";
        (database.sql(sql).trim() == "4242").then_some(())
    });
    wait::until("the spool is empty", || {
        let size = std::fs::metadata(gateway.state("results.spool"))
            .unwrap()
            .len();
        (size == 0).then_some(())
    });
    assert!(!gateway.journal("result").is_empty());
}

#[test]
fn a_refused_store_costs_no_acknowledged_result() {
    losing_the_store(Fault::Refuse, false);
}

#[test]
fn kept_results_outlive_control() {
    losing_the_store(Fault::Refuse, true);
}

#[test]
fn a_hung_store_is_refused_at_once_after_a_while() {
    losing_the_store(Fault::Hang, false);
}

#[test]
fn a_slow_store_is_slow_and_no_more() {
    let (_database, proxy, gateway) = bed();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    proxy.set(Fault::Delay(Duration::from_millis(30)));
    let results = answers(&gateway, &key);
    let accepted = post(&gateway, "distributed/write", &results);
    assert!(!accepted.contains_key("error"), "{accepted:?}");
    gateway.https.enroll(&gateway.secret(), "web-2");
    // Connections that end in the middle of an answer.
    for bytes in [0, 3, 20, 300] {
        proxy.set(Fault::CutAfter(bytes));
        let stranger = post(&gateway, "config", &json!({"node_key": "unknown"}));
        assert!(stranger.contains_key("error"), "{stranger:?}");
        let known = post(&gateway, "config", &json!({"node_key": key}));
        assert!(!known.contains_key("error"), "{known:?}");
    }
    proxy.set(Fault::None);
    wait_until_well(&gateway);
}

#[test]
fn a_demoted_server_is_left_for_the_new_primary() {
    let old = MariaDb::start();
    let proxy = Proxy::start(old.socket().as_path());
    let grant = "CREATE USER fleet@localhost; GRANT ALL ON fleet.* TO fleet@localhost";
    old.sql(grant);
    prepare(&proxy, "fleet", &[]);
    let gateway = options(&proxy, "fleet").start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let results = answers(&gateway, &key);
    old.sql("SET GLOBAL read_only = 1");
    let refused = post(&gateway, "enroll", &enroll_body(&gateway.secret(), "web-2"));
    assert!(refused.contains_key("error"), "{refused:?}");
    wait::until("healthz says so", || {
        (health(&gateway) == (500, "store: read-only\n".into())).then_some(())
    });
    let accepted = post(&gateway, "distributed/write", &results);
    assert!(!accepted.contains_key("error"), "{accepted:?}");
    assert_bearable(&gateway, &key);
    let before = proxy.accepted();

    // The name could lead to another server by now; here the same one is promoted again.
    old.sql("SET GLOBAL read_only = 0");
    wait_until_well(&gateway);
    assert!(proxy.accepted() > before, "no new connection was made");
    let log = gateway.log();
    assert!(log.contains("the store is read-only") && log.contains("takes writes again"));
    wait::until("the details arrive", || {
        let sql = "SELECT COUNT(*) FROM fleet.host_details WHERE uptime = 4242";
        (old.sql(sql).trim() == "1").then_some(())
    });
    assert_eq!(old.sql("SELECT COUNT(*) FROM fleet.hosts").trim(), "2");
}

#[test]
fn wrong_credentials_at_the_first_start_end_it_with_the_reason() {
    let database = MariaDb::start();
    let proxy = Proxy::start(database.socket().as_path());
    prepare(&proxy, "root", &[]);
    let dir = tempfile::tempdir().unwrap();
    let output = run(Command::new(binary("fleet-supervisor"))
        .arg("start")
        .arg(format!(
            "--state_dir={}",
            dir.path().join("state").display()
        ))
        .args(["--server_address=127.0.0.1:0", "--mysql_username=stranger"])
        .arg(format!("--mysql_address={}", proxy.address)));
    let (_, error) = texts(&output);
    assert_eq!(output.status.code(), Some(70), "{error}");
    assert!(
        error.contains("denies access") && error.contains("mysql.username"),
        "{error}"
    );
}

#[test]
fn credentials_that_are_changed_while_it_runs_are_waited_for() {
    let database = MariaDb::start();
    let proxy = Proxy::start(database.socket().as_path());
    database.sql("CREATE USER fleet@localhost; GRANT ALL ON fleet.* TO fleet@localhost");
    prepare(&proxy, "fleet", &[]);
    let gateway = options(&proxy, "fleet").start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    database.sql("ALTER USER fleet@localhost IDENTIFIED BY 'changed'");
    proxy.cut();
    wait::until("healthz says so", || {
        (health(&gateway) == (500, "store: access denied\n".into())).then_some(())
    });
    assert_bearable(&gateway, &key);
    assert_nobody_is_invalid(&gateway);
    assert!(metric(&gateway, "fleet_control_store_breaker_open") > 0.0);
    database.sql("ALTER USER fleet@localhost IDENTIFIED BY ''");
    wait_until_well(&gateway);
}
