//! `prepare db`: beside servers that use the database, with progress, and kept out of an embedded store in use.

use std::path::Path;
use std::process::{Command, Output};

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::process::{Successor, binary, run};
use fleet_tests::steady_load::under_load;
use fleet_tests::stores::MariaDb;
use fleet_tests::terminal::Terminal;
use fleet_tests::wait;

use crate::upgrade::previous_build;

/// Hosts of before there was a public address.
const OLD_HOSTS: u32 = 20_000;

fn command(program: &Path, database: &MariaDb) -> Command {
    let mut command = Command::new(program);
    command
        .args(["prepare", "db", "--mysql_username=root"])
        .arg(format!("--mysql_address={}", database.socket().display()));
    command
}

fn prepare(program: &Path, database: &MariaDb) -> Output {
    run(command(program, database).arg("--no-prompt"))
}

/// Rows as the first schema had them. Later columns may be left out, since the previous build's rows lack them too.
fn insert_old_hosts(database: &MariaDb) {
    database.sql(&format!(
        "USE fleet; SET SESSION max_recursive_iterations = 1000000; \
         INSERT INTO hosts (id, node_key_hash, identifier, instance_id, address, enrolled_at) \
         WITH RECURSIVE numbers AS \
             (SELECT 1 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < {OLD_HOSTS}) \
         SELECT n, UNHEX(SHA2(n, 256)), CONCAT('old-', n), '', \
             CONCAT('10.2.', n DIV 256, '.', n MOD 256), 1000 FROM numbers; \
         INSERT INTO host_details (host_id, detail_updated_at, label_updated_at, refetch_requested) \
         SELECT id, 1000, 1000, 0 FROM hosts; \
         UPDATE counters SET value = {OLD_HOSTS} WHERE name = 'hosts'"
    ));
}

/// Makes the old hosts lack their address, and the database forget that they were looked at.
fn forget_addresses(database: &MariaDb) {
    database.sql(&format!(
        "USE fleet; DELETE FROM counters WHERE name LIKE 'backfill.%'; \
         UPDATE host_details SET public_ip = NULL WHERE host_id <= {OLD_HOSTS}"
    ));
}

fn without_address(database: &MariaDb) -> String {
    let sql = format!(
        "SELECT COUNT(*) FROM fleet.host_details WHERE host_id <= {OLD_HOSTS} AND public_ip IS NULL"
    );
    database.sql(&sql).trim().to_owned()
}

/// Whatever the previous build is: it serves on a database that this build has brought forward under it, and gives its
/// place to this build.
#[test]
fn a_database_is_brought_forward_under_the_previous_build_and_its_load() {
    let new = binary("fleet-supervisor");
    let old = previous_build().unwrap_or_else(|| {
        println!("there is no previous build; this one stands for it");
        new.clone()
    });
    let database = MariaDb::start();
    let prepared = prepare(&old, &database);
    assert!(prepared.status.success(), "{:?}", texts(&prepared));
    insert_old_hosts(&database);
    let gateway = Gateway::options()
        .program(&old)
        .set("mysql.address", database.socket().display())
        .set("mysql.username", "root")
        .start();
    let mut successors = Vec::new();
    let verdict = under_load(&gateway, |load| {
        // The old one may know of the backfill, and have been through it.
        forget_addresses(&database);
        assert_eq!(without_address(&database), OLD_HOSTS.to_string());
        load.fault(
            "upgrade: after the database, from the previous build",
            |fault| {
                let prepared = prepare(&new, &database);
                let (out, error) = texts(&prepared);
                assert!(prepared.status.success(), "{out}{error}");
                assert!(out.contains("migration 4: "), "{out}");
                assert!(out.contains(" hosts looked at, "), "{out}");
                assert_eq!(without_address(&database), "0");
                // The old build serves on the new tables, and then the new one does.
                fault.wait_for_successes();
                let (code, printed) = gateway.upgrade(Some(&new));
                assert_eq!(code, Some(0), "{printed}");
                successors.push(Successor(gateway.pid()));
                fault.wait_for_successes();
            },
        );
    });
    verdict.assert_none_failed();
}

/// Nobody has to remember `prepare db` for what no server waits for.
#[test]
fn a_server_fills_in_by_itself_and_shows_how_far_it_is() {
    let database = MariaDb::start();
    let program = binary("fleet-supervisor");
    let prepared = prepare(&program, &database);
    assert!(prepared.status.success(), "{:?}", texts(&prepared));
    insert_old_hosts(&database);
    forget_addresses(&database);
    let gateway = Gateway::options()
        .set("mysql.address", database.socket().display())
        .set("mysql.username", "root")
        .start();
    wait::until("every host has its address", || {
        (without_address(&database) == "0").then_some(())
    });
    wait::until("the metric says that it is over", || {
        let (page, _) = texts(&run(Command::new("curl")
            .args(["--silent", "--unix-socket"])
            .arg(gateway.state("run/operator.sock"))
            .arg("http://localhost/metrics")));
        let line = "fleet_control_store_backfill_rows_left{migration=\"4\"} 0";
        page.lines().any(|have| have == line).then_some(())
    });
    let log = gateway.log();
    assert!(log.contains("filled in the rows of a migration"), "{log}");
    let output = prepare(&program, &database);
    let (out, _) = texts(&output);
    assert!(
        out.starts_with("Nothing to do: the database fleet"),
        "{out}"
    );
}

#[test]
fn somebody_at_a_terminal_is_asked_and_sees_one_line_for_each_migration() {
    let database = MariaDb::start();
    let mut command = command(&binary("fleet-supervisor"), &database);
    let (mut terminal, mut asked) = Terminal::start(&mut command);
    terminal.expect("Servers that use it may go on running");
    terminal.expect("Go on? [y/N]");
    terminal.press("n");
    terminal.expect("nothing was changed");
    assert_ne!(asked.exit_code(), 0);
    assert_eq!(database.sql("SHOW TABLES FROM fleet").trim(), "");

    let (mut terminal, mut asked) = Terminal::start(&mut command);
    terminal.expect("Go on? [y/N]");
    terminal.press("y");
    for number in 1..=3 {
        terminal.expect(&format!("migration {number}: tables changed, "));
    }
    terminal.expect("migrations on the database fleet at ");
    assert_eq!(asked.exit_code(), 0);
}

#[test]
fn an_embedded_store_in_use_is_left_to_its_server() {
    let mut gateway = Gateway::start();
    let (out, error) = texts(&gateway.command(&["prepare", "db"]));
    assert!(
        error.contains("is in use by the supervisor"),
        "{out}{error}"
    );
    assert!(!out.contains("embedded store"), "{out}");
    assert_eq!(gateway.stop(), 0, "{}", gateway.log());
    let output = gateway.command(&["prepare", "db"]);
    let (out, error) = texts(&output);
    assert!(output.status.success(), "{error}");
    assert!(
        out.starts_with("Nothing to do: the embedded store"),
        "{out}"
    );
}
