//! Held reads: a read with nothing due stays open until its time is over or something comes of it.

use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::https::{Answer, Https, TlsStream};
use fleet_tests::process::{run, signal};
use fleet_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

const READ: &str = "/api/osquery/distributed/read";

fn start(workers: u16) -> Gateway {
    Gateway::options()
        .set("osquery.distributed_hold", "12s")
        .set("workers.count", workers)
        .start()
}

fn read(https: &Https, key: &str) -> Answer {
    let answer = https.post(READ, &json!({"node_key": key})).unwrap();
    assert!(
        answer.status == 200 && answer.is_cleanly_closed,
        "{answer:?}"
    );
    answer
}

/// Enrolls a host, and answers all that is asked of it.
fn settled(gateway: &Gateway, name: &str) -> String {
    let key = gateway.https.enroll(&gateway.secret(), name);
    let work = read(&gateway.https, &key).object();
    let queries = work["queries"].as_object().unwrap();
    let all = |value: Value| -> Map<String, Value> {
        let names = queries.keys().cloned();
        names.map(|name| (name, value.clone())).collect()
    };
    let system =
        json!([{"hostname": name, "computer_name": name, "uuid": format!("uuid-of-{name}")}]);
    let mut rows = all(json!([]));
    rows.insert("fleet_detail_query_system_info".into(), system);
    let write = json!({"queries": rows, "statuses": all(json!(0)), "node_key": key});
    let answer = gateway.https.post("/api/osquery/distributed/write", &write);
    assert!(answer.unwrap().object().is_empty());
    key
}

/// The sum of a worker's count over all slots.
fn count(gateway: &Gateway, pointer: &str) -> u64 {
    let status = gateway.status().unwrap();
    let slots = status["gateway"]["slots"].as_array().unwrap().iter();
    slots
        .map(|slot| slot["stats"].pointer(pointer).unwrap().as_u64().unwrap())
        .sum()
}

fn wait_for_held(gateway: &Gateway, wanted: u64) {
    wait::until(&format!("{wanted} reads are held"), || {
        (count(gateway, "/held_reads") == wanted).then_some(())
    });
}

/// As an agent without its pauses: reads until there is work.
fn next_work(https: &Https, key: &str) -> Map<String, Value> {
    loop {
        let mut answer = read(https, key).object();
        if let Some(Value::Object(queries)) = answer.remove("queries") {
            return queries;
        }
        assert!(answer.is_empty(), "{answer:?}");
    }
}

/// Reads until an answer comes after `is_over` was set.
fn last_read(https: &Https, key: &str, is_over: &AtomicBool) -> Answer {
    loop {
        let answer = read(https, key);
        if is_over.load(Ordering::SeqCst) {
            return answer;
        }
    }
}

fn operator(gateway: &Gateway, method: &str, path: &str) -> Value {
    let output = run(Command::new("curl")
        .args(["--silent", "--fail", "-X", method, "--unix-socket"])
        .arg(gateway.state("run/operator.sock"))
        .arg(format!("http://localhost/api/latest/fleet{path}")));
    let (out, error) = texts(&output);
    serde_json::from_str(&out).unwrap_or_else(|_| panic!("{method} {path}: {out}{error}"))
}

#[test]
fn work_reaches_the_hosts_that_wait_and_no_others() {
    let gateway = start(2);
    let (one, two) = (settled(&gateway, "one"), settled(&gateway, "two"));
    let https = &gateway.https;
    std::thread::scope(|scope| {
        let first = scope.spawn(|| next_work(https, &one));
        let second = scope.spawn(|| next_work(https, &two));
        wait_for_held(&gateway, 2);
        let hosts = operator(&gateway, "GET", "/hosts");
        let hosts = hosts["hosts"].as_array().unwrap();
        let host = hosts.iter().find(|host| host["hostname"] == "one");
        let path = format!("/hosts/{}/refetch", host.unwrap()["id"]);
        operator(&gateway, "POST", &path);
        let queries = first.join().unwrap();
        assert!(
            queries.contains_key("fleet_detail_query_system_info"),
            "{queries:?}"
        );
        assert!(!second.is_finished(), "nothing is due for the other one");
        wait_for_held(&gateway, 1);
        gateway.apply(
            "apiVersion: v1\nkind: label\nspec: {name: webs, query: SELECT 1 FROM processes}\n",
        );
        let queries = second.join().unwrap();
        let is_label = |sql: &Value| sql == "SELECT 1 FROM processes";
        assert!(queries.values().any(is_label), "{queries:?}");
    });
    wait::until("both holds are counted as ended by work", || {
        (count(&gateway, "/hold_ends/1") == 2).then_some(())
    });
    wait::until("the metrics say the same", || {
        let (metrics, _) = texts(&run(Command::new("curl")
            .args(["--silent", "--unix-socket"])
            .arg(gateway.state("run/operator.sock"))
            .arg("http://localhost/metrics")));
        let has = |line| metrics.lines().any(|other| other == line);
        let is_none_held = has(r#"fleet_worker_held_reads{slot="0"} 0"#)
            && has(r#"fleet_worker_held_reads{slot="1"} 0"#);
        let ended: u64 = metrics
            .lines()
            .filter(|line| line.starts_with("fleet_worker_hold_ends_total"))
            .filter(|line| line.contains(r#"reason="work""#))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        (is_none_held && ended == 2).then_some(())
    });
}

#[test]
fn a_stop_answers_every_held_read() {
    let mut gateway = start(2);
    let names = (0..20).map(|number| format!("host-{number}"));
    let keys: Vec<_> = names.map(|name| settled(&gateway, &name)).collect();
    let (https, is_over) = (gateway.https.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let agents: Vec<_> = keys
            .iter()
            .map(|key| scope.spawn(|| last_read(&https, key, &is_over)))
            .collect();
        wait_for_held(&gateway, 20);
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(gateway.stop(), 0);
        for agent in agents {
            let answer = agent.join().unwrap();
            assert_eq!(answer.body, b"{}", "{answer:?}");
        }
    });
    assert!(!gateway.log().contains("are cut"), "{}", gateway.log());
}

#[test]
fn a_held_read_outlives_control() {
    let gateway = start(1);
    let key = settled(&gateway, "one");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let agent = scope.spawn(|| last_read(&gateway.https, &key, &is_over));
        wait_for_held(&gateway, 1);
        is_over.store(true, Ordering::SeqCst);
        signal(gateway.control_pid(), Signal::SIGKILL);
        let answer = agent.join().unwrap();
        assert_eq!(answer.body, b"{}", "{answer:?}");
    });
    wait::until("the hold is counted", || {
        (count(&gateway, "/hold_ends/0") >= 1).then_some(())
    });
    assert_eq!(count(&gateway, "/exchanges/2/3"), 0, "none broke");
}

/// Sends a read and does not wait for its answer.
fn begin_read(https: &Https, key: &str) -> TlsStream {
    let body = json!({"node_key": key}).to_string();
    let mut stream = https.connect().unwrap();
    let request = format!(
        "POST {READ} HTTP/1.1\r\nHost: f\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream.flush().unwrap();
    stream
}

/// What the worker reported: held reads, bytes.
fn memory(gateway: &Gateway) -> (u64, u64) {
    let status = gateway.status().unwrap();
    let stats = &status["gateway"]["slots"][0]["stats"];
    let number = |name: &str| stats[name].as_u64().unwrap();
    (number("held_reads"), number("rss_bytes"))
}

/// Calls `each` with every item, on eight threads.
fn in_parallel<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let each = &each;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .chunks(items.len().div_ceil(8))
            .map(|chunk| scope.spawn(move || chunk.iter().map(each).collect::<Vec<_>>()))
            .collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.flatten().collect()
    })
}

#[test]
fn a_held_read_takes_five_thousand_bytes_of_the_worker() {
    const HOSTS: u32 = 3000;
    // Inherited by what is started: resident memory in pages of 2 MiB is too coarse to be divided.
    nix::sys::prctl::set_thp_disable(true).unwrap();
    let gateway = start(1);
    let secret = gateway.secret();
    let names: Vec<String> = (0..HOSTS).map(|number| format!("host-{number}")).collect();
    // What is handed out is not due again for minutes.
    let keys = in_parallel(&names, |name| {
        let key = gateway.https.enroll(&secret, name);
        read(&gateway.https, &key);
        key
    });
    let (_, idle_bytes) = wait::until("the worker reports everything", || {
        let is_all = count(&gateway, "/exchanges/2/1") == u64::from(HOSTS);
        is_all.then(|| memory(&gateway))
    });
    let is_over = AtomicBool::new(false);
    let (held, bytes) = std::thread::scope(|scope| {
        let agents = scope.spawn(|| {
            let streams = in_parallel(&keys, |key| begin_read(&gateway.https, key));
            while !is_over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(streams);
        });
        // Holds end after 9 to 12 s, so on a slow machine some are over before others begin.
        let mut most = (0, 0);
        wait::until("the most reads are held", || {
            let now = memory(&gateway);
            let is_past = now.0 < most.0;
            most = most.max(now);
            (now.0 == u64::from(HOSTS) || is_past).then_some(())
        });
        is_over.store(true, Ordering::SeqCst);
        agents.join().unwrap();
        most
    });
    assert!(held > 1000, "{held} are too few to measure with");
    let each = bytes.saturating_sub(idle_bytes) / held;
    println!("{each} bytes for each of {held} held reads");
    assert!(each <= 5000, "{each} bytes for each of {held}");
}
