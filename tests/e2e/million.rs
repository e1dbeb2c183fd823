//! Lists, searches and counts over very many hosts, on MariaDB. Not part of a usual run: it fills a database first.
//!
//! `cargo nextest run -p fleet-tests --run-ignored only million` prints how long each request took; the number of
//! hosts is `FLEET_TEST_HOSTS`, a million when it is not set. Filling takes MariaDB about a minute for a million.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use fleet_tests::gateway::Gateway;
use fleet_tests::process::run;
use fleet_tests::stores::MariaDb;
use fleet_tests::wait;
use serde_json::{Value, json};

/// Rows of one statement.
const CHUNK: u32 = 100_000;
/// Of each request; the fastest and the slowest are told.
const ROUNDS: usize = 7;

fn hosts() -> u32 {
    let text = std::env::var("FLEET_TEST_HOSTS").unwrap_or_default();
    text.parse().unwrap_or(1_000_000)
}

/// Hosts with details, seen marks and labels: every tenth a Mac, every fourth silent for a day.
fn fill(database: &MariaDb, hosts: u32) {
    let mut from = 1;
    while from <= hosts {
        let to = (from + CHUNK - 1).min(hosts);
        let numbers = format!("FROM fleet.counters, seq_{from}_to_{to} WHERE name = 'hosts'");
        let mut sql = String::from("USE fleet; SET unique_checks = 0;");
        let platform = "IF(seq % 10 = 0, 'darwin', 'ubuntu')";
        let uuid = "UPPER(CONCAT(LEFT(MD5(seq), 8), '-', SUBSTR(MD5(seq), 9, 4), '-', \
                    SUBSTR(MD5(seq), 13, 4), '-', SUBSTR(MD5(seq), 17, 4), '-', SUBSTR(MD5(seq), 21, 12)))";
        write!(
            sql,
            "INSERT INTO hosts (id, node_key_hash, identifier, instance_id, address, enrolled_at) \
             SELECT seq, UNHEX(SHA2(CONCAT('key-', seq), 256)), {uuid}, MD5(CONCAT('i', seq)), \
             '192.0.2.7', UNIX_TIMESTAMP() - 100000 - seq % 1000000 {numbers}; \
             INSERT INTO host_details (host_id, detail_updated_at, label_updated_at, \
             refetch_requested, platform, os_version, osquery_version, hostname, computer_name, \
             hardware_uuid, hardware_serial, primary_ip, public_ip, distributed_interval, \
             config_refresh, memory, details) SELECT seq, UNIX_TIMESTAMP(), UNIX_TIMESTAMP(), 0, \
             {platform}, CONCAT('OS ', seq % 40), CONCAT('5.', seq % 7, '.1'), \
             CONCAT('host-', CRC32(seq) % 10000, '-', seq, '.example.com'), CONCAT('host-', seq), \
             {uuid}, CONCAT('C02', LEFT(UPPER(MD5(CONCAT('s', seq))), 9)), \
             CONCAT('10.', seq >> 16, '.', (seq >> 8) & 255, '.', seq & 255), '192.0.2.7', 10, 300, \
             17179869184, '{{\"uptime\": {{\"days\": \"3\"}}}}' {numbers}; \
             INSERT INTO host_seen SELECT seq, UNIX_TIMESTAMP() - IF(seq % 4 = 0, 86400, 0) {numbers}; \
             INSERT INTO label_membership SELECT seq, IF(seq % 10 = 0, 2, 3) {numbers}; \
             INSERT INTO label_membership SELECT seq, 7 {numbers} AND seq % 10 <> 0; \
             UPDATE counters SET value = {to} WHERE name = 'hosts'"
        )
        .unwrap();
        database.sql(&sql);
        from = to + 1;
    }
    database.sql("USE fleet; ANALYZE TABLE hosts, host_details, host_seen, label_membership");
}

fn ask(gateway: &Gateway, path: &str) -> (Value, Duration) {
    let began = Instant::now();
    let output = run(Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--unix-socket"])
        .arg(gateway.state("run/operator.sock"))
        .arg(format!("http://localhost/api/latest/fleet{path}")));
    let took = began.elapsed();
    assert!(output.status.success(), "{path}: {output:?}");
    (serde_json::from_slice(&output.stdout).unwrap(), took)
}

fn measure(gateway: &Gateway, path: &str) -> Value {
    let rounds: Vec<_> = (0..ROUNDS).map(|_| ask(gateway, path)).collect();
    let mut times: Vec<u128> = rounds.iter().map(|(_, took)| took.as_millis()).collect();
    times.sort_unstable();
    eprintln!(
        "{path:70} median {:4} ms, {:4} to {:4}",
        times[ROUNDS / 2],
        times[0],
        times[ROUNDS - 1]
    );
    rounds.into_iter().next().unwrap().0
}

#[test]
#[ignore = "fills a database with a million hosts, and measures"]
fn million_hosts_are_listed_searched_and_counted() {
    let hosts = hosts();
    let database = MariaDb::start();
    let socket = database.socket();
    let options = || {
        Gateway::options()
            .set("mysql.address", socket.display())
            .set("mysql.username", "root")
            .set("mysql.database", "fleet")
    };
    let mut first = options().start();
    first.stop();
    let began = Instant::now();
    fill(&database, hosts);
    eprintln!("{hosts} hosts filled in within {:?}", began.elapsed());
    let began = Instant::now();
    let gateway = options().start();
    wait::until_within(Duration::from_secs(300), "all hosts are loaded", || {
        let (body, _) = ask(&gateway, "/hosts/count");
        (body["count"] == hosts).then_some(())
    });
    eprintln!("started and loaded within {:?}", began.elapsed());
    let status = read_rss(gateway.control_pid());
    eprintln!("control has {status} kB in memory");
    let has = |text: &str| {
        format!(
            "LOWER(CONCAT_WS('\\n', h.identifier, d.hostname, d.computer_name, d.hardware_serial, \
             d.primary_ip, d.public_ip)) LIKE '%{text}%'"
        )
    };
    for (path, clause) in [
        ("", "1 = 1".to_owned()),
        ("query=c02ab", has("c02ab")),
        ("query=77777", has("77777")),
        ("query=nothing-has-this", "1 = 0".to_owned()),
        ("platform=darwin", "d.platform = 'darwin'".to_owned()),
        (
            "label_id=7&query=host-12",
            format!("h.id % 10 <> 0 AND {}", has("host-12")),
        ),
        ("status=offline", "h.id % 4 = 0".to_owned()),
    ] {
        let body = measure(&gateway, &format!("/hosts/count?{path}"));
        let stored = database.sql(&format!(
            "SELECT COUNT(*) FROM fleet.hosts h JOIN fleet.host_details d ON d.host_id = h.id \
             WHERE {clause}"
        ));
        let stored: u32 = stored.trim().parse().unwrap();
        assert_eq!(body["count"], json!(stored), "{path}");
    }
    for path in [
        "/hosts",
        "/hosts?per_page=100&order_key=hostname",
        "/hosts?per_page=100&order_key=seen_time&order_direction=desc",
        "/hosts?per_page=100&order_key=os_version",
        "/hosts?per_page=100&query=77777",
        "/hosts?per_page=100&query=example&order_key=hostname",
        "/hosts?per_page=100&query=nothing-has-this",
        "/hosts?per_page=100&label_id=2&status=online&order_key=hostname",
        "/hosts?per_page=100&after=500000",
        "/hosts?per_page=100&page=5000",
        "/hosts?per_page=100&page=5000&order_key=hostname",
        "/host_summary",
        "/labels",
        "/hosts/identifier/host-77777",
    ] {
        if path.starts_with("/hosts/identifier") {
            let (body, _) = ask(&gateway, "/hosts?query=-77777.example");
            let name = body["hosts"][0]["hostname"].as_str().unwrap().to_owned();
            measure(&gateway, &format!("/hosts/identifier/{name}"));
        } else {
            measure(&gateway, path);
        }
    }
    eprintln!(
        "control has {} kB in memory",
        read_rss(gateway.control_pid())
    );
}

fn read_rss(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.unwrap()
        .trim_start_matches("VmRSS:")
        .trim()
        .replace(" kB", "")
}
