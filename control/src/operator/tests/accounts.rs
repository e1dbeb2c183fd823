//! Signing in, accounts and sessions, as remote clients see them.

use serde_json::json;

use super::*;

const PASSWORD: &str = "correct-horse-1";
const OTHER: &str = "battery-staple-2";

fn setup_body() -> Value {
    json!({
        "admin": {"admin": true, "name": "Ada", "email": "Ada@Example.com", "password": PASSWORD},
        "org_info": {"org_name": "Example", "org_logo_url_light": ""},
        "server_url": "https://fleet.example.com",
    })
}

impl Bench {
    /// The first admin's token.
    async fn set_up(&self) -> String {
        let (status, body) = self
            .ask(None, Method::POST, "/api/v1/setup", setup_body())
            .await;
        assert_eq!(status, StatusCode::OK, "{body}");
        text(&body["token"])
    }

    async fn post(&self, token: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let path = format!("{P}{path}");
        self.ask(Some(token), Method::POST, &path, body).await
    }

    async fn status(&self, token: &str, path: &str) -> StatusCode {
        let path = format!("{P}{path}");
        let (status, _) = self.ask(Some(token), Method::GET, &path, Value::Null).await;
        status
    }

    async fn login(&self, email: &str, password: &str) -> (StatusCode, Value) {
        let body = json!({"email": email, "password": password});
        let path = format!("{P}/login");
        self.ask(None, Method::POST, &path, body).await
    }

    /// Makes an account; its number.
    async fn create(&self, token: &str, account: Value) -> (u64, Value) {
        let (status, body) = self.post(token, "/users/admin", account).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        (body["user"]["id"].as_u64().unwrap(), body)
    }

    async fn patch(&self, token: &str, id: u64, body: Value) -> (StatusCode, Value) {
        let path = format!("{P}/users/{id}");
        self.ask(Some(token), Method::PATCH, &path, body).await
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn person(role: &str) -> Value {
    json!({
        "name": role, "email": format!("{role}@example.com"), "password": PASSWORD,
        "global_role": role, "admin_forced_password_reset": false,
    })
}

#[tokio::test]
async fn the_first_admin_sets_up_signs_in_and_out() {
    let bench = Bench::new().await;
    let (status, _) = bench.login("ada@example.com", PASSWORD).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "not set up yet");
    let token = bench.set_up().await;
    for path in ["/api/v1/setup", "/api/latest/fleet/setup"] {
        let (status, _) = bench.ask(None, Method::POST, path, setup_body()).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path} again");
    }
    assert_eq!(bench.status(&token, "/me").await, StatusCode::OK);
    let (status, body) = bench.login(" ADA@example.com", PASSWORD).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["user"]["email"], "Ada@Example.com");
    assert_eq!(body["user"]["global_role"], "admin");
    assert_eq!(body["available_teams"], json!([]));
    let second = text(&body["token"]);
    assert_eq!(second.len(), 88, "64 bytes in base64");
    let (_, config) = bench
        .ask(
            Some(&second),
            Method::GET,
            &format!("{P}/config"),
            Value::Null,
        )
        .await;
    assert_eq!(config["org_info"]["org_name"], "Example");
    let url = &config["server_settings"]["server_url"];
    assert_eq!(url, "https://fleet.example.com");
    let (status, body) = bench.post(&second, "/logout", Value::Null).await;
    assert_eq!((status, body), (StatusCode::OK, json!({})));
    assert_eq!(bench.status(&second, "/me").await, StatusCode::UNAUTHORIZED);
    assert_eq!(bench.status(&token, "/me").await, StatusCode::OK);
}

#[tokio::test]
async fn only_one_of_two_can_be_first() {
    let bench = Bench::new().await;
    let ask = || bench.ask(None, Method::POST, "/api/v1/setup", setup_body());
    let (one, other) = tokio::join!(ask(), ask());
    let mut found = [one.0, other.0];
    found.sort();
    assert_eq!(found, [StatusCode::OK, StatusCode::NOT_FOUND]);
}

#[tokio::test]
async fn a_wrong_setup_makes_nobody() {
    let bench = Bench::new().await;
    for (pointer, value) in [
        ("/admin/password", json!("short")),
        ("/admin/email", json!("nobody")),
        ("/admin/name", json!("")),
        ("/server_url", json!(7)),
        ("/admin", Value::Null),
    ] {
        let mut body = setup_body();
        *body.pointer_mut(pointer).unwrap() = value;
        let (status, body) = bench.ask(None, Method::POST, "/api/v1/setup", body).await;
        assert!(status.is_client_error(), "{pointer}: {status} {body}");
        assert!(!body.to_string().contains("short"), "{body}");
    }
    assert!(!bench.office.deps.store.has_users().await.unwrap());
}

#[tokio::test]
async fn wrong_credentials_look_alike() {
    let bench = Bench::new().await;
    bench.set_up().await;
    let (one, other) = tokio::join!(
        bench.login("ada@example.com", "wrong-password-1"),
        bench.login("nobody@example.com", "wrong-password-1"),
    );
    assert_eq!(one.0, StatusCode::UNAUTHORIZED, "{}", one.1);
    assert_eq!(one, other);
    assert!(one.1["error"].is_string());
}

#[tokio::test]
async fn too_many_tries_are_refused() {
    let bench = Bench::new().await;
    bench.set_up().await;
    let actor = crate::operator::actor::Actor::nobody(Some(CLIENT.0));
    // The bucket fills again with time, which passes quickly where the machine is slow.
    for _ in 0..20 {
        while bench.office.take_try(&actor, "a@b.c").is_ok() {}
        let (status, body) = bench.login("a@b.c", PASSWORD).await;
        if status == StatusCode::TOO_MANY_REQUESTS {
            assert!(body["error"].as_str().unwrap().contains("retry after"));
            return;
        }
    }
    panic!("never refused");
}

#[tokio::test]
async fn accounts_are_made_changed_and_deleted() {
    let bench = Bench::new().await;
    let admin = bench.set_up().await;
    let (id, body) = bench.create(&admin, person("observer")).await;
    assert!(body.get("token").is_none(), "{body}");
    let observer = text(&bench.login("observer@example.com", PASSWORD).await.1["token"]);
    assert_eq!(
        bench.status(&observer, "/users").await,
        StatusCode::FORBIDDEN
    );
    let own = format!("/users/{id}");
    assert_eq!(bench.status(&observer, &own).await, StatusCode::OK);
    assert_eq!(
        bench.status(&observer, "/users/1").await,
        StatusCode::FORBIDDEN
    );
    // Nobody lifts himself.
    let (status, _) = bench
        .patch(&observer, id, json!({"global_role": "admin"}))
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, _) = bench
        .patch(&observer, id, json!({"new_password": OTHER}))
        .await;
    assert_eq!(
        status,
        StatusCode::UNPROCESSABLE_ENTITY,
        "without the old one"
    );
    let (status, _) = bench.patch(&observer, id, json!({"name": "Grace"})).await;
    assert_eq!(status, StatusCode::OK);
    // A change counts from the next request on.
    assert_eq!(
        bench.status(&observer, "/spec/packs").await,
        StatusCode::FORBIDDEN
    );
    let roles = json!({"spec": {"roles": {"observer@example.com": {"global_role": "maintainer"}}}});
    let (status, body) = bench.post(&admin, "/users/roles/spec", roles).await;
    assert_eq!((status, body), (StatusCode::OK, json!({})));
    assert_eq!(bench.status(&observer, "/spec/packs").await, StatusCode::OK);
    let (_, users) = bench
        .ask(
            Some(&admin),
            Method::GET,
            &format!("{P}/users?query=grace"),
            Value::Null,
        )
        .await;
    assert_eq!(users["users"].as_array().unwrap().len(), 1, "{users}");
    assert_eq!(users["users"][0]["global_role"], "maintainer");
    let mut twice = person("observer");
    twice["email"] = json!("OBSERVER@example.com");
    let (status, _) = bench.post(&admin, "/users", twice).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let path = format!("{P}{own}");
    let (status, _) = bench
        .ask(Some(&admin), Method::DELETE, &path, Value::Null)
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        bench.status(&observer, "/me").await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(bench.status(&admin, &own).await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn somebody_stays_admin() {
    let bench = Bench::new().await;
    let admin = bench.set_up().await;
    let (status, _) = bench
        .patch(&admin, 1, json!({"global_role": "observer"}))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let path = format!("{P}/users/1");
    let (status, body) = bench
        .ask(Some(&admin), Method::DELETE, &path, Value::Null)
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    let (status, _) = bench.local(Method::DELETE, &path, Value::Null).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "not even locally");
    // The only one may hand over.
    bench.create(&admin, person("observer")).await;
    let roles = json!({"spec": {"roles": {
        "ada@example.com": {"global_role": "observer"},
        "observer@example.com": {"global_role": "admin"},
    }}});
    let (status, body) = bench.post(&admin, "/users/roles/spec", roles).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(bench.status(&admin, "/users").await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn programs_have_tokens_that_stay() {
    let bench = Bench::new().await;
    let admin = bench.set_up().await;
    let (_, body) = bench
        .create(
            &admin,
            json!({"name": "ci", "email": "ci@example.com", "global_role": "maintainer", "api_only": true}),
        )
        .await;
    let token = text(&body["token"]);
    assert_eq!(body["user"]["force_password_reset"], false);
    assert_eq!(bench.status(&token, "/spec/queries").await, StatusCode::OK);
    // Unused for years.
    let store = &bench.office.deps.store;
    let user = store
        .user_by_email("ci@example.com")
        .await
        .unwrap()
        .unwrap();
    let long_ago = fleet_protocol::ids::UnixSeconds(1_000_000);
    let hash = crate::operator::guard::digest_of("an old token");
    store.add_session(user.id, &hash, long_ago).await.unwrap();
    store.end_idle_sessions(now()).await.unwrap();
    assert_eq!(bench.status("an old token", "/me").await, StatusCode::OK);
}

#[tokio::test]
async fn passwords_are_changed_and_resets_come_first() {
    let bench = Bench::new().await;
    let admin = bench.set_up().await;
    let mut account = person("maintainer");
    account["admin_forced_password_reset"] = Value::Null;
    let (id, body) = bench.create(&admin, account).await;
    assert_eq!(body["user"]["force_password_reset"], true);
    let (status, body) = bench.login("maintainer@example.com", PASSWORD).await;
    assert_eq!(status, StatusCode::OK);
    let token = text(&body["token"]);
    assert_eq!(
        bench.status(&token, "/hosts").await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(bench.status(&token, "/me").await, StatusCode::OK);
    let reset = "/perform_required_password_reset";
    let (status, _) = bench
        .post(&token, reset, json!({"new_password": PASSWORD}))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "the old one");
    let (status, body) = bench
        .post(&token, reset, json!({"new_password": OTHER}))
        .await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["user"]["force_password_reset"], false);
    assert_eq!(bench.status(&token, "/hosts").await, StatusCode::OK);
    let (status, _) = bench
        .post(&token, reset, json!({"new_password": PASSWORD}))
        .await;
    assert_eq!(status, StatusCode::CONFLICT, "none is due");
    // Another session of the same account ends when the password changes, this one stays.
    let second = text(&bench.login("maintainer@example.com", OTHER).await.1["token"]);
    let change = json!({"old_password": OTHER, "new_password": PASSWORD});
    let (status, body) = bench.post(&token, "/change_password", change).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(bench.status(&token, "/hosts").await, StatusCode::OK);
    assert_eq!(
        bench.status(&second, "/hosts").await,
        StatusCode::UNAUTHORIZED
    );
    let path = format!("/users/{id}/require_password_reset");
    let (status, _) = bench.post(&admin, &path, json!({"require": true})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(bench.status(&token, "/me").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn sessions_are_listed_and_ended_by_who_they_belong_to() {
    let bench = Bench::new().await;
    let admin = bench.token(Role::Admin).await;
    let user = bench.account(Role::Observer).await;
    let (own, second) = (bench.session(&user).await, bench.session(&user).await);
    let list = format!("{P}/users/{}/sessions", user.id);
    let (_, body) = bench.ask(Some(&own), Method::GET, &list, Value::Null).await;
    let sessions = body["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 2, "{body}");
    let path = format!("{P}/sessions/{}", sessions[1]["session_id"]);
    let stranger = bench.token(Role::Maintainer).await;
    let (status, _) = bench
        .ask(Some(&stranger), Method::GET, &path, Value::Null)
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = bench
        .ask(Some(&own), Method::DELETE, &path, Value::Null)
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(bench.status(&second, "/me").await, StatusCode::UNAUTHORIZED);
    let (status, _) = bench
        .ask(Some(&admin), Method::DELETE, &list, Value::Null)
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(bench.status(&own, "/me").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_request_of_a_known_session_asks_the_store_nothing() {
    let bench = Bench::new().await;
    let token = bench.token(Role::Observer).await;
    let statements = || bench.office.deps.store.statistics().statements_total();
    // Whatever else runs now and then, one row of requests has nothing between.
    for _ in 0..20 {
        assert_eq!(bench.status(&token, "/version").await, StatusCode::OK);
        let before = statements();
        for _ in 0..3 {
            assert_eq!(bench.status(&token, "/version").await, StatusCode::OK);
        }
        if statements() == before {
            return;
        }
    }
    panic!("the store is asked for each request");
}

#[tokio::test]
async fn the_use_of_sessions_is_written_together() {
    let bench = Bench::new().await;
    let user = bench.account(Role::Observer).await;
    let hash = crate::operator::guard::digest_of("a token");
    let store = &bench.office.deps.store;
    let earlier = fleet_protocol::ids::UnixSeconds(now().0 - 1000);
    store.add_session(user.id, &hash, earlier).await.unwrap();
    assert_eq!(bench.status("a token", "/me").await, StatusCode::OK);
    assert_eq!(
        store.sessions_of(user.id).await.unwrap()[0].used_at,
        earlier
    );
    bench.office.guard.write_used().await;
    let used_at = store.sessions_of(user.id).await.unwrap()[0].used_at;
    assert!(used_at.0 >= earlier.0 + 1000, "{used_at:?}");
}

#[tokio::test]
async fn the_local_operator_needs_no_account() {
    let bench = Bench::new().await;
    let body = bench.get("/me").await;
    assert_eq!(body["user"]["global_role"], "admin");
    let path = format!("{P}/users/admin");
    let (status, body) = bench.local(Method::POST, &path, person("admin")).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let (status, _) = bench.login("admin@example.com", PASSWORD).await;
    assert_eq!(status, StatusCode::OK);
    let path = format!("{P}/change_password");
    let change = json!({"old_password": PASSWORD, "new_password": OTHER});
    let (status, _) = bench.local(Method::POST, &path, change).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_sign_in_takes_no_large_body() {
    let bench = Bench::new().await;
    bench.set_up().await;
    let body = json!({"email": "ada@example.com", "password": "x".repeat(17 << 10)});
    let path = format!("{P}/login");
    let (status, body) = bench.ask(None, Method::POST, &path, body).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{body}");
}

#[tokio::test]
async fn answers_are_not_kept_nor_shared_with_other_sites() {
    let bench = Bench::new().await;
    let request = Request::builder()
        .uri(format!("{P}/me"))
        .header(header::ORIGIN, "https://elsewhere.example.com")
        .body(Body::empty())
        .unwrap();
    let router = routes::router(Arc::clone(&bench.office), Side::Tunnel);
    let service = TowerToHyperService::new(router);
    let response = hyper::service::Service::call(&service, request)
        .await
        .unwrap();
    let headers = response.headers();
    assert_eq!(headers[header::CACHE_CONTROL], "no-store");
    assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    assert_eq!(headers[header::WWW_AUTHENTICATE], "Bearer");
    assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
}
