//! MySQL and Redis that are away, slow, hung, locked or read-only.

use std::process::Command;
use std::time::Duration;

use fleet_protocol::agent::Route;
use fleet_tests::gateway::{Gateway, Options, texts};
use fleet_tests::process::{binary, run};
use fleet_tests::proxy::{Fault, Proxy};
use fleet_tests::steady_load::under_load;
use fleet_tests::stores::{MariaDb, Redis};
use fleet_tests::wait;
use nix::sys::signal::Signal;

/// How long a store is not itself.
const SPELL: Duration = Duration::from_secs(4);

/// A user without the privilege to write to a read-only server, as a gateway has it.
const GATEWAY_USER: &str =
    "CREATE USER 'gateway'@'%' IDENTIFIED BY ''; GRANT ALL ON fleet.* TO 'gateway'@'%'";

fn prepared() -> MariaDb {
    let database = MariaDb::start();
    let output = run(Command::new(binary("fleet-supervisor"))
        .args(["prepare", "db", "--no-prompt", "--mysql_username=root"])
        .arg(format!("--mysql_address={}", database.socket().display())));
    assert!(output.status.success(), "{:?}", texts(&output));
    database.sql(GATEWAY_USER);
    database
}

fn gateway(mysql: &str) -> Options {
    Gateway::options()
        .set("mysql.address", mysql)
        .set("mysql.username", "gateway")
}

/// Runs a load while `spell` does harm to the store and mends it again. Config and logs go on, and everything comes back.
fn store_fault(name: &str, gateway: &Gateway, spell: impl FnOnce()) {
    let verdict = under_load(gateway, |load| {
        load.fault(name, |fault| {
            spell();
            assert!(fault.successes(Route::Config) > 0, "no config meanwhile");
            assert!(fault.successes(Route::Log) > 0, "logs need no store");
        });
    });
    verdict.assert_none_cut();
}

fn behind_proxy(name: &str, harm: Fault) {
    let database = prepared();
    let proxy = Proxy::start(database.socket().as_path());
    let gateway = gateway(&proxy.address.to_string()).start();
    store_fault(name, &gateway, || {
        proxy.set(harm);
        std::thread::sleep(SPELL);
        proxy.set(Fault::None);
    });
}

#[test]
fn mysql_that_refuses() {
    behind_proxy("MySQL: refuses for 4 s", Fault::Refuse);
}

#[test]
fn mysql_that_is_slow() {
    let pause = Duration::from_millis(300);
    behind_proxy("MySQL: 300 ms later each way, for 4 s", Fault::Delay(pause));
}

#[test]
fn mysql_that_hangs() {
    behind_proxy("MySQL: hangs for 4 s", Fault::Hang);
}

#[test]
fn mysql_whose_connections_break_in_the_middle() {
    let harm = Fault::CutAfter(2000);
    behind_proxy(
        "MySQL: each connection cut after 2,000 bytes, for 4 s",
        harm,
    );
}

/// Somebody else locks the hosts in the wrong order, again and again.
#[test]
fn mysql_with_deadlocks() {
    let database = prepared();
    let gateway = gateway(&database.socket().display().to_string()).start();
    store_fault(
        "MySQL: rows locked in the wrong order, for 4 s",
        &gateway,
        || {
            let end = std::time::Instant::now() + SPELL;
            while std::time::Instant::now() < end {
                // A deadlock ends one of the two transactions, which may be this one.
                database.try_sql(
                "BEGIN; UPDATE fleet.hosts SET id = id ORDER BY id DESC LIMIT 20; DO SLEEP(0.05); \
                 UPDATE fleet.hosts SET id = id ORDER BY id DESC; COMMIT",
            );
            }
        },
    );
    let counted = database.sql(
        "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'Innodb_deadlocks'",
    );
    println!("deadlocks: {}", counted.trim());
}

#[test]
fn mysql_that_is_read_only() {
    let database = prepared();
    let gateway = gateway(&database.socket().display().to_string()).start();
    store_fault("MySQL: read-only for 4 s", &gateway, || {
        database.sql("SET GLOBAL read_only = 1");
        wait::until("health says so", || {
            let answer = gateway.https.get("/healthz?check=mysql").ok()?;
            (answer.status == 500).then_some(())
        });
        std::thread::sleep(SPELL);
        database.sql("SET GLOBAL read_only = 0");
        wait::until("health is well again", || {
            let answer = gateway.https.get("/healthz?check=mysql").ok()?;
            (answer.status == 200).then_some(())
        });
    });
}

#[test]
fn redis_that_is_gone() {
    let mut redis = Redis::start();
    let gateway = Gateway::options()
        .set("redis.address", &redis.address)
        .start();
    store_fault("Redis: gone for 4 s", &gateway, || {
        redis.stop();
        std::thread::sleep(SPELL);
        redis.resume();
    });
}

#[test]
fn redis_that_hangs() {
    let redis = Redis::start();
    let gateway = Gateway::options()
        .set("redis.address", &redis.address)
        .start();
    store_fault("Redis: SIGSTOP for 4 s", &gateway, || {
        redis.signal(Signal::SIGSTOP);
        std::thread::sleep(SPELL);
        redis.signal(Signal::SIGCONT);
    });
}
