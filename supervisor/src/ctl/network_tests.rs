//! Commands over the network: TLS, sign-in, contexts, live queries.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fake_server::{Certificate, Server};
use super::*;

fn version() -> (u16, Value) {
    (200, json!({"version": env!("CARGO_PKG_VERSION")}))
}

#[tokio::test]
async fn signing_in_and_out_keeps_the_session_in_the_file() {
    let server = Server::start(
        BTreeMap::from([
            ("POST /login", (200, json!({"user": {}, "available_teams": [], "token": "t0ken"}))),
            ("POST /logout", (200, json!({}))),
            ("GET /version", version()),
            ("GET /users", (200, json!({"users": [{"id": 1, "email": "a@b", "name": "A", "global_role": "admin"}]}))),
        ]),
        Vec::new(),
    )
    .await;
    server.signed_in().await;
    let login = ["login", "--email", "a@b", "--password", "hunter2hunter2"];
    let output = server.run(&login).await.unwrap();
    assert!(output.text.contains("signed in as a@b"), "{}", output.text);
    assert!(
        output.remarks[0].contains("can be seen"),
        "{:?}",
        output.remarks
    );
    let file = std::fs::read_to_string(server.contexts()).unwrap();
    assert!(
        file.contains("t0ken") && !file.contains("hunter2"),
        "{file}"
    );
    let users = server.run(&["get", "users"]).await.unwrap();
    assert!(
        users.text.contains("a@b") && users.text.contains("admin"),
        "{}",
        users.text
    );
    assert_eq!(users.remarks, Vec::<String>::new());
    server.run(&["logout"]).await.unwrap();
    assert!(
        !std::fs::read_to_string(server.contexts())
            .unwrap()
            .contains("t0ken")
    );
    let failure = server.run(&["get", "users"]).await.unwrap_err();
    assert!(
        failure.text().contains("run `ctl login`"),
        "{}",
        failure.text()
    );
    assert_eq!(
        server.heard(),
        [
            "POST /login Bearer s3cret",
            "GET /version Bearer t0ken",
            "GET /users Bearer t0ken",
            "POST /logout Bearer t0ken",
        ]
    );
}

#[tokio::test]
async fn refusals_of_sign_in_are_explained() {
    for (status, part) in [
        (404, "run `ctl setup`"),
        (401, "wrong"),
        (429, "too many"),
        (202, "second proof"),
        (500, "500"),
        (302, "says to go to"),
    ] {
        let answers = BTreeMap::from([("POST /login", (status, json!({})))]);
        let server = Server::start(answers, Vec::new()).await;
        server.signed_in().await;
        let login = ["login", "--email", "a@b", "--password", "p"];
        let failure = server.run(&login).await.unwrap_err();
        assert!(
            failure.text().contains(part),
            "{status}: {}",
            failure.text()
        );
    }
}

#[tokio::test]
async fn setup_makes_the_first_user_and_signs_in() {
    let server = Server::start(
        BTreeMap::from([(
            "POST /api/v1/setup",
            (200, json!({"admin": {}, "token": "first"})),
        )]),
        Vec::new(),
    )
    .await;
    server.signed_in().await;
    let setup = [
        "setup",
        "--email",
        "root@b",
        "--password",
        "p",
        "--org-name",
        "B",
    ];
    server.run(&setup).await.unwrap();
    assert!(
        std::fs::read_to_string(server.contexts())
            .unwrap()
            .contains("first")
    );
    let body = server.script.heard.lock().unwrap()[0].1.clone();
    assert_eq!(
        body["admin"],
        json!({"admin": true, "email": "root@b", "name": "root", "password": "p"})
    );
    assert_eq!(body["org_info"]["org_name"], "B");
}

#[tokio::test]
async fn an_ended_session_and_another_version_are_told() {
    let server = Server::start(
        BTreeMap::from([
            ("GET /version", (200, json!({"version": "4.1.2"}))),
            (
                "GET /spec/queries",
                (401, json!({"message": "Authentication required"})),
            ),
            (
                "GET /spec/labels",
                (401, json!({"message": "Authentication required", "error": "password reset required"})),
            ),
            ("GET /spec/packs", (200, json!({"specs": []}))),
        ]),
        Vec::new(),
    )
    .await;
    server.signed_in().await;
    let failure = server.run(&["get", "queries"]).await.unwrap_err();
    assert!(failure.text().contains("ctl login"), "{}", failure.text());
    let failure = server.run(&["get", "labels"]).await.unwrap_err();
    assert_eq!(failure.text(), "password reset required");
    let output = server.run(&["get", "packs"]).await.unwrap();
    assert!(output.remarks[0].contains("4.1.2"), "{:?}", output.remarks);
    assert_eq!(
        *server.script.connections.lock().unwrap(),
        3,
        "one for each command"
    );
}

#[tokio::test]
async fn only_certificates_that_are_trusted_are_taken() {
    for (certificate, part) in [
        (Certificate::Good, None),
        (Certificate::Authority, None),
        (Certificate::Expired, Some("expired")),
        (Certificate::OtherName, Some("not valid for")),
    ] {
        let answers = BTreeMap::from([("GET /version", version())]);
        let server = Server::with(certificate, answers, Vec::new()).await;
        server.signed_in().await;
        let outcome = server.run(&["get", "packs"]).await.unwrap_err();
        match part {
            // It came as far as an answer.
            None => assert_eq!(outcome, Failure::Refused("nothing".into())),
            Some(part) => assert!(outcome.text().contains(part), "{}", outcome.text()),
        }
    }
    let server = Server::start(BTreeMap::from([("GET /version", version())]), Vec::new()).await;
    server.signed_in().await;
    let other = Server::start(BTreeMap::new(), Vec::new()).await;
    let rootca = other.home.path().join("ca.pem");
    server
        .run(&["config", "set", "--rootca", rootca.to_str().unwrap()])
        .await
        .unwrap();
    let failure = server.run(&["get", "packs"]).await.unwrap_err();
    assert!(failure.text().contains("--rootca"), "{}", failure.text());
    let output = server
        .run(&["config", "set", "--tls-skip-verify"])
        .await
        .unwrap();
    assert!(
        output.remarks[0].contains("prefer --rootca"),
        "{:?}",
        output.remarks
    );
    assert_eq!(
        server.run(&["get", "packs"]).await.unwrap_err(),
        Failure::Refused("nothing".into())
    );
}

#[tokio::test]
async fn contexts_are_told_apart() {
    let server = Server::start(BTreeMap::from([("GET /version", version())]), Vec::new()).await;
    let failure = server
        .run(&["get", "packs", "--context", "b"])
        .await
        .unwrap_err();
    assert!(
        failure.text().contains("no context \"b\""),
        "{}",
        failure.text()
    );
    server.signed_in().await;
    let set = [
        "config",
        "set",
        "--context",
        "b",
        "--address",
        "https://b.example.com",
        "--url-prefix",
        "/f",
    ];
    server.run(&set).await.unwrap();
    let failure = server
        .run(&["get", "packs", "--context", "b"])
        .await
        .unwrap_err();
    assert!(
        failure.text().contains("ctl login --context b"),
        "{}",
        failure.text()
    );
    let get = server
        .run(&["config", "get", "address", "--context", "b"])
        .await
        .unwrap();
    assert_eq!(get.text, "  b.address => https://b.example.com\n");
    let list = server.run(&["config", "list"]).await.unwrap();
    assert!(
        list.text.contains("b  https://b.example.com  signed out"),
        "{}",
        list.text
    );
    assert!(!list.text.contains("s3cret"), "{}", list.text);
    server
        .run(&["config", "set", "--rootca", ""])
        .await
        .unwrap();
    let clear = [
        "config",
        "set",
        "--context",
        "c",
        "--address",
        "http://fleet.example.com",
    ];
    assert!(server.run(&clear).await.is_err());
    assert!(
        server
            .run(&["config", "get", "address", "--context", "c"])
            .await
            .is_err()
    );
}

fn result(id: u64) -> Value {
    json!({"type": "result", "data": {
        "host": {"id": id, "hostname": format!("h{id}")}, "rows": [{"a": id.to_string()}], "error": null,
    }})
}

fn campaign(total: u64, online: u64) -> (u16, Value) {
    (
        200,
        json!({"campaign": {"id": 7, "Metrics": {"TotalHosts": total, "OnlineHosts": online}}}),
    )
}

#[tokio::test]
async fn a_query_survives_a_cut_and_speaks_fleetctls_words() {
    let server = Server::start(
        BTreeMap::from([
            ("GET /version", version()),
            (
                "GET /spec/queries/up%20time",
                (
                    200,
                    json!({"spec": {"id": 3, "name": "up time", "query": "SELECT 1"}}),
                ),
            ),
            ("POST /queries/run_by_identifiers", campaign(3, 2)),
        ]),
        vec![
            vec![
                json!({"type": "totals", "data": {"count": 3, "online": 2}}),
                result(1),
            ],
            // Nothing at all, then all of it.
            vec![],
            vec![result(1), result(2), result(3)],
        ],
    )
    .await;
    server.signed_in().await;
    let query = [
        "query",
        "--hosts",
        "h1,h2",
        "--labels",
        "a b",
        "--query-name",
        "up time",
        "--quiet",
    ];
    let output = server.run(&query).await.unwrap();
    assert_eq!(output.failure, None);
    let heard = server.script.heard.lock().unwrap();
    let body = &heard[2].1;
    assert_eq!(
        *body,
        json!({"query": "SELECT 1", "query_id": 3, "selected": {"labels": ["a b"], "hosts": ["h1", "h2"]}})
    );
    let words: Vec<_> = heard[3..].iter().map(|(what, _)| what.as_str()).collect();
    let auth = r#"WS {"type":"auth","data":{"token":"s3cret"}}"#;
    let select = r#"WS {"type":"select_campaign","data":{"campaign_id":7}}"#;
    assert_eq!(words, [auth, select, auth, select, auth, select]);
}

#[tokio::test]
async fn a_query_ends_with_those_online_or_in_time_or_with_the_servers_refusal() {
    let answers = || {
        BTreeMap::from([
            ("GET /version", version()),
            ("POST /queries/run_by_identifiers", campaign(3, 1)),
        ])
    };
    let words = ["query", "--labels", "All Hosts", "--query", "SELECT 1"];
    let server = Server::start(answers(), vec![vec![result(1)]]).await;
    server.signed_in().await;
    let output = server
        .run(&[&words[..], &["--exit"]].concat())
        .await
        .unwrap();
    assert_eq!(output.failure, None);

    let server = Server::start(answers(), vec![vec![result(1)]]).await;
    server.signed_in().await;
    let output = server
        .run(&[&words[..], &["--timeout", "1s"]].concat())
        .await
        .unwrap();
    assert_eq!(output.failure, None);
    assert!(
        output.remarks[0].contains("stopped after 1s") && output.remarks[0].contains("3 targeted"),
        "{:?}",
        output.remarks
    );

    let gone = json!({"type": "error", "data": "no such campaign"});
    let server = Server::start(answers(), vec![vec![gone]]).await;
    server.signed_in().await;
    let output = server.run(&words).await.unwrap();
    assert_eq!(
        output.failure,
        Some(Failure::Refused("no such campaign".into()))
    );
}

#[tokio::test]
async fn an_archive_takes_no_file_that_is_there() {
    let server = Server::start(BTreeMap::from([("GET /version", version())]), Vec::new()).await;
    server.signed_in().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mine.txt");
    std::fs::write(&file, "mine").unwrap();
    let path = file.to_str().unwrap();
    let failure = server.run(&["debug", "archive", "-o", path]).await;
    let failure = failure.unwrap_err();
    let text = failure.text();
    assert!(text.contains("cannot write"), "{text}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    // One that was begun and got nothing is not left.
    let other = directory.path().join("other");
    let path = other.to_str().unwrap();
    let failure = server.run(&["debug", "archive", "-o", path]).await;
    assert!(failure.is_err());
    assert!(!other.exists());
}

#[tokio::test]
async fn a_token_does_not_follow_to_another_address() {
    let server = Server::start(BTreeMap::new(), Vec::new()).await;
    server.signed_in().await;
    let token = async || server.run(&["config", "get", "token"]).await.unwrap().text;
    let address = server
        .run(&["config", "get", "address"])
        .await
        .unwrap()
        .text;
    let same = address.split_once("=> ").unwrap().1.trim();
    server
        .run(&["config", "set", "--address", same])
        .await
        .unwrap();
    assert!(token().await.contains("s3cret"));
    let other = ["config", "set", "--address", "https://other.example.com"];
    let output = server.run(&other).await.unwrap();
    assert_eq!(output.remarks.len(), 1, "{:?}", output.remarks);
    assert!(!token().await.contains("s3cret"));
}
