//! Every agent endpoint, the way a good agent uses it.

use std::io::Read as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use fleet_tests::gateway::{Gateway, read};
use fleet_tests::https::{Answer, enroll_body};
use fleet_tests::wait;
use serde_json::{Value, json};

const PREFIXES: [&str; 2] = ["/api/osquery", "/api/v1/osquery"];

fn accepted(answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.object().contains_key("error"), "{answer:?}");
}

#[test]
fn both_prefixes_serve_every_endpoint() {
    let gateway = Gateway::start();
    for prefix in PREFIXES {
        let post = |path: &str, body: Value| {
            gateway
                .https
                .post(&format!("{prefix}/{path}"), &body)
                .unwrap()
        };
        let enrolled = post(
            "enroll",
            enroll_body(&gateway.secret(), &format!("host{}", prefix.len())),
        );
        accepted(&enrolled);
        let key = enrolled.object()["node_key"].clone();
        for (path, body) in [
            ("config", json!({"node_key": key})),
            ("distributed/read", json!({"node_key": key})),
            (
                "distributed/write",
                json!({"queries": {}, "statuses": {}, "node_key": key}),
            ),
            (
                "log",
                json!({"data": [], "log_type": "status", "node_key": key}),
            ),
        ] {
            accepted(&post(path, body));
        }
    }
}

#[test]
fn answers_end_with_close_notify_and_one_exact_close_header() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let answer = gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": key}))
        .unwrap();
    assert!(answer.is_cleanly_closed);
    assert!(
        answer.head.contains("\r\nConnection: close"),
        "{}",
        answer.head
    );
    assert_eq!(
        answer.header("content-length"),
        Some(answer.body.len().to_string().as_str())
    );
}

#[test]
fn enrolment_is_idempotent_and_wrong_secrets_get_no_key() {
    let gateway = Gateway::start();
    let first = gateway.https.enroll(&gateway.secret(), "web-1");
    assert_eq!(gateway.https.enroll(&gateway.secret(), "web-1"), first);
    assert_ne!(gateway.https.enroll(&gateway.secret(), "web-2"), first);
    let refused = gateway
        .https
        .post("/api/osquery/enroll", &enroll_body("wrong", "web-3"))
        .unwrap();
    assert_eq!(refused.status, 401);
    assert!(!refused.object().contains_key("node_key"));
    assert_eq!(
        gateway
            .ctl(&["get", "hosts", "--json"])
            .matches("web-3")
            .count(),
        0
    );
}

#[test]
fn due_details_are_handed_out_once_and_fill_the_host() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let read = || {
        gateway
            .https
            .post("/api/osquery/distributed/read", &json!({"node_key": key}))
            .unwrap()
            .object()
    };
    let work = read();
    let queries = work["queries"].as_object().unwrap();
    assert!(
        queries
            .keys()
            .any(|name| name == "fleet_detail_query_system_info"),
        "{queries:?}"
    );
    for (name, sql) in queries {
        assert!(
            sql.as_str().is_some_and(|sql| !sql.trim().is_empty()),
            "{name}"
        );
        let discovery = &work["discovery"][name];
        assert!(
            discovery.as_str().is_some_and(|sql| !sql.trim().is_empty()),
            "{name}"
        );
    }
    assert!(read().get("queries").is_none(), "handed out twice");

    let rows = json!({
        "fleet_detail_query_system_info": [{"hostname": "renamed.example.com", "computer_name": "renamed",
            "uuid": "uuid-of-web-1", "cpu_brand": "Other CPU", "physical_memory": "1024",
            "hardware_vendor": "V", "hardware_model": "M", "hardware_serial": "S"}],
        "fleet_detail_query_uptime": "",
    });
    let statuses: serde_json::Map<_, _> = queries
        .keys()
        .map(|name| (name.clone(), json!("0")))
        .collect();
    accepted(
        &gateway
            .https
            .post(
                "/api/osquery/distributed/write",
                &json!({"queries": rows, "statuses": statuses, "messages": {}, "stats": {}, "node_key": key}),
            )
            .unwrap(),
    );
    wait::until("the host carries its new name", || {
        gateway
            .ctl(&["get", "host", "web-1", "--json"])
            .contains("renamed.example.com")
            .then_some(())
    });
    assert!(
        read().get("queries").is_none(),
        "details are due again at once"
    );
}

#[test]
fn logs_of_both_kinds_keep_their_lines_exactly() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let result =
        r#"{"name":"pack/ir/p","columns":{"pid":"1","path":"/a b\\c"},"unixTime":1759253850}"#;
    let status = r#"{"severity":"1","line":"12","message":"old agents say numbers as text"}"#;
    for (log_type, line) in [("result", result), ("status", status)] {
        let body = format!(r#"{{"data":[{line}],"log_type":"{log_type}","node_key":"{key}"}}"#);
        accepted(
            &gateway
                .https
                .post_bytes("/api/osquery/log", "", body.as_bytes())
                .unwrap(),
        );
        assert_eq!(gateway.journal(log_type), [line]);
    }
}

#[test]
fn the_key_may_stand_in_the_header_or_anywhere_in_the_body() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let header = format!("Authorization: NodeKey {key}\r\n");
    for (headers, body) in [
        (
            header.as_str(),
            r#"{"data":[{"n":1}],"log_type":"result"}"#.to_owned(),
        ),
        (
            header.as_str(),
            r#"{"data":[{"n":2}],"log_type":"result","node_key":"stale"}"#.to_owned(),
        ),
        (
            "",
            format!(r#"{{"node_key":"{key}","log_type":"result","data":[{{"n":3}}]}}"#),
        ),
        (
            "",
            format!(r#"{{"data":[{{"n":4}}],"node_key":"{key}","log_type":"result"}}"#),
        ),
    ] {
        accepted(
            &gateway
                .https
                .post_bytes("/api/osquery/log", headers, body.as_bytes())
                .unwrap(),
        );
    }
    assert_eq!(gateway.journal("result").len(), 4);
}

#[test]
fn gzip_bodies_are_inflated() {
    use std::io::Write;
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let body = format!(r#"{{"node_key":"{key}","log_type":"result","data":[{{"zipped":true}}]}}"#);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body.as_bytes()).unwrap();
    let zipped = encoder.finish().unwrap();
    accepted(
        &gateway
            .https
            .post_bytes("/api/osquery/log", "Content-Encoding: gzip\r\n", &zipped)
            .unwrap(),
    );
    assert_eq!(gateway.journal("result"), [r#"{"zipped":true}"#]);
}

#[test]
fn a_carve_arrives_whole_and_in_order() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let content: Vec<u8> = (0..2500_u32).map(|n| (n % 251) as u8).collect();
    let begin = |request_id: &str| {
        let body = json!({"block_count": 3, "block_size": 1000, "carve_size": 2500,
            "carve_id": "c-1", "request_id": request_id, "node_key": key});
        let object = gateway
            .https
            .post("/api/osquery/carve/begin", &body)
            .unwrap()
            .object();
        object["session_id"].as_str().unwrap().to_owned()
    };
    let session = begin("r-1");
    assert!(session.len() >= 32);
    let block = |id: usize, session: &str, request_id: &str| {
        let data = STANDARD.encode(content.chunks(1000).nth(id).unwrap());
        let body = json!({"block_id": id, "session_id": session, "request_id": request_id,
            "data": data});
        gateway
            .https
            .post("/api/osquery/carve/block", &body)
            .unwrap()
    };
    let is_refused = |answer: Answer| answer.object().contains_key("error");
    assert!(is_refused(block(0, "guessed", "r-1")));
    // The second time stands for an answer that was lost.
    for id in [0, 1, 1, 2] {
        accepted(&block(id, &session, "r-1"));
    }
    let skipping = begin("r-2");
    assert!(
        is_refused(block(0, &skipping, "r-1")),
        "another request's block"
    );
    let skipping = begin("r-3");
    accepted(&block(0, &skipping, "r-3"));
    assert!(is_refused(block(2, &skipping, "r-3")), "out of order");
    let stored = std::fs::read_dir(gateway.state("carves"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|end| end == "tar"))
        .expect("a finished carve");
    assert_eq!(std::fs::read(stored).unwrap(), content);
}

#[test]
fn config_is_composed_for_platform_and_labels_and_never_varies() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    gateway.apply(
        r#"
apiVersion: v1
kind: query
spec: {name: cpu, query: "SELECT * FROM cpu_time", interval: 600, platform: linux}
---
apiVersion: v1
kind: query
spec: {name: users, query: "SELECT * FROM users"}
---
apiVersion: v1
kind: label
spec: {name: webs, label_membership_type: manual, hosts: [web-1]}
---
apiVersion: v1
kind: label
spec: {name: others, label_membership_type: manual, hosts: []}
---
apiVersion: v1
kind: pack
spec:
  name: people
  targets: {labels: [webs]}
  queries: [{query: users, name: users, interval: 60, snapshot: true}]
---
apiVersion: v1
kind: pack
spec:
  name: not-here
  targets: {labels: [others]}
  queries: [{query: users, name: users, interval: 60}]
---
apiVersion: v1
kind: config
spec:
  agent_options:
    config:
      options: {distributed_interval: 7, logger_tls_period: 8}
    overrides:
      platforms:
        ubuntu:
          options: {distributed_interval: 9}
"#,
    );
    let config = || {
        gateway
            .https
            .post("/api/osquery/config", &json!({"node_key": key}))
            .unwrap()
    };
    // Documents are applied kind by kind and workers hear of it one after the other: the last state is meant.
    let answer = wait::until("every worker serves the new config", || {
        let answers: Vec<_> = (0..10).map(|_| config()).collect();
        let is_last = |answer: &Answer| {
            let object = answer.object();
            let has_pack = object
                .get("packs")
                .is_some_and(|packs| packs.get("people").is_some());
            has_pack && object.contains_key("options")
        };
        answers.iter().all(is_last).then(&config)
    });
    let object = answer.object();
    // An override replaces; it does not merge.
    assert_eq!(object["options"], json!({"distributed_interval": 9}));
    let packs = object["packs"].as_object().unwrap();
    assert_eq!(packs["people"]["queries"]["users"]["snapshot"], true);
    assert_eq!(packs["Global"]["queries"]["cpu"]["interval"], 600);
    assert!(!packs.contains_key("not-here"));
    for _ in 0..20 {
        assert_eq!(config().body, answer.body);
    }
}

#[test]
fn an_agent_that_takes_gzip_gets_the_same_config() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let sql = format!("SELECT 1 -- {}", "x".repeat(2000));
    gateway.apply(&format!(
        "apiVersion: v1\nkind: query\nspec: {{name: long, query: \"{sql}\", interval: 600}}\n"
    ));
    let body = json!({ "node_key": key }).to_string();
    let config = |headers: &str| {
        let path = "/api/osquery/config";
        gateway.https.post_bytes(path, headers, body.as_bytes())
    };
    let plain = wait::until("the config has the query", || {
        let answer = config("").unwrap();
        (answer.body.len() > 2000).then_some(answer)
    });
    assert_eq!(plain.header("content-encoding"), None);
    let gzip = config("Accept-Encoding: gzip\r\n").unwrap();
    assert_eq!(gzip.header("content-encoding"), Some("gzip"));
    assert!(gzip.body.len() < 1000, "{} bytes", gzip.body.len());
    let mut inflated = Vec::new();
    GzDecoder::new(&gzip.body[..])
        .read_to_end(&mut inflated)
        .unwrap();
    assert_eq!(inflated, plain.body);
}

#[test]
fn a_dynamic_label_is_asked_and_decides_the_config() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    gateway.apply(
        r#"
apiVersion: v1
kind: query
spec: {name: users, query: "SELECT * FROM users"}
---
apiVersion: v1
kind: label
spec: {name: has-nginx, query: "SELECT 1 FROM processes WHERE name = 'nginx'"}
---
apiVersion: v1
kind: pack
spec:
  name: people
  targets: {labels: [has-nginx]}
  queries: [{query: users, name: users, interval: 60}]
"#,
    );
    // As an agent: everything that is asked is answered. Built-in labels are asked too.
    wait::until("the label query is handed out", || {
        let read = json!({"node_key": key});
        let work = gateway
            .https
            .post("/api/osquery/distributed/read", &read)
            .unwrap()
            .object();
        let queries = work.get("queries")?.as_object()?.clone();
        let is_nginx = |sql: &Value| sql.as_str().unwrap().contains("nginx");
        let rows: serde_json::Map<_, _> = queries
            .iter()
            .map(|(name, sql)| {
                (
                    name.clone(),
                    if is_nginx(sql) {
                        json!([{"1": "1"}])
                    } else {
                        json!([])
                    },
                )
            })
            .collect();
        let statuses: serde_json::Map<_, _> = queries
            .keys()
            .map(|name| (name.clone(), json!(0)))
            .collect();
        let write = json!({"queries": rows, "statuses": statuses, "node_key": key});
        accepted(
            &gateway
                .https
                .post("/api/osquery/distributed/write", &write)
                .unwrap(),
        );
        queries.values().any(is_nginx).then_some(())
    });
    wait::until("the pack is in the config", || {
        let config = gateway
            .https
            .post("/api/osquery/config", &json!({"node_key": key}))
            .unwrap()
            .object();
        config.get("packs")?.get("people").map(|_| ())
    });
}

#[test]
fn an_old_agent_finds_a_plain_flagfile_path_too() {
    // The flagfile that `start` writes names every endpoint that this server serves.
    let gateway = Gateway::start();
    let flags = read(&gateway.state("osquery.flags"));
    for tail in [
        "enroll",
        "config",
        "distributed/read",
        "distributed/write",
        "log",
        "carve/begin",
        "carve/block",
    ] {
        assert!(
            flags.contains(&format!("=/api/v1/osquery/{tail}")),
            "{tail} is not in:\n{flags}"
        );
    }
}
