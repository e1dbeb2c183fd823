//! What the audit log says of changes, and what it never says.

use serde_json::json;

use super::*;
use crate::model::host::HostDetails;

const PASSWORD: &str = "correct-horse-1";

impl Bench {
    async fn activities(&self, parameters: &str) -> Vec<Value> {
        let body = self.get(&format!("/activities?{parameters}")).await;
        body["activities"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn every_change_is_noted_with_who_and_what() {
    let bench = Bench::new().await;
    let user = bench.account(Role::Maintainer).await;
    let token = bench.session(&user).await;
    let host = bench.enroll("web-1").await;
    // A new host is asked for everything anyway.
    let details = HostDetails {
        host,
        at: now(),
        columns: HostColumns::default(),
        details: Map::new(),
    };
    let store = &bench.office.deps.store;
    store.update_details(&[details]).await.unwrap();
    for sql in ["SELECT 1", "SELECT 2", "SELECT 2"] {
        let specs = json!({"specs": [{"name": "one", "query": sql, "interval": 60}]});
        let path = format!("{P}/spec/queries");
        let (status, body) = bench.ask(Some(&token), Method::POST, &path, specs).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }
    for (method, path) in [
        (Method::POST, format!("{P}/hosts/{host}/refetch")),
        // Asked for already, which is no change either.
        (Method::POST, format!("{P}/hosts/{host}/refetch")),
        (Method::DELETE, format!("{P}/hosts/{host}")),
        (Method::DELETE, format!("{P}/queries/one")),
    ] {
        let (status, body) = bench.ask(Some(&token), method, &path, Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
    }
    let found = bench.activities("order_direction=asc").await;
    let kinds: Vec<_> = found
        .iter()
        .map(|one| one["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "applied_spec_saved_query",
            // The same again is no change.
            "applied_spec_saved_query",
            "refetched_host",
            "deleted_host",
            "deleted_saved_query",
        ]
    );
    for one in &found {
        assert_eq!(one["actor_full_name"], "maintainer");
        assert_eq!(one["actor_email"], user.email);
        assert_eq!(one["actor_id"], user.id.0);
        assert_eq!(one["actor_address"], "192.0.2.99");
    }
    let details = &found[1]["details"];
    assert_eq!(details["before"]["query"], "SELECT 1");
    assert_eq!(details["after"]["query"], "SELECT 2");
    assert_eq!(found[3]["subject"]["name"], "web-1");
    assert_eq!(found[4]["details"]["before"]["query"], "SELECT 2");
}

#[tokio::test]
async fn a_change_whose_client_goes_away_is_carried_through_and_noted() {
    let bench = Bench::new().await;
    let specs = json!({"specs": [{"name": "one", "query": "SELECT 1"}]});
    let path = format!("{P}/spec/queries");
    let mut request = Box::pin(bench.local(Method::POST, &path, specs));
    tokio::select! {
        biased;
        answer = request.as_mut() => panic!("{answer:?} before anything could run"),
        () = std::future::ready(()) => {}
    }
    let all = usize::try_from(DEEDS_MAX).unwrap();
    assert_eq!(bench.office.deeds.available_permits(), all - 1);
    drop(request);
    bench.office.settle().await;
    assert_eq!(bench.office.deeds.available_permits(), all);
    let found = bench.activities("").await;
    assert_eq!(found[0]["type"], "applied_spec_saved_query");
    assert_eq!(found[0]["subject"]["name"], "one");
}

#[tokio::test]
async fn refused_changes_and_dry_runs_are_not_noted() {
    let bench = Bench::new().await;
    let path = format!("{P}/spec/queries?dry_run=true");
    let specs = json!({"specs": [{"name": "one", "query": "SELECT 1"}]});
    let (status, _) = bench.local(Method::POST, &path, specs).await;
    assert_eq!(status, StatusCode::OK);
    bench
        .refuse(
            "/spec/queries",
            json!({"specs": [{"name": "one", "query": ""}]}),
        )
        .await;
    assert_eq!(bench.activities("").await, Vec::<Value>::new());
}

#[tokio::test]
async fn the_log_is_read_in_pages() {
    let bench = Bench::new().await;
    for number in 0..5 {
        let name = format!("q{number}");
        bench
            .apply(json!({"queries": [{"name": name, "query": "SELECT 1"}]}))
            .await;
    }
    let names = |found: Vec<Value>| -> Vec<String> {
        let name = |one: &Value| one["subject"]["name"].as_str().unwrap().to_owned();
        found.iter().map(name).collect()
    };
    assert_eq!(names(bench.activities("per_page=2").await), ["q4", "q3"]);
    let last = bench.get("/activities?per_page=2&page=2").await;
    assert_eq!(last["activities"].as_array().unwrap().len(), 1);
    assert_eq!(last["meta"]["has_next_results"], false);
    assert_eq!(last["meta"]["has_previous_results"], true);
    let first = bench.get("/activities?per_page=5").await;
    assert_eq!(first["meta"]["has_next_results"], false, "{first}");
    let local = &first["activities"][0];
    assert_eq!(local["actor_full_name"], "local operator");
    assert_eq!(local["actor_id"], Value::Null);
    let (status, _) = bench
        .local(
            Method::GET,
            &format!("{P}/activities?per_page=x"),
            Value::Null,
        )
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn no_secret_is_in_the_log() {
    let bench = Bench::new().await;
    let admin = json!({"name": "Ada", "email": "ada@example.com", "password": PASSWORD});
    let setup = json!({"admin": admin, "org_info": {"org_name": "Example"}, "server_url": ""});
    let (_, body) = bench.ask(None, Method::POST, "/api/v1/setup", setup).await;
    let token = body["token"].as_str().unwrap().to_owned();
    let login = json!({"email": "ada@example.com", "password": PASSWORD});
    let path = format!("{P}/login");
    let (_, body) = bench.ask(None, Method::POST, &path, login).await;
    let second = body["token"].as_str().unwrap().to_owned();
    let wrong = json!({"email": "ada@example.com", "password": "hunter2"});
    bench.ask(None, Method::POST, &path, wrong).await;
    for (path, body) in [
        (
            "/users/admin",
            json!({"name": "ci", "email": "ci@example.com", "password": "another-secret-3", "api_only": true}),
        ),
        (
            "/change_password",
            json!({"old_password": PASSWORD, "new_password": "battery-staple-2"}),
        ),
        (
            "/spec/enroll_secret",
            json!({"spec": {"secrets": [{"secret": "enroll-me-now"}]}}),
        ),
        ("/logout", Value::Null),
    ] {
        let path = format!("{P}{path}");
        let (status, body) = bench.ask(Some(&token), Method::POST, &path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
    }
    let found = bench.activities("").await;
    let all = Value::from(found.clone()).to_string();
    for kind in [
        "created_user",
        "user_logged_in",
        "user_failed_login",
        "changed_password",
        "edited_enroll_secrets",
        "user_logged_out",
    ] {
        assert!(all.contains(kind), "{kind}: {all}");
    }
    for secret in [
        PASSWORD,
        "battery-staple-2",
        "another-secret-3",
        "hunter2",
        "enroll-me-now",
        "argon2id",
        &token,
        &second,
    ] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
    let failed = found.iter().find(|one| one["type"] == "user_failed_login");
    assert_eq!(failed.unwrap()["actor_address"], "192.0.2.99");
}
