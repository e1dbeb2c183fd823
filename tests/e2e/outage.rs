//! MySQL (here MariaDB) and Redis: preparing, running, losing and getting them back.

use std::process::Command;
use std::time::Duration;

use fleet_tests::gateway::{Gateway, Options, texts};
use fleet_tests::https::enroll_body;
use fleet_tests::process::{binary, run};
use fleet_tests::stores::{MariaDb, Redis};
use fleet_tests::wait;
use serde_json::json;

fn options(database: &MariaDb, redis: &Redis) -> Options {
    Gateway::options()
        .set("mysql.address", database.socket().display())
        .set("mysql.username", "root")
        .set("redis.address", &redis.address)
}

fn prepare(database: &MariaDb) {
    let output = run(Command::new(binary("fleet-supervisor"))
        .args(["prepare", "db", "--no-prompt", "--mysql_username=root"])
        .arg(format!("--mysql_address={}", database.socket().display())));
    assert!(output.status.success(), "{:?}", texts(&output));
}

#[test]
fn an_unprepared_database_is_refused_with_the_command_to_run() {
    let database = MariaDb::start();
    let dir = tempfile::tempdir().unwrap();
    let output = run(Command::new(binary("fleet-supervisor"))
        .arg("start")
        .arg(format!(
            "--state_dir={}",
            dir.path().join("state").display()
        ))
        .args(["--server_address=127.0.0.1:0", "--mysql_username=root"])
        .arg(format!("--mysql_address={}", database.socket().display())));
    let (_, error) = texts(&output);
    assert_eq!(output.status.code(), Some(70), "{error}");
    assert!(error.contains("fleet-supervisor prepare db"), "{error}");

    prepare(&database);
    // Fleet's other spelling, and a second run that has nothing to do.
    let output = run(Command::new(binary("fleet-supervisor"))
        .args(["prepare", "--no-prompt=true", "db", "--mysql_username=root"])
        .arg(format!("--mysql_address={}", database.socket().display())));
    assert!(output.status.success(), "{:?}", texts(&output));
}

#[test]
fn losing_mysql_stops_enrolment_and_nothing_else() {
    let mut database = MariaDb::start();
    let redis = Redis::start();
    prepare(&database);
    let gateway = options(&database, &redis).start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    assert_eq!(database.sql("SELECT COUNT(*) FROM fleet.hosts").trim(), "1");
    let stored = database.sql("SELECT * FROM fleet.hosts");
    assert!(!stored.contains(&key), "the store holds the key itself");

    database.stop();
    for _ in 0..10 {
        for (path, body) in [
            ("config", json!({"node_key": key})),
            (
                "log",
                json!({"node_key": key, "log_type": "result", "data": [{"n": 1}]}),
            ),
        ] {
            let answer = gateway
                .https
                .post(&format!("/api/osquery/{path}"), &body)
                .unwrap();
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            assert!(!answer.object().contains_key("error"), "{path}: {answer:?}");
        }
    }
    let refused = gateway
        .https
        .post(
            "/api/osquery/enroll",
            &enroll_body(&gateway.secret(), "web-2"),
        )
        .unwrap()
        .object();
    assert!(
        refused.contains_key("error") && !refused.contains_key("node_key"),
        "{refused:?}"
    );
    let unknown = gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": "unknown"}))
        .unwrap()
        .object();
    assert!(
        !unknown.contains_key("node_invalid"),
        "nobody can know now: {unknown:?}"
    );
    wait::until("healthz says so", || {
        (gateway.https.get("/healthz?check=mysql").unwrap().status == 500).then_some(())
    });

    database.resume();
    wait::until("enrolment works again", || {
        gateway
            .https
            .post(
                "/api/osquery/enroll",
                &enroll_body(&gateway.secret(), "web-3"),
            )
            .unwrap()
            .object()
            .contains_key("node_key")
            .then_some(())
    });
    wait::until("healthz is well again", || {
        (gateway.https.get("/healthz").unwrap().status == 200).then_some(())
    });
}

#[test]
fn losing_redis_is_told_and_costs_agents_nothing() {
    let database = MariaDb::start();
    let mut redis = Redis::start();
    prepare(&database);
    let gateway = options(&database, &redis).start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    assert_eq!(
        gateway.https.get("/healthz?check=redis").unwrap().status,
        200
    );
    redis.stop();
    wait::until("healthz says so", || {
        (gateway.https.get("/healthz?check=redis").unwrap().status == 500).then_some(())
    });
    let answer = gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": key}))
        .unwrap();
    assert_eq!(answer.status, 200);
    gateway.https.enroll(&gateway.secret(), "web-2");
    redis.resume();
    wait::until("healthz is well again", || {
        (gateway.https.get("/healthz?check=redis").unwrap().status == 200).then_some(())
    });
}

#[test]
fn two_gateways_share_one_database() {
    let database = MariaDb::start();
    let redis = Redis::start();
    prepare(&database);
    let first = options(&database, &redis).start();
    let second = options(&database, &redis).start();
    // The secret in the store is the first one's.
    let key = first.https.enroll(&first.secret(), "web-1");
    let answer = second
        .https
        .post("/api/osquery/config", &json!({"node_key": key}))
        .unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    first.apply("apiVersion: v1\nkind: query\nspec: {name: cpu, query: SELECT 1, interval: 60}\n");
    wait::until_within(
        Duration::from_secs(20),
        "the other gateway serves the new config",
        || {
            second
                .https
                .post("/api/osquery/config", &json!({"node_key": key}))
                .unwrap()
                .object()
                .contains_key("packs")
                .then_some(())
        },
    );
    // A key that the first one forgets is unknown to the second one too.
    first.ctl(&["delete", "host", "web-1"]);
    wait::until("the key is forgotten", || {
        let object = second
            .https
            .post("/api/osquery/config", &json!({"node_key": key}))
            .unwrap()
            .object();
        (object.get("node_invalid") == Some(&true.into())).then_some(())
    });
}

#[test]
fn idle_hosts_cost_the_stores_next_to_nothing() {
    let database = MariaDb::start();
    let redis = Redis::start();
    prepare(&database);
    let gateway = options(&database, &redis).start();
    let keys: Vec<_> = (0..20)
        .map(|n| {
            gateway
                .https
                .enroll(&gateway.secret(), &format!("host-{n}"))
        })
        .collect();
    for key in &keys {
        gateway
            .https
            .post("/api/osquery/distributed/read", &json!({"node_key": key}))
            .unwrap();
    }
    let statements = || -> u64 {
        database
            .sql("SHOW GLOBAL STATUS LIKE 'Queries'")
            .split_whitespace()
            .last()
            .unwrap()
            .parse()
            .unwrap()
    };
    let before = statements();
    let end = std::time::Instant::now() + Duration::from_secs(5);
    let mut exchanges = 0;
    while std::time::Instant::now() < end {
        for key in &keys {
            gateway
                .https
                .post("/api/osquery/config", &json!({"node_key": key}))
                .unwrap();
            exchanges += 1;
        }
    }
    let spent = statements() - before;
    println!("{exchanges} exchanges, {spent} statements");
    assert!(
        spent < 20 * 6,
        "{spent} statements for {exchanges} exchanges"
    );
}
