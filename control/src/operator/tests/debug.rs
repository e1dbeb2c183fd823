//! `/debug/…`: who may see it, what it has, and that no secret is in it.

use fleet_protocol::secret::Secret;

use super::*;

const PATHS: [&str; 13] = [
    "/debug/errors",
    "/debug/errors?flush=true",
    "/debug/migrations",
    "/debug/pprof/cmdline",
    "/debug/gateway",
    "/debug/gateway/slots",
    "/debug/gateway/config",
    "/debug/gateway/metrics",
    "/debug/gateway/store",
    "/debug/gateway/feed",
    "/debug/gateway/threads",
    "/debug/db/locks",
    "/debug/pprof/heap",
];

async fn text(bench: &Bench, path: &str) -> (StatusCode, String) {
    let router = routes::router(Arc::clone(&bench.office), Side::Operator);
    let request = Request::builder().uri(path).body(Body::empty()).unwrap();
    let response = hyper::service::Service::call(&TowerToHyperService::new(router), request)
        .await
        .unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn nobody_from_outside_sees_it() {
    let bench = Bench::new().await;
    for path in PATHS {
        let (status, body) = bench.remote(Method::GET, path).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}: {body}");
    }
}

#[tokio::test]
async fn every_item_of_the_list_is_there() {
    let bench = Bench::new().await;
    bench.enroll("web-1").await;
    let (status, list) = bench
        .local(Method::GET, "/debug/gateway", Value::Null)
        .await;
    assert_eq!(status, StatusCode::OK);
    let items = list.as_array().unwrap();
    assert_eq!(items.len(), 6);
    for item in items {
        let (status, body) = text(&bench, item["path"].as_str().unwrap()).await;
        assert_eq!(status, StatusCode::OK, "{item}: {body}");
        if item["extension"] == "json" {
            serde_json::from_str::<Value>(&body).unwrap();
        }
    }
    let (_, feed) = bench
        .local(Method::GET, "/debug/gateway/feed", Value::Null)
        .await;
    assert!(feed["store_newest"].as_u64() > Some(0), "{feed}");
    let (_, state) = bench
        .local(Method::GET, "/debug/migrations", Value::Null)
        .await;
    assert_eq!(state["missing_tables"], 0, "{state}");
    for path in [
        "/debug/gateway/none",
        "/debug/pprof/heap",
        "/debug/db/locks",
    ] {
        let (status, body) = text(&bench, path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {body}");
        assert!(body.contains("does not exist"), "{body}");
    }
}

#[tokio::test]
async fn no_secret_is_in_any_of_it() {
    let bench = Bench::with(|config, _| {
        config.mysql.password = Secret::new("hunter2-mysql");
        config.redis.password = Secret::new("hunter2-redis");
        config.mysql_read_replica.password = Secret::new("hunter2-replica");
        config.prometheus.basic_auth.username = "scraper".into();
        config.prometheus.basic_auth.password = Secret::new("hunter2-metrics");
    })
    .await;
    let secret = Secret::new("hunter2-enroll");
    bench
        .office
        .deps
        .store
        .set_enroll_secrets(&[secret])
        .await
        .unwrap();
    bench.enroll("web-1").await;
    let (status, config) = text(&bench, "/debug/gateway/config").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(config.matches("********").count(), 4, "{config}");
    for path in PATHS {
        let (_, body) = text(&bench, path).await;
        assert!(!body.contains("hunter2"), "{path}: {body}");
        assert!(!body.is_empty(), "{path}");
    }
}
