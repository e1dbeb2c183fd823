//! Hosts as operators see them.

use serde_json::json;

use super::*;

async fn three_hosts() -> Bench {
    let bench = Bench::new().await;
    for name in ["web-2", "web-1", "db-1"] {
        bench.enroll(name).await;
    }
    bench
}

#[tokio::test]
async fn hosts_are_listed_and_counted() {
    let bench = three_hosts().await;
    let list = bench.get("/hosts?order_key=hostname&per_page=2").await;
    let names: Vec<_> = list["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| &host["hostname"])
        .collect();
    assert_eq!(names, ["db-1", "web-1"]);
    assert_eq!(list["hosts"][0]["status"], "online");
    assert_eq!(
        bench
            .get("/hosts?order_key=hostname&per_page=2&page=1")
            .await["hosts"][0]["hostname"],
        "web-2"
    );
    assert_eq!(
        bench.get("/hosts?query=WEB").await["hosts"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(bench.get("/hosts/count").await["count"], 3);
    assert_eq!(bench.get("/hosts/count?status=online").await["count"], 3);
    assert_eq!(bench.get("/hosts/count?status=mia").await["count"], 0);
    assert_eq!(bench.get("/hosts/count?query=web").await["count"], 2);
    for (parameter, part) in [
        ("status=up", "status"),
        ("order_key=colour", "order_key"),
        ("order_direction=up", "order_direction"),
        ("per_page=many", "per_page"),
        ("per_page=10001", "per_page"),
    ] {
        let path = format!("{P}/hosts?{parameter}");
        let (status, body) = bench.local(Method::GET, &path, Value::Null).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(body["errors"][0]["name"], part, "{body}");
    }
}

#[tokio::test]
async fn hosts_are_found_and_deleted() {
    let bench = three_hosts().await;
    let host = bench.get("/hosts/identifier/uuid-web-1").await["host"].clone();
    assert_eq!(host["osquery_host_id"], "id-web-1");
    assert_eq!(host["labels"][0]["name"], "All Hosts");
    let id = host["id"].as_u64().unwrap();
    assert_eq!(
        bench.get(&format!("/hosts/{id}")).await["host"]["hostname"],
        "web-1"
    );
    let path = format!("{P}/hosts/{id}/refetch");
    assert_eq!(
        bench.local(Method::POST, &path, Value::Null).await.0,
        StatusCode::OK
    );
    assert_eq!(
        bench.get(&format!("/hosts/{id}")).await["host"]["refetch_requested"],
        true
    );
    let path = format!("{P}/hosts/{id}");
    assert_eq!(
        bench.local(Method::DELETE, &path, Value::Null).await.0,
        StatusCode::OK
    );
    assert_eq!(
        bench.local(Method::DELETE, &path, Value::Null).await.0,
        StatusCode::NOT_FOUND
    );
    let path = format!("{P}/hosts/web-2");
    assert_eq!(
        bench.local(Method::GET, &path, Value::Null).await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(bench.get("/carves").await, json!({"carves": []}));
}
