//! `import`: a fleet moves over from another product's database, and its agents do not enroll again.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::process::{Process, binary, run};
use fleet_tests::stores::MariaDb;
use fleet_tests::terminal::Terminal;
use fleet_tests::wait;
use serde_json::json;

const FLEET_4: &str = include_str!("../../control/src/import/fleet_4.sql");
/// Of the first host in there.
const KEY: &str = "abcdefghijklmnopqrstuvwxyz012+/A";
const PASSWORD: &str = "only-for-reading";
/// Enough to be cut off in the middle.
const MANY: u32 = 60_000;

/// A source beside the server's own database `fleet`, and somebody who may only read it.
fn make_source(database: &MariaDb) {
    database.sql(&format!(
        "CREATE DATABASE theirs; USE theirs; {FLEET_4}; \
         CREATE USER reader@localhost IDENTIFIED BY '{PASSWORD}'; GRANT SELECT ON theirs.* TO reader@localhost"
    ));
}

/// Hosts in its place, in a number that takes a while.
fn make_many(database: &MariaDb) {
    database.sql(&format!(
        "USE theirs; DELETE FROM hosts; SET SESSION max_recursive_iterations = 1000000; \
         INSERT INTO hosts (id, osquery_host_id, node_key, hostname, last_enrolled_at) \
         WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < {MANY}) \
         SELECT i, CONCAT('many-', i), CONCAT('key-', i), CONCAT('many-', i), '2024-01-01' FROM n"
    ));
}

fn import(database: &MariaDb, flags: &[&str]) -> Command {
    let mut command = Command::new(binary("fleet-supervisor"));
    let socket = database.socket();
    command
        .arg("import")
        .arg(format!(
            "--from-mysql=mysql://reader@localhost/theirs?socket={}",
            socket.display()
        ))
        .env("FROM_MYSQL_PASSWORD", PASSWORD)
        .args(flags);
    command
}

fn own_database(database: &MariaDb) -> Vec<String> {
    vec![
        format!("--mysql_address={}", database.socket().display()),
        "--mysql_username=root".into(),
    ]
}

fn said(output: &Output) -> String {
    let (out, error) = texts(output);
    assert!(
        !out.contains(PASSWORD) && !error.contains(PASSWORD),
        "{out}{error}"
    );
    out + &error
}

/// The agent of the first host: it has work to do and a configuration, and nobody asks it to enroll.
fn assert_served(gateway: &Gateway) {
    for path in ["config", "distributed/read"] {
        let path = format!("/api/osquery/{path}");
        let answer = gateway
            .https
            .post(&path, &json!({"node_key": KEY}))
            .unwrap();
        let object = answer.object();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(!object.contains_key("node_invalid"), "{object:?}");
        assert!(!object.contains_key("error"), "{object:?}");
        if path.ends_with("config") {
            let config = json!(object);
            assert_eq!(config["options"]["distributed_interval"], 10, "{config}");
            let pack = &config["packs"]["base"]["queries"]["uptime every minute"];
            assert_eq!(pack["interval"], 60, "{config}");
            assert_eq!(
                config["packs"]["Global"]["queries"]["uptime"]["interval"],
                300
            );
        }
    }
    let stranger = json!({"node_key": "bbcdefghijklmnopqrstuvwxyz012+/X"});
    let answer = gateway
        .https
        .post("/api/osquery/config", &stranger)
        .unwrap();
    assert_eq!(answer.object()["node_invalid"], true);
}

#[test]
fn agents_of_a_copied_fleet_go_on_with_their_keys() {
    let database = MariaDb::start();
    make_source(&database);
    let dir = tempfile::tempdir().unwrap();
    let state = format!("--state_dir={}", dir.path().join("state").display());
    let dry = said(&run(
        import(&database, &[&state, "--dry-run"]).stdin(Stdio::null())
    ));
    assert!(dry.contains("Would copy from the database theirs"), "{dry}");
    let copied = said(&run(&mut import(&database, &[&state, "--no-prompt"])));
    assert!(
        copied.contains("Copied from the database theirs"),
        "{copied}"
    );
    for part in ["Bob <bob@example.com>, no role", "1 teams are not copied"] {
        assert!(copied.contains(part), "{copied}");
    }
    let gateway = Gateway::start_in(dir, Gateway::options());
    assert_served(&gateway);
    gateway.https.enroll("secret of all hosts", "a new one");
    let busy = run(&mut import(&database, &[&state, "--no-prompt"]));
    let busy = said(&busy);
    assert!(busy.contains("is in use by the supervisor"), "{busy}");
}

#[test]
fn a_running_server_takes_what_is_copied_under_it() {
    let database = MariaDb::start();
    make_source(&database);
    let own = own_database(&database);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let unprepared = run(&mut import(
        &database,
        &[&own[..], &["--no-prompt"]].concat(),
    ));
    assert!(!unprepared.status.success());
    let unprepared = said(&unprepared);
    assert!(unprepared.contains("prepare db"), "{unprepared}");
    let mut prepare = Command::new(binary("fleet-supervisor"));
    assert!(
        run(prepare.args(["prepare", "db"]).args(&own))
            .status
            .success()
    );
    let gateway = Gateway::options()
        .set("mysql.address", database.socket().display())
        .set("mysql.username", "root")
        .start();
    let answer = gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": KEY}));
    assert_eq!(answer.unwrap().object()["node_invalid"], true);
    let output = run(&mut import(
        &database,
        &[&own[..], &["--no-prompt"]].concat(),
    ));
    assert!(output.status.success(), "{}", said(&output));
    wait::until("the copied host is served", || {
        let answer = gateway
            .https
            .post("/api/osquery/config", &json!({"node_key": KEY}));
        let object = answer.ok()?.object();
        (object.contains_key("packs") && object["packs"].get("base").is_some()).then_some(())
    });
    assert_served(&gateway);
    let itself = run(Command::new(binary("fleet-supervisor"))
        .args(["import", "--no-prompt"])
        .arg(format!(
            "--from-mysql=mysql://root@localhost/fleet?socket={}",
            database.socket().display()
        ))
        .args(&own));
    assert!(said(&itself).contains("into itself"));
}

#[test]
fn a_copy_that_was_killed_goes_on_and_ends_the_same() {
    let database = MariaDb::start();
    make_source(&database);
    make_many(&database);
    let own = own_database(&database);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let mut prepare = Command::new(binary("fleet-supervisor"));
    assert!(
        run(prepare.args(["prepare", "db"]).args(&own))
            .status
            .success()
    );
    let number = |sql: &str| -> u32 { database.sql(sql).trim().parse().unwrap_or(0) };
    let hosts = "SELECT COUNT(*) FROM fleet.hosts";
    let marks = "SELECT COUNT(*) FROM fleet.counters WHERE name LIKE 'import.%'";
    let mut cut = Process::spawn(
        import(&database, &[&own[..], &["--no-prompt"]].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    wait::until("some hosts are copied", || {
        (number(hosts) > 0).then_some(())
    });
    cut.kill();
    assert_eq!(number(marks), 1);
    let before = number(hosts);
    assert!(before < MANY, "it was to be cut off in the middle");
    let output = run(&mut import(
        &database,
        &[&own[..], &["--no-prompt"]].concat(),
    ));
    let text = said(&output);
    assert!(
        text.contains("An earlier run that was cut off had copied"),
        "{text}"
    );
    let good = "SELECT COUNT(*) FROM fleet.hosts h JOIN theirs.hosts t ON h.identifier = t.osquery_host_id \
         AND h.node_key_hash = UNHEX(SHA2(t.node_key, 256)) \
         JOIN fleet.host_details d ON d.host_id = h.id AND d.hostname = t.hostname \
         JOIN fleet.host_seen s ON s.host_id = h.id";
    assert_eq!(
        (number(hosts), number(good), number(marks)),
        (MANY, MANY, 0)
    );
    assert_eq!(
        number("SELECT value FROM fleet.counters WHERE name = 'hosts'"),
        MANY
    );
}

#[test]
fn somebody_at_a_terminal_is_asked_first() {
    let database = MariaDb::start();
    make_source(&database);
    let dir = tempfile::tempdir().unwrap();
    let state = format!("--state_dir={}", dir.path().display());
    let (mut terminal, mut asked) = Terminal::start(&mut import(&database, &[&state]));
    terminal.expect("Go on? [y/N]");
    terminal.press("n");
    terminal.expect("nothing was changed");
    assert_ne!(asked.exit_code(), 0);
    let (mut terminal, mut asked) = Terminal::start(&mut import(&database, &[&state]));
    terminal.expect("Go on? [y/N]");
    terminal.press("y");
    terminal.expect("Copied from");
    assert_eq!(asked.exit_code(), 0);
    assert!(Path::new(dir.path()).join("store.sqlite").exists());
}
