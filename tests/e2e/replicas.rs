//! Read replicas: who serves operators' reads, and that nobody reads what is older than his own writes.

use std::process::Command;

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::process::{binary, run};
use fleet_tests::stores::MariaDb;
use fleet_tests::wait;

fn start(primary: &MariaDb, replica: &MariaDb) -> Gateway {
    let output = run(Command::new(binary("fleet-supervisor"))
        .args(["prepare", "db", "--no-prompt", "--mysql_username=root"])
        .arg(format!("--mysql_address={}", primary.socket().display())));
    assert!(output.status.success(), "{:?}", texts(&output));
    Gateway::options()
        .set("mysql.address", primary.socket().display())
        .set("mysql.username", "root")
        .set("mysql_read_replica.address", replica.socket().display())
        .set("prometheus.basic_auth.disable", true)
        .start()
}

fn metric(gateway: &Gateway, name: &str) -> u64 {
    let answer = gateway.https.get("/metrics").unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix('{')?
                .split(' ')
                .nth(1)
        })
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .parse()
        .unwrap()
}

fn wait_until_level(gateway: &Gateway, wanted: bool) {
    wait::until("the replica is found level, or not", || {
        let level = metric(gateway, "fleet_control_store_replica_level");
        (level == u64::from(wanted)).then_some(())
    });
}

fn control(gateway: &Gateway) -> String {
    gateway.status().unwrap()["control"].to_string()
}

#[test]
fn operators_read_from_a_replica_that_is_level_and_never_behind_their_writes() {
    let (primary, mut replica) = MariaDb::start_pair();
    let gateway = start(&primary, &replica);
    gateway.https.enroll(&gateway.secret(), "web-1");
    wait_until_level(&gateway, true);
    // Only the replica knows this.
    wait::until("the replica has the host", || {
        (replica.sql("SELECT COUNT(*) FROM fleet.hosts").trim() == "1").then_some(())
    });
    replica.sql("UPDATE fleet.host_details SET os_version = 'from the replica'");
    assert!(
        gateway
            .ctl(&["get", "hosts", "--json"])
            .contains("from the replica")
    );

    // It stands still while somebody writes.
    replica.sql("STOP SLAVE SQL_THREAD");
    let passed = metric(&gateway, "fleet_control_store_replica_passed_total");
    for number in 0..5 {
        gateway.apply(&format!(
            "apiVersion: v1\nkind: query\nspec: {{name: cpu-{number}, query: SELECT 1, interval: 60}}\n"
        ));
        let queries = gateway.ctl(&["get", "queries", "--json"]);
        assert!(queries.contains(&format!("cpu-{number}")), "{queries}");
    }
    assert!(metric(&gateway, "fleet_control_store_replica_passed_total") > passed);
    wait_until_level(&gateway, false);
    assert!(metric(&gateway, "fleet_control_store_replica_lag") >= 5);
    wait::until("status tells how far behind it is", || {
        control(&gateway).contains("behind by").then_some(())
    });
    assert!(
        !gateway
            .ctl(&["get", "hosts", "--json"])
            .contains("from the replica")
    );
    assert_eq!(gateway.https.get("/healthz").unwrap().status, 200);

    replica.sql("START SLAVE SQL_THREAD");
    wait_until_level(&gateway, true);
    assert!(
        gateway
            .ctl(&["get", "hosts", "--json"])
            .contains("from the replica")
    );

    // Without it, all is read from the primary.
    replica.stop();
    assert!(gateway.ctl(&["get", "hosts", "--json"]).contains("web-1"));
    wait_until_level(&gateway, false);
    gateway.https.enroll(&gateway.secret(), "web-2");
    assert!(gateway.ctl(&["get", "hosts", "--json"]).contains("web-2"));
    assert_eq!(gateway.https.get("/healthz").unwrap().status, 200);
    replica.resume();
    wait_until_level(&gateway, true);
}
