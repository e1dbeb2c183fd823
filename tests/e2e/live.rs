//! Live queries through real workers: begun over REST, watched over WebSocket and Server-Sent Events.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use fleet_tests::gateway::{Gateway, Options};
use fleet_tests::live::{
    API, EventViewer, LiveAgent, PREFIX, SentEvent, SocketViewer, ask, hosts_in, set_up, write_body,
};
use fleet_tests::process::signal;
use fleet_tests::stores::Redis;
use fleet_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

fn options() -> Options {
    Gateway::options().set("osquery.distributed_hold", "12s")
}

fn get(gateway: &Gateway, token: &str, path: &str) -> Map<String, Value> {
    let path = format!("{API}{path}");
    let (status, body) = ask(&gateway.https, token, "GET", &path, &Value::Null);
    assert_eq!(status, 200, "{path}: {body:?}");
    body
}

/// Begins a live query as fleetctl does.
fn begin(gateway: &Gateway, token: &str, selected: &Value) -> Value {
    let body = json!({"query": "SELECT * FROM numbers", "query_id": null, "selected": selected});
    let path = format!("{API}/queries/run_by_identifiers");
    let (status, mut answer) = ask(&gateway.https, token, "POST", &path, &body);
    assert_eq!(status, 200, "{answer:?}");
    answer.remove("campaign").unwrap()
}

fn begin_on_all(gateway: &Gateway, token: &str) -> u64 {
    let campaign = begin(
        gateway,
        token,
        &json!({"hosts": [""], "labels": ["All Hosts"]}),
    );
    campaign["id"].as_u64().unwrap()
}

fn campaign(gateway: &Gateway, token: &str, id: u64) -> Value {
    get(gateway, token, &format!("/gateway/campaigns/{id}"))
        .remove("campaign")
        .unwrap()
}

fn agents(gateway: &Gateway, names: &[&str]) -> Vec<LiveAgent> {
    let agents = names.iter().map(|name| LiveAgent::start(gateway, name));
    agents.collect()
}

fn held(gateway: &Gateway) -> u64 {
    let status = gateway.status().unwrap();
    let slots = status["gateway"]["slots"].as_array().unwrap().iter();
    slots
        .map(|slot| slot["stats"]["held_reads"].as_u64().unwrap())
        .sum()
}

fn hosts_of(events: &[SentEvent]) -> Vec<String> {
    let results = events.iter().filter(|event| event.kind == "result");
    let mut hosts = hosts_in(results.map(|event| &event.data));
    hosts.sort();
    hosts
}

#[test]
fn the_calls_of_fleetctl_bring_every_row_once() {
    let gateway = options().start();
    let token = set_up(&gateway);
    let agents = agents(&gateway, &["one", "two", "three"]);
    wait::until("all reads are held", || (held(&gateway) == 3).then_some(()));
    // What it asks before each command.
    assert!(get(&gateway, &token, "/version")["version"].is_string());
    assert!(get(&gateway, &token, "/config")["org_info"].is_object());
    let selected = json!({"hosts": ["two", "uuid-of-one", "serial-three"], "labels": [""]});
    let campaign = begin(&gateway, &token, &selected);
    for member in [
        "TotalHosts",
        "OnlineHosts",
        "OfflineHosts",
        "MissingInActionHosts",
        "NewHosts",
    ] {
        assert!(
            campaign["Metrics"][member].is_u64(),
            "{member} in {campaign}"
        );
    }
    assert_eq!(campaign["Metrics"]["TotalHosts"], 3);
    assert!(campaign["status"].is_u64() && campaign["query_id"].is_u64());
    let id = campaign["id"].as_u64().unwrap();
    let mut viewer = SocketViewer::open(&gateway.https, &token, id);
    let messages = viewer.until("status", |status| status["status"] == "finished");
    let of = |kind: &str| -> Vec<&Value> {
        let wanted = messages.iter().filter(|message| message["type"] == kind);
        wanted.map(|message| &message["data"]).collect()
    };
    let mut hosts = hosts_in(of("result"));
    hosts.sort();
    assert_eq!(hosts, ["one", "three", "two"]);
    assert_eq!(of("totals")[0]["count"], 3);
    assert_eq!(of("totals")[0]["online"], 3);
    let last = of("status").pop().unwrap();
    assert_eq!(
        (&last["expected_results"], &last["actual_results"]),
        (&json!(3), &json!(3))
    );
    assert_eq!(of("error"), [&Value::Null; 0], "{messages:?}");
    assert_eq!(of("result")[0]["distributed_query_execution_id"], id);
    assert!(agents.iter().all(|agent| agent.asked(id) == 1));
    // Reads that were held brought it: a read that is not ends after 9 s and more, and would be counted otherwise.
    wait::until("the holds are counted as ended by work", || {
        let status = gateway.status().unwrap();
        let slots = status["gateway"]["slots"].as_array().unwrap().iter();
        let ended: u64 = slots
            .map(|slot| {
                slot["stats"]
                    .pointer("/hold_ends/1")
                    .unwrap()
                    .as_u64()
                    .unwrap()
            })
            .sum();
        (ended >= 3).then_some(())
    });
    let activities = get(&gateway, &token, "/activities");
    assert!(Value::Object(activities).to_string().contains("live_query"));
}

#[test]
fn nobody_watches_without_a_token_or_from_another_page() {
    let gateway = options().start();
    let token = set_up(&gateway);
    let _agents = agents(&gateway, &["one"]);
    let id = begin_on_all(&gateway, &token);
    let foreign = SocketViewer::connect(&gateway.https, "https://evil.example");
    assert_eq!(foreign.unwrap_err(), 403);
    let own = format!("https://{}", gateway.https.address);
    let mut viewer = SocketViewer::connect(&gateway.https, &own).unwrap();
    viewer.say(&json!({"type": "auth", "data": {"token": "hunter2"}}));
    let said = viewer.hear().unwrap();
    assert!(
        said["type"] == "error" && said["data"].as_str().unwrap().contains("token"),
        "{said}"
    );
    assert_eq!(viewer.hear(), None, "closed");
    let mut viewer = SocketViewer::connect(&gateway.https, "").unwrap();
    viewer.say(&json!({"type": "select_campaign", "data": {"campaign_id": id}}));
    assert_eq!(viewer.hear().unwrap()["type"], "error");
    assert_eq!(viewer.hear(), None);

    // Another account that is no admin sees nothing of it, and may run nothing of its own.
    let grace = json!({
        "name": "Grace", "email": "grace@example.com", "password": "battery-staple-2",
        "global_role": "observer", "admin_forced_password_reset": false,
    });
    let path = format!("{API}/users/admin");
    assert_eq!(ask(&gateway.https, &token, "POST", &path, &grace).0, 200);
    let login = json!({"email": "grace@example.com", "password": "battery-staple-2"});
    let (_, answer) = ask(&gateway.https, "", "POST", &format!("{API}/login"), &login);
    let other = answer["token"].as_str().unwrap();
    let mut viewer = SocketViewer::open(&gateway.https, other, id);
    let said = viewer.hear().unwrap();
    assert!(
        said["data"].as_str().unwrap().contains("does not exist"),
        "{said}"
    );
    let of_other = |method: &str, path: &str, body: &Value| {
        ask(&gateway.https, other, method, &format!("{API}{path}"), body).0
    };
    let path = format!("/gateway/campaigns/{id}");
    assert_eq!(of_other("GET", &path, &Value::Null), 404);
    assert_eq!(of_other("DELETE", &path, &Value::Null), 404);
    assert_eq!(
        of_other("GET", &format!("{path}/events"), &Value::Null),
        404
    );
    let sql = json!({"query": "SELECT 1", "selected": {"labels": ["All Hosts"]}});
    assert_eq!(of_other("POST", "/queries/run_by_names", &sql), 403);
    let allowed =
        json!({"specs": [{"name": "open", "query": "SELECT 1", "observer_can_run": true}]});
    let path = format!("{API}/spec/queries");
    assert_eq!(ask(&gateway.https, &token, "POST", &path, &allowed).0, 200);
    let query = get(&gateway, &token, "/spec/queries/open")["spec"]["id"].clone();
    let saved = json!({"query_id": query, "selected": {"labels": ["All Hosts"]}});
    assert_eq!(of_other("POST", "/queries/run_by_names", &saved), 200);
}

/// Two hosts answer, a viewer sees one result and is cut, another comes late; then a third host answers.
fn every_viewer_sees_every_row(gateway: &Gateway) {
    let token = set_up(gateway);
    let mut all = agents(gateway, &["one", "two"]);
    gateway.https.enroll(&gateway.secret(), "three");
    let id = begin_on_all(gateway, &token);
    let mut first = EventViewer::open(&gateway.https, &token, id, "");
    let mut seen = first.until(|event| event.kind == "result");
    let last_id = first.last_id.clone();
    assert!(!last_id.is_empty());
    drop(first);
    wait::until("two hosts have answered", || {
        (campaign(gateway, &token, id)["answered"] == 2).then_some(())
    });
    let mut late = SocketViewer::open(&gateway.https, &token, id);
    let mut messages = late.until("status", |status| status["actual_results"] == 2);
    let mut again = EventViewer::open(&gateway.https, &token, id, &last_id);
    // The third host's agent begins to read.
    all.push(LiveAgent::start(gateway, "three"));
    seen.extend(again.until(|event| event.kind == "end"));
    assert_eq!(hosts_of(&seen), ["one", "three", "two"], "{seen:?}");
    let end = seen.last().unwrap();
    assert_eq!(
        (end.kind.as_str(), &end.data["status"]),
        ("end", &json!("finished"))
    );
    messages.extend(late.until("status", |status| status["status"] == "finished"));
    let results = messages
        .iter()
        .filter(|message| message["type"] == "result");
    let mut hosts = hosts_in(results.map(|message| &message["data"]));
    hosts.sort();
    assert_eq!(hosts, ["one", "three", "two"]);

    // All of it can be read again, and from a place on.
    let lines = |query: &str| -> Vec<Value> {
        let path = format!("{API}/gateway/campaigns/{id}/results{query}");
        let raw =
            format!("GET {path} HTTP/1.0\r\nHost: f\r\nAuthorization: Bearer {token}\r\n\r\n");
        let answer = gateway.https.send(raw.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = String::from_utf8(answer.body).unwrap();
        text.lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let every = lines("");
    assert_eq!(hosts_in(&every).len(), 3);
    let cursor = every[1]["cursor"].as_str().unwrap();
    assert_eq!(lines(&format!("?after={cursor}")), every[2..]);
}

#[test]
fn late_and_cut_viewers_see_every_row() {
    every_viewer_sees_every_row(&options().start());
}

#[test]
fn late_and_cut_viewers_see_every_row_from_redis() {
    let redis = Redis::start();
    every_viewer_sees_every_row(&options().set("redis.address", &redis.address).start());
}

#[test]
fn an_answer_of_a_host_that_was_not_asked_is_dropped() {
    let gateway = options().start();
    let token = set_up(&gateway);
    let forger = gateway.https.enroll(&gateway.secret(), "forger");
    gateway.https.enroll(&gateway.secret(), "one");
    let campaign = begin(&gateway, &token, &json!({"hosts": ["one"], "labels": []}));
    let id = campaign["id"].as_u64().unwrap();
    let rows = json!([{"name": "one", "number": "forged"}]);
    let results = Map::from_iter([(format!("{PREFIX}{id}"), rows)]);
    let path = "/api/osquery/distributed/write";
    let answer = gateway
        .https
        .post(path, &write_body(&forger, &results))
        .unwrap();
    assert_eq!(answer.body, b"{}", "it need not send that again");
    let _agent = LiveAgent::start(&gateway, "one");
    let mut viewer = EventViewer::open(&gateway.https, &token, id, "");
    let events = viewer.until(|event| event.kind == "end");
    assert_eq!(hosts_of(&events), ["one"]);
    let end = &events.last().unwrap().data;
    assert_eq!((&end["answered"], &end["rows"]), (&json!(1), &json!(2)));
}

/// A campaign for three hosts of which two have answered, and what a viewer was shown of it.
fn half_answered(gateway: &Gateway, token: &str) -> (u64, Vec<LiveAgent>, EventViewer) {
    let agents = agents(gateway, &["one", "two"]);
    gateway.https.enroll(&gateway.secret(), "three");
    let id = begin_on_all(gateway, token);
    let mut viewer = EventViewer::open(&gateway.https, token, id, "");
    viewer.until(|event| event.kind == "status" && event.data["answered"] == 2);
    (id, agents, viewer)
}

/// Rows of all hosts are kept now, those that were asked again once.
fn all_are_there(gateway: &Gateway, token: &str, id: u64) {
    let mut viewer = wait::until("the campaign can be looked at", || {
        let path = format!("{API}/gateway/campaigns/{id}");
        let raw = format!(
            "GET {path} HTTP/1.1\r\nHost: f\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        let answer = gateway.https.send(raw.as_bytes()).ok()?;
        (answer.status == 200).then(|| EventViewer::open(&gateway.https, token, id, ""))
    });
    let events = viewer.until(|event| event.kind == "end");
    assert_eq!(hosts_of(&events), ["one", "three", "two"], "{events:?}");
    assert!(
        events.iter().any(|event| event.kind == "lost"),
        "{events:?}"
    );
}

#[test]
fn an_empty_redis_is_told_and_hosts_are_asked_again() {
    let mut redis = Redis::start();
    let gateway = options().set("redis.address", &redis.address).start();
    let token = set_up(&gateway);
    let (id, mut agents, mut viewer) = half_answered(&gateway, &token);
    redis.stop();
    redis.resume();
    let told = viewer.until(|event| event.kind == "lost");
    assert!(
        told.last().is_some_and(|event| event.kind == "lost"),
        "{told:?}"
    );
    agents.push(LiveAgent::start(&gateway, "three"));
    all_are_there(&gateway, &token, id);
}

#[test]
fn a_killed_control_goes_on_with_the_campaign() {
    let gateway = options().start();
    let token = set_up(&gateway);
    let (id, mut agents, mut viewer) = half_answered(&gateway, &token);
    let pid = gateway.control_pid();
    signal(pid, Signal::SIGKILL);
    viewer.until(|_| false);
    gateway.wait_for_successor("/control", pid);
    agents.push(LiveAgent::start(&gateway, "three"));
    all_are_there(&gateway, &token, id);
}

#[test]
fn a_campaign_at_which_nobody_looks_expires() {
    let gateway = options().set("osquery.live_query_linger", "10s").start();
    let token = set_up(&gateway);
    gateway.https.enroll(&gateway.secret(), "away");
    let id = begin_on_all(&gateway, &token);
    let mut viewer = EventViewer::open(&gateway.https, &token, id, "");
    viewer.hear().unwrap();
    assert_eq!(campaign(&gateway, &token, id)["status"], "running");
    drop(viewer);
    wait::until("the campaign expires", || {
        (campaign(&gateway, &token, id)["status"] == "expired").then_some(())
    });
    let path = format!("{API}/gateway/campaigns/{id}");
    let (status, answer) = ask(&gateway.https, &token, "DELETE", &path, &Value::Null);
    assert_eq!((status, &answer["stopped"]), (200, &json!(false)));
}

#[test]
fn what_is_beyond_the_caps_is_marked() {
    // Each host has two rows.
    let gateway = options().set("osquery.live_query_rows_max", 3).start();
    let token = set_up(&gateway);
    let _agents = agents(&gateway, &["one", "two"]);
    let id = begin_on_all(&gateway, &token);
    let mut viewer = SocketViewer::open(&gateway.https, &token, id);
    let messages = viewer.until("status", |status| status["status"] == "finished");
    let said = |kind: &str| {
        messages
            .iter()
            .filter(|message| message["type"] == kind)
            .count()
    };
    assert_eq!(said("result"), 1, "{messages:?}");
    let messages = match said("error") {
        0 => viewer.until("error", |_| true),
        _ => messages,
    };
    let error = messages.iter().find(|message| message["type"] == "error");
    assert!(
        error.unwrap()["data"]
            .as_str()
            .unwrap()
            .starts_with("truncated")
    );
    let campaign = campaign(&gateway, &token, id);
    assert_eq!(
        (&campaign["truncated"], &campaign["hosts_cut"]),
        (&json!(true), &json!(1))
    );
    assert_eq!(
        (&campaign["rows"], &campaign["rows_cut"]),
        (&json!(2), &json!(2))
    );
}

#[test]
fn a_request_waits_for_the_hosts_that_are_online() {
    let gateway = options().start();
    let token = set_up(&gateway);
    let _agents = agents(&gateway, &["one", "two"]);
    let post = |path: &str, body: &Value| {
        ask(
            &gateway.https,
            &token,
            "POST",
            &format!("{API}{path}"),
            body,
        )
    };
    let (status, answer) = post("/hosts/identifier/one/query", &json!({"query": "SELECT 1"}));
    assert_eq!(status, 200, "{answer:?}");
    assert_eq!(
        (&answer["status"], &answer["error"]),
        (&json!("online"), &Value::Null)
    );
    assert_eq!(answer["rows"][1]["number"], "2");
    assert_eq!(answer["rows"][0]["host_display_name"], "one");

    let specs = json!({"specs": [{"name": "numbers", "query": "SELECT * FROM numbers"}]});
    assert_eq!(post("/spec/queries", &specs).0, 200);
    let query = get(&gateway, &token, "/spec/queries/numbers")["spec"]["id"].clone();
    let hosts = get(&gateway, &token, "/hosts");
    let hosts = hosts["hosts"].as_array().unwrap().iter();
    let ids: Vec<Value> = hosts.map(|host| host["id"].clone()).collect();
    let (status, answer) = post(&format!("/queries/{query}/run"), &json!({"host_ids": ids}));
    assert_eq!(status, 200, "{answer:?}");
    assert_eq!(
        (
            &answer["targeted_host_count"],
            &answer["responded_host_count"]
        ),
        (&json!(2), &json!(2))
    );
    assert_eq!(answer["results"].as_array().unwrap().len(), 2);
    let list = format!("/queries/run?query_ids={query}&host_ids={}", ids[0]);
    let answer = get(&gateway, &token, &list);
    assert_eq!(answer["summary"]["responded_host_count"], 1, "{answer:?}");
    assert_eq!(
        answer["live_query_results"][0]["results"][0]["host_id"],
        ids[0]
    );

    for (path, body, part) in [
        (
            "/queries/run",
            json!({"query": "SELECT 1"}),
            "no hosts targeted",
        ),
        (
            "/queries/run_by_identifiers",
            json!({"query": "SELECT 1", "selected": {"hosts": ["nobody", "one"]}}),
            "[nobody]",
        ),
        (
            "/queries/run_by_names",
            json!({"query": "SELECT 1", "selected": {"labels": ["No Such"]}}),
            "Invalid label name(s): [No Such]",
        ),
    ] {
        let (status, answer) = post(path, &body);
        assert_eq!(status, 400, "{answer:?}");
        assert!(
            answer["error"].as_str().unwrap().contains(part),
            "{answer:?}"
        );
    }
    for path in ["/status/live_query", "/status/result_store"] {
        assert_eq!(get(&gateway, &token, path), Map::new());
    }
    // None of them goes on.
    let list = get(&gateway, &token, "/gateway/campaigns?status=running");
    assert_eq!(list["campaigns"], json!([]));
}

/// Commands that Redis has run, from `INFO commandstats`.
fn commands(redis: &Redis) -> u64 {
    let mut stream = TcpStream::connect(&redis.address).unwrap();
    stream.write_all(b"INFO commandstats\r\nQUIT\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.lines()
        .filter_map(|line| {
            line.split_once("calls=")?
                .1
                .split(',')
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum()
}

#[test]
fn two_hundred_idle_campaigns_leave_redis_alone() {
    const CAMPAIGNS: usize = 200;
    let redis = Redis::start();
    let gateway = options().set("redis.address", &redis.address).start();
    let token = set_up(&gateway);
    gateway.https.enroll(&gateway.secret(), "away");
    let mut viewers = Vec::new();
    for _ in 0..CAMPAIGNS {
        let id = begin_on_all(&gateway, &token);
        let mut viewer = EventViewer::open(&gateway.https, &token, id, "");
        viewer.hear().unwrap();
        viewers.push(viewer);
    }
    let running = get(
        &gateway,
        &token,
        "/gateway/campaigns?status=running&per_page=1000",
    );
    assert_eq!(running["campaigns"].as_array().unwrap().len(), CAMPAIGNS);
    // Long enough for a few of everything that is done now and then.
    let (before, began) = (commands(&redis), Instant::now());
    std::thread::sleep(Duration::from_secs(30));
    let (after, elapsed) = (commands(&redis), began.elapsed());
    let rate = (after - before) as f64 / elapsed.as_secs_f64();
    println!("{rate:.1} Redis commands a second with {CAMPAIGNS} idle campaigns");
    assert!(rate < 50.0, "{rate} Redis commands a second");
}
