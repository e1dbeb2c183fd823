//! Documents that are applied, shown, and deleted.

use serde_json::json;

use super::*;

fn everything() -> Value {
    json!({
        "queries": [
            {"name": "processes", "query": "SELECT * FROM processes", "interval": 3600, "automations_enabled": true},
            {"name": "pack/users", "query": "SELECT * FROM users"},
        ],
        "labels": [
            {"name": "dynamic", "query": "SELECT 1", "platform": "linux"},
            {"name": "manual", "label_membership_type": "manual", "hosts": ["web-1"]},
        ],
        "packs": [{
            "name": "p", "targets": {"labels": ["dynamic"]},
            "queries": [
                {"query": "pack/users", "interval": 60, "removed": false},
                {"name": "own", "sql": "SELECT 2", "interval": 60},
            ],
        }],
        "config": {
            "agent_options": {"config": {"options": {"logger_tls_period": 10}}},
            "org_info": {"org_name": "Example"},
        },
        "enroll_secret": {"secrets": [{"secret": "hunter2"}]},
    })
}

#[tokio::test]
async fn documents_go_in_and_come_out_unchanged() {
    let bench = Bench::new().await;
    bench.enroll("web-1").await;
    let first = bench.apply(everything()).await;
    assert_eq!(
        first,
        [
            "create query processes",
            "create query pack/users",
            "create label dynamic",
            "create label manual",
            "create pack p",
            "replace config ",
            "replace enroll_secret ",
        ]
    );
    assert!(
        bench
            .apply(everything())
            .await
            .iter()
            .all(|action| action.starts_with("none"))
    );
    let specs = async |kind: &str| bench.get(&format!("/spec/{kind}")).await["specs"].clone();
    let shown = json!({
        "queries": specs("queries").await,
        "labels": specs("labels").await,
        "packs": specs("packs").await,
        "config": bench.get("/config").await,
        "enroll_secret": bench.get("/spec/enroll_secret").await["spec"],
    });
    let again = bench.apply(shown).await;
    assert!(
        again.len() > 7,
        "the built-in labels are among them: {again:?}"
    );
    assert!(
        again.iter().all(|action| action.starts_with("none")),
        "{again:?}"
    );
    bench.look().await;
    let label = bench.get("/spec/labels/manual").await;
    assert_eq!(label["spec"]["hosts"], json!(["id-web-1"]));
    assert_eq!(label["spec"]["host_count"], 1);
    let query = bench.get("/spec/queries/pack%2Fusers").await;
    assert_eq!(query["spec"]["query"], "SELECT * FROM users");
}

#[tokio::test]
async fn the_composed_config_holds_what_was_applied() {
    let bench = Bench::new().await;
    bench.apply(everything()).await;
    let specs = crate::watch::read_specs(&bench.office.deps.store)
        .await
        .unwrap();
    assert_eq!(specs.queries.len(), 2);
    assert_eq!(specs.packs[0].labels.len(), 1);
    assert_eq!(
        specs.agent_options["config"]["options"]["logger_tls_period"],
        10
    );
    Agents::compose_check(&specs).unwrap();
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let bench = Bench::new().await;
    for _ in 0..2 {
        let path = format!("{P}/spec?dry_run=true");
        let (status, body) = bench.local(Method::POST, &path, everything()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(actions(&body)[0], "create query processes");
        assert_eq!(body["changes"][0]["after"]["interval"], 3600);
        assert!(!body.to_string().contains("hunter2"), "{body}");
        assert!(
            body["warnings"][0].as_str().unwrap().contains("web-1"),
            "{body}"
        );
    }
    assert_eq!(bench.get("/spec/queries").await, json!({"specs": []}));
    let (status, _) = bench
        .local(Method::POST, &format!("{P}/spec?dry_run=yes"), everything())
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn one_mistake_stops_everything() {
    let bench = Bench::new().await;
    let mut documents = everything();
    documents["packs"][0]["queries"][0]["intervall"] = 5.into();
    documents["packs"][0]["targets"]["labels"] = json!(["none such"]);
    let reasons = bench.refuse("/spec", documents).await;
    assert!(reasons.contains("intervall"), "{reasons}");
    let mut documents = everything();
    documents["packs"][0]["targets"]["labels"] = json!(["none such"]);
    let reasons = bench.refuse("/spec", documents).await;
    assert!(reasons.contains("none such"), "{reasons}");
    assert!(
        bench
            .refuse("/spec", json!({"querys": []}))
            .await
            .contains("querys")
    );
    assert!(
        bench
            .refuse("/spec/queries", json!({"spec": []}))
            .await
            .contains("specs")
    );
    assert!(
        bench
            .refuse("/spec/queries", json!([]))
            .await
            .contains("object")
    );
    assert_eq!(bench.get("/spec/queries").await, json!({"specs": []}));
    assert_eq!(bench.get("/spec/packs").await, json!({"specs": []}));
}

#[tokio::test]
async fn what_agents_would_not_take_is_refused_by_name() {
    let bench = Bench::new().await;
    let pack = |name: &str, bytes: usize| {
        json!({
            "name": name, "targets": {"labels": ["All Hosts"]},
            "queries": [{"name": "q", "sql": format!("SELECT '{}'", "x".repeat(bytes)), "interval": 60}],
        })
    };
    let packs: Vec<Value> = (0..6)
        .map(|index| pack(&format!("p{index}"), 200_000))
        .collect();
    let reasons = bench.refuse("/spec/packs", json!({ "specs": packs })).await;
    assert!(reasons.contains(r#"pack \"p5\""#), "{reasons}");
    assert!(reasons.contains("1048576"), "{reasons}");
    assert_eq!(bench.get("/spec/packs").await, json!({"specs": []}));
    let (status, _) = bench
        .local(
            Method::POST,
            &format!("{P}/spec/packs"),
            json!({ "specs": packs[..5] }),
        )
        .await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn fleet_s_own_paths_apply_too() {
    let bench = Bench::new().await;
    let all = everything();
    for (method, path, body) in [
        (
            Method::POST,
            "/spec/queries",
            json!({"specs": all["queries"]}),
        ),
        (
            Method::POST,
            "/spec/labels",
            json!({"specs": all["labels"]}),
        ),
        (Method::POST, "/spec/packs", json!({"specs": all["packs"]})),
        (Method::PATCH, "/config?force=false", all["config"].clone()),
        (
            Method::POST,
            "/spec/enroll_secret",
            json!({"spec": all["enroll_secret"]}),
        ),
        (
            Method::POST,
            "/spec/options",
            json!({"spec": {"config": {"options": {"verbose": true}}}}),
        ),
    ] {
        let (status, answer) = bench
            .local(method, &format!("/api/v1/fleet{path}"), body)
            .await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
    }
    let config = bench.get("/config").await;
    assert_eq!(
        config["agent_options"]["config"]["options"],
        json!({"verbose": true})
    );
    assert_eq!(config["org_info"], json!({"org_name": "Example"}));
    assert_eq!(config["license"]["tier"], "free");
    assert_eq!(
        bench.get("/version").await["version"],
        env!("CARGO_PKG_VERSION")
    );
}

#[tokio::test]
async fn what_is_used_is_not_deleted() {
    let bench = Bench::new().await;
    bench.apply(everything()).await;
    let delete = async |path: &str| {
        let path = format!("{P}{path}");
        bench.local(Method::DELETE, &path, Value::Null).await
    };
    for (path, status, part) in [
        ("/queries/pack%2Fusers", StatusCode::CONFLICT, "\"p\""),
        ("/labels/dynamic", StatusCode::CONFLICT, "\"p\""),
        (
            "/labels/All%20Hosts",
            StatusCode::UNPROCESSABLE_ENTITY,
            "built in",
        ),
        ("/queries/none", StatusCode::NOT_FOUND, "none"),
        ("/packs/p", StatusCode::OK, ""),
        ("/packs/p", StatusCode::NOT_FOUND, "p"),
        ("/queries/pack%2Fusers", StatusCode::OK, ""),
        ("/labels/dynamic", StatusCode::OK, ""),
    ] {
        let (found, body) = delete(path).await;
        assert_eq!(found, status, "{path}: {body}");
        let error = body["error"].as_str().unwrap_or_default();
        assert!(error.contains(part), "{path}: {body}");
    }
}

#[tokio::test]
async fn too_large_a_body_is_refused() {
    let bench = Bench::new().await;
    let body = Body::from(vec![b' '; BODY_BYTES_MAX + 1]);
    let path = format!("{P}/spec");
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .body(body)
        .unwrap();
    let (status, body) = send(
        routes::router(Arc::clone(&bench.office), Side::Operator),
        request,
    )
    .await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert!(
        body["error"].as_str().unwrap().contains("larger than"),
        "{body}"
    );
    assert!(bench.directory.path().join("store.sqlite").exists());
}
